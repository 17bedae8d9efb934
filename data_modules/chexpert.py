"""CheXpert radiographs (Irvin et al., 2019) with the anatomical masks of CheXmask."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from data_modules.base import Batch, DataModule, Split
from data_modules.chexmask import Masks, read_chexmask
from data_modules.radiographs import Films, Radiographs
from data_modules.tables import numbers, read_columns, refuse
from data_modules.transforms import Augmentation
from segcft.parents import Variable

log = logging.getLogger(__name__)

FINDINGS = {
    name.lower().replace(" ", "_"): name
    for name in (
        "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
        "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
        "Support Devices",
    )
}  # fmt: skip
SOURCES = {"age": "Age", "sex": "Sex", **FINDINGS}  # variable -> column
TABLES: dict[str, Split] = {"train.csv": "train", "valid.csv": "val", "test.csv": "test"}
AREA_UNIT = "% of image"
OLDEST = 120  # years


class CheXpert(DataModule):
    """Frontal radiographs of CheXpert with lung and heart masks.

    Offers ``age`` (years; 0 is unknown), ``sex`` (0 female, 1 male), the findings by their names in lower case with
    underscores (``pleural_effusion``; 0 or 1, uncertain and blank are missing), and ``<structure>_area`` in % of the
    image after padding to a square. A film that lacks a used variable or a mask is left out, and counted in the log.

    With a ``test.csv`` the three tables are the three splits. Otherwise a hash of (seed, patient) divides the patients
    of ``train.csv`` 80/10/10, and ``valid.csv`` joins the validation split.

    Args:
        root: Folder of ``train.csv``, or the folder above it.
        masks: CheXmask table of CheXpert, the variant of the same resolution as the images (``OriginalResolution``).
        variables: Parents of the image, name -> declaration; a variable with a ``structure`` is its area.
        structures: Mask channels, in order, among left_lung, right_lung and heart.
        size: Side of the square frame, pixels.
        min_dice: Smallest ``Dice RCA (Mean)`` of a mask.
        augment: Random changes of the training images: False, True for the usual strengths, or the strengths.
        seed: Decides the division of patients and the augmentation.
        batch_size: Images a step and a process.
        num_workers: Loader processes.

    Raises:
        ValueError: If a variable is not offered, or is an area declared with another unit.
    """

    def __init__(
        self,
        root: str,
        masks: str,
        variables: dict[str, Variable],
        structures: list[str] | None = None,
        size: int = 64,
        min_dice: float = 0.7,
        augment: bool | Augmentation = False,
        seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        self.structures = structures or ["left_lung", "right_lung", "heart"]
        super().__init__(_declared(variables, self.structures), batch_size, num_workers)
        self.root, self.masks, self.size, self.min_dice, self.seed = root, masks, size, min_dice, seed
        self.augmentation = Augmentation() if augment is True else augment or None
        self.spacing = [10 / size, 10 / size]  # a pixel is 100 / size^2 % of the image
        self._films: dict[Split, Films] = {}

    def make_dataset(self, split: Split) -> Radiographs:
        """Read the tables if need be and check that every image of the split exists."""
        if split not in self._films:
            self._films = self._read()
        films = self._films.pop(split)  # handed over, not kept: run lengths may take gigabytes
        if not films.images:
            raise ValueError(f"{self.root}: no film is left for {split}: {films.note}")
        return Radiographs(films, self.size, self.augmentation if split == "train" else None, self.seed)

    def loader(self, split: Split, shuffle: bool = False) -> DataLoader[Batch]:
        """Batches of one split, decoded before the loader processes start so that they share the memory."""
        dataset = self.dataset(split)
        assert isinstance(dataset, Radiographs)
        dataset.decode()
        return super().loader(split, shuffle)

    def _read(self) -> dict[Split, Films]:
        folder = find_folder(Path(self.root).expanduser())
        columns = [SOURCES[name] for name in self.variables if name in SOURCES]
        table = pd.concat(
            [read_table(folder / name, columns) for name in TABLES if (folder / name).is_file()], ignore_index=True
        )
        again = table["key"].duplicated().to_numpy()
        if again.any():
            raise ValueError(f"{table['origin'][again].iloc[0]}: this image occurs twice")
        table["split"] = assign_splits(table, self.seed)
        masks = read_chexmask(Path(self.masks).expanduser(), self.structures, pd.Index(table["key"]), self.min_dice)
        films = table.iloc[pd.Index(table["key"]).get_indexer(masks.ids)]
        log.info("%s: %d frontal films, %d with a mask", folder, len(table), len(films))
        return {split: self._films_of(split, films, masks, folder) for split in TABLES.values()}

    def _films_of(self, split: Split, table: pd.DataFrame, masks: Masks, folder: Path) -> Films:
        here = (table["split"] == split).to_numpy()
        table, masks = table[here], masks.take(here)
        measured = {
            name: self.structures.index(variable.structure)
            for name, variable in self.variables.items()
            if variable.structure
        }
        areas = masks.areas()
        values = {
            name: areas[:, measured[name]] if name in measured else table[SOURCES[name]].to_numpy(np.float64)
            for name in self.variables
        }
        whole, note = _complete(values, len(table))
        log.info("%s: %s", split, note)
        attributes = {name: column[whole].astype(np.float32) for name, column in values.items()}
        images = [f"{folder}/{key}" for key in table["key"][whole]]
        return Films(images, table["origin"][whole].tolist(), masks.take(whole), attributes, measured, note)


def find_folder(root: Path) -> Path:
    """The folder of ``train.csv``: ``root`` or one folder in it.

    Raises:
        ValueError: If there is none, or more than one.
    """
    if (root / "train.csv").is_file():
        return root
    found = sorted(path.parent for path in root.glob("*/train.csv"))
    if len(found) != 1:
        raise ValueError(f"{root}: train.csv is needed here or in one folder below, found {len(found)} such folders")
    return found[0]


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Frontal films of one CheXpert table.

    Args:
        path: ``train.csv``, ``valid.csv`` or ``test.csv``.
        columns: Columns of the variables in use.

    Returns:
        One row a film: ``key`` (the path without its first folder), ``patient``, ``origin`` (for messages),
        ``table`` (the file's name) and the ``columns`` as numbers with NaN for missing.

    Raises:
        ValueError: If a cell is not what it should be; the message names file, row, field and value.
    """
    frame = pd.concat(read_columns(path, ["Path", "Frontal/Lateral", *columns]))
    views = frame["Frontal/Lateral"]
    refuse(frame, "Frontal/Lateral", path, ~views.isin(["Frontal", "Lateral"]).to_numpy(), "Frontal or Lateral")
    frame = frame[views == "Frontal"]
    keys = frame["Path"].str.split("/", n=1).str[1]
    patients = keys.str.extract(r"(?:^|/)(patient\w+)/", expand=False)
    refuse(frame, "Path", path, patients.isna().to_numpy(), "no .../patient.../ in it")
    rows = frame.index.astype(str)
    origins = f"{path}, row " + rows + ", Path = '" + frame["Path"] + "'"
    table = {"key": keys, "patient": patients, "origin": origins, "table": path.name}
    return pd.DataFrame({**table, **{column: _values(frame, column, path) for column in columns}})


