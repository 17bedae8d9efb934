"""PadChest chest radiographs (Bustos et al., 2020) with CheXmask segmentations."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.chest.chexmask import Variant
from data_modules.chest.radiographs import ChestFilms
from data_modules.common.splits import hashed_splits
from segcft.io.csv_tables import bad_cell, categories, numbers, origins, read_table, refuse, refuse_outside, years
from segcft.io.picture import Pixels

COLUMNS = ["ImageID", "PatientID", "StudyDate_DICOM", "PatientBirth", "PatientSex_DICOM", "Projection", "Labels"]
OPTIONAL = ["ImageDir", "PhotometricInterpretation_DICOM"]
SEXES = {"F": 0.0, "M": 1.0, "O": np.nan}
RARE = 100  # films; less frequent labels are not offered as variables
OLDEST = 120  # years
SHARES = (0.005, 0.995)


class PadChest(ChestFilms):
    """Frontal radiographs of PadChest; see ``ChestFilms`` for the other arguments and the geometry.

    Films are 16-bit PNGs with very different ranges: for each film the levels from the 0.5th to the 99.5th percentile
    are mapped to 0 to 255, and films whose ``PhotometricInterpretation_DICOM`` is MONOCHROME1 are inverted. To check
    this, look at ``lung_contrast``, which is negative for a film that is still inverted.

    Offers ``sex`` (0 female, 1 male), ``age`` (year of the study - year of birth; outside 0 to 120 it is unknown) and
    every label that at least 100 of all films have, by its name with underscores (``pleural_effusion``; 0 or 1). A hash
    of (seed, patient) divides the patients 80/10/10.

    CheXmask removed black borders after OpenCV had reduced the films to 8 bits, so here the same rule is applied to the
    high byte of the levels.

    Args:
        root: Folder of the images: ``root/ImageDir/ImageID``, or ``root/ImageID``.
        masks: CheXmask table ``Padchest.csv``.
        labels: The data set's CSV, plain or ``.gz``; by default the one ``PADCHEST_*.csv[.gz]`` in ``root``.
        projections: Values of ``Projection`` to use; PA by default.
        structures: See ``ChestFilms``.
        size: See ``ChestFilms``.
        min_dice: See ``ChestFilms``.
        variant: See ``ChestFilms``.
        seed: See ``ChestFilms``.
    """

    name = "padchest"
    strips_borders = True

    def __init__(
        self,
        root: str,
        masks: str,
        labels: str | None = None,
        projections: list[str] | None = None,
        structures: list[str] | None = None,
        size: int = 192,
        min_dice: float = 0.7,
        variant: Variant = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(root, masks, structures, size, min_dice, variant, seed)
        self.projections = projections or ["PA"]
        self.labels = Path(labels).expanduser() if labels else None

    def options(self) -> dict[str, Any]:
        """See ``Source.options``."""
        return super().options() | {"projections": self.projections}

    def files(self) -> list[Path]:
        """See ``Source.files``."""
        return [self._table(), self.masks]

    def films(self) -> pd.DataFrame:
        """See ``ChestFilms.films``."""
        path = self._table()
        frame = read_table(path, COLUMNS, OPTIONAL)
        frame = frame[frame["Projection"].isin(self.projections)]
        for field in ("ImageID", "PatientID"):
            refuse(frame, field, path, frame[field].isna().to_numpy(), "every film needs one")
        for field in {"ImageID", "ImageDir"} & set(frame):
            refuse_outside(frame, field, path)
        age = years(frame, "StudyDate_DICOM", path) - numbers(frame, "PatientBirth", path, blank=True)
        table = pd.DataFrame({"id": frame["ImageID"], "patient": frame["PatientID"], "image": self._images(frame)})
        values: dict[str, Any] = {
            "split": hashed_splits(table["patient"], self.seed),
            "origin": origins(frame, "ImageID", path),
            "age": np.where((age >= 0) & (age <= OLDEST), age, np.nan).astype(np.float32),
            "sex": categories(frame, "PatientSex_DICOM", path, SEXES).astype(np.float32),
            "inverted": _inverted(frame),
        }
        return table.assign(**values, **_labels(frame, path)).reset_index(drop=True)

    def grey(self, pixels: Pixels, row: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Convert pixels (H, W) to 8 bits by percentiles, and invert MONOCHROME1 films."""
        counts = np.bincount(pixels.ravel())
        low, high = np.searchsorted(counts.cumsum() / pixels.size, SHARES)
        if low >= high:
            raise ValueError(f"{row['image']} is flat: nearly all levels are {low}")
        share = ((np.arange(len(counts)) - low) / (high - low)).clip(0, 1)
        return np.asarray(np.rint(255 * (1 - share if row["inverted"] else share)), np.uint8)[pixels]

    def border(self, pixels: Pixels) -> tuple[slice, slice]:
        """See ``ChestFilms.border``."""
        return super().border(pixels >> 8 if pixels.dtype == np.uint16 else pixels)

    def _table(self) -> Path:
        if self.labels:
            return self.labels
        found = sorted([*self.root.glob("PADCHEST_*.csv"), *self.root.glob("PADCHEST_*.csv.gz")])
        if len(found) != 1:
            raise ValueError(
                f"{self.root}: one PADCHEST_*.csv or .csv.gz is needed here, found {len(found)}: set labels"
            )
        return found[0]

    def _images(self, frame: pd.DataFrame) -> "pd.Series[str]":
        if "ImageDir" not in frame:
            return f"{self.root}/" + frame["ImageID"]
        folders = frame["ImageDir"].fillna("")
        there = {name: f"{name}/" if name and (self.root / name).is_dir() else "" for name in folders.unique()}
        return f"{self.root}/" + folders.map(there) + frame["ImageID"]


def _inverted(frame: pd.DataFrame) -> NDArray[np.float32]:
    if "PhotometricInterpretation_DICOM" not in frame:
        return np.zeros(len(frame), np.float32)
    return np.asarray(frame["PhotometricInterpretation_DICOM"] == "MONOCHROME1", np.float32)


def _labels(frame: pd.DataFrame, path: Path) -> dict[str, NDArray[np.float32]]:
    """Frequent labels, name -> (N,) 0 or 1, NaN where the cell is blank."""
    codes, texts = pd.factorize(frame["Labels"])
    rows = frame.index[~frame["Labels"].duplicated() & frame["Labels"].notna()]  # first occurrence of each text
    parsed = [_names(text, path, int(row)) for text, row in zip(texts, rows, strict=True)]
    counts: dict[str, int] = {}
    for names, films in zip(parsed, np.bincount(codes[codes >= 0], minlength=len(texts)).tolist(), strict=True):
        for name in names:
            counts[name] = counts.get(name, 0) + films
    common = sorted(name for name, count in counts.items() if count >= RARE)
    return {name: np.append([name in names for names in parsed], np.nan)[codes].astype(np.float32) for name in common}


def _names(text: str, path: Path, row: int) -> set[str]:
    """``"['normal', ' pleural effusion']"`` -> {"normal", "pleural_effusion"}."""
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise bad_cell(path, row, "Labels", text, "a Python list of words is needed here") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise bad_cell(path, row, "Labels", text, "a Python list of words is needed here")
    return {re.sub(r"\W+", "_", name.strip().lower()) for name in names} - {""}