def _values(frame: pd.DataFrame, column: str, path: Path) -> NDArray[np.float64]:
    """One column as numbers, (N,); NaN is missing."""
    if column == "Sex":
        codes = frame[column].fillna("Unknown").map({"Female": 0.0, "Male": 1.0, "Unknown": 2.0}).to_numpy(np.float64)
        refuse(frame, column, path, np.isnan(codes), "Female, Male or Unknown")
        return np.where(codes == 2, np.nan, codes)
    values = numbers(frame, column, path, blank=column != "Age")
    if column == "Age":
        refuse(frame, column, path, (values < 0) | (values > OLDEST), f"an age lies between 0 and {OLDEST}")
        return np.where(values == 0, np.nan, values)
    refuse(frame, column, path, ~np.isin(values, [-1, 0, 1]) & ~np.isnan(values), "1, 0, -1 or blank")
    return np.where(values == -1, np.nan, values)


def assign_splits(table: pd.DataFrame, seed: int) -> NDArray[np.object_]:
    """Split of every film, (N,), see ``CheXpert``.

    Raises:
        ValueError: If a patient would lie in two splits.
    """
    splits = table["table"].map(TABLES)
    if "test.csv" not in set(table["table"]):
        hashed = {patient: _hashed_split(seed, patient) for patient in table["patient"].unique()}
        splits = splits.mask(splits == "train", table["patient"].map(hashed))
    pairs = pd.DataFrame({"patient": table["patient"], "split": splits}).drop_duplicates()
    shared = pairs.loc[pairs["patient"].duplicated(keep=False), "patient"].unique()
    if len(shared):
        places = {name: sorted(pairs.loc[pairs["patient"] == name, "split"]) for name in shared[:3]}
        raise ValueError(f"{len(shared)} patients lie in more than one split, such as {places}")
    return splits.to_numpy(object)


def _complete(values: dict[str, NDArray[np.float64]], count: int) -> tuple[NDArray[np.bool_], str]:
    """Which of ``count`` films lack no value, (N,), and a sentence about the others."""
    missing = {name: np.isnan(column) for name, column in values.items()}
    whole = ~np.any(list(missing.values()), axis=0) if missing else np.ones(count, bool)
    lacking = ", ".join(f"{name} of {int(lacks.sum())}" for name, lacks in missing.items() if lacks.any())
    return whole, f"{int(whole.sum())} of {count} films with a mask are kept; missing: {lacking or 'nothing'}"


def _hashed_split(seed: int, patient: str) -> Split:
    tenth = int.from_bytes(hashlib.sha256(f"{seed}/{patient}".encode()).digest()[:8]) % 10
    return "test" if tenth == 9 else "val" if tenth == 8 else "train"


def _declared(variables: dict[str, Variable], structures: list[str]) -> dict[str, Variable]:
    """Variables with their structure and unit filled in."""
    offered = [f"{structure}_area" for structure in structures] + list(SOURCES)
    declared = {}
    for name, variable in variables.items():
        structure = variable.structure or (name.removesuffix("_area") if name in offered[: len(structures)] else "")
        if structure not in structures and (structure or name not in SOURCES):
            raise ValueError(f"variable {name!r} (structure {structure!r}); this data set offers {', '.join(offered)}")
        if structure and variable.unit not in ("", AREA_UNIT):
            raise ValueError(f"variable {name!r}: areas are in {AREA_UNIT!r} here, not in {variable.unit!r}")
        declared[name] = replace(variable, structure=structure, unit=AREA_UNIT) if structure else variable
    return declared
