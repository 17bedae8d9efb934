"""CheXpert chest radiographs (Irvin et al., 2019) with CheXmask segmentations."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.chest.chexpert_labels import FINDINGS, findings
from data_modules.chest.radiographs import ChestFilms
from data_modules.common.splits import Split, hashed_splits
from segcft.io.csv_tables import categories, extract, numbers, origins, read_columns, refuse, refuse_outside

WORDS = {
    "sex": ("Sex", {"Female": 0.0, "Male": 1.0, "Unknown": np.nan}),
    "ap": ("AP/PA", {"PA": 0.0, "AP": 1.0, "LL": np.nan, "RL": np.nan}),
}
TABLES: dict[str, Split] = {"train.csv": "train", "valid.csv": "val", "test.csv": "test"}
PATH = r"^[^/]*/(?P<id>[^/]*/(?P<patient>patient[0-9A-Za-z_]+)/.*)$"
OLDEST = 120  # years


class CheXpert(ChestFilms):
    """Frontal radiographs of CheXpert with lung and heart masks; arguments and geometry as ``ChestFilms``.

    Offers ``age`` (years; 0 is unknown), ``sex`` (0 female, 1 male), ``ap`` (1 antero-posterior, 0 postero-anterior)
    and the findings by their names in lower case with underscores (``pleural_effusion``; 0 or 1, uncertain and blank
    are unknown), as far as the tables have their columns.

    With a ``test.csv`` the three tables are the three splits. Otherwise a hash of (seed, patient) divides the patients
    of ``train.csv`` 80/10/10, and ``valid.csv`` joins the validation split. ``root`` is the folder of ``train.csv``,
    or the folder above it.
    """

    name = "chexpert"

    def files(self) -> list[Path]:
        """See ``Source.files``."""
        return [*self._tables(), self.masks]

    def films(self) -> pd.DataFrame:
        """See ``ChestFilms.films``."""
        paths, parts = self._tables(), []
        for path in paths:
            table, split = read_table(path), TABLES[path.name]
            hashed = split == "train" and paths[-1].name != "test.csv"
            parts.append(table.assign(split=hashed_splits(table["patient"], self.seed) if hashed else split))
        films = pd.concat(parts, ignore_index=True)
        return films.assign(image=f"{paths[0].parent}/" + films["id"])

    def _tables(self) -> list[Path]:
        folder = find_folder(self.root)
        return [folder / name for name in TABLES if (folder / name).is_file()]


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


def read_table(path: Path) -> pd.DataFrame:
    """Frontal films of one CheXpert table.

    Args:
        path: ``train.csv``, ``valid.csv`` or ``test.csv``.

    Returns:
        One row a film: ``id`` (the path without its first folder), ``patient``, ``origin`` (for messages) and the
        attributes as numbers with NaN for unknown.

    Raises:
        ValueError: If a cell is not what it should be; the message names file, row, field and value.
    """
    optional = ["Age", *(column for column, _ in WORDS.values()), *FINDINGS.values()]
    parts = [_films(frame, path) for frame in read_columns(path, ["Path", "Frontal/Lateral"], optional)]
    return pd.concat(parts)


def _films(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    views = frame["Frontal/Lateral"]
    refuse(frame, "Frontal/Lateral", path, ~views.isin(["Frontal", "Lateral"]).to_numpy(), "Frontal or Lateral")
    frame = frame[views == "Frontal"]
    names = extract(frame["Path"], PATH)
    refuse(frame, "Path", path, names["patient"].isna().to_numpy(), "no .../patient.../ in it")
    refuse_outside(frame, "Path", path)
    values = {"age": _ages(frame, path)} if "Age" in frame else {}
    values |= {name: categories(frame, col, path, words) for name, (col, words) in WORDS.items() if col in frame}
    values |= {name: findings(frame, column, path) for name, column in FINDINGS.items() if column in frame}
    return names.assign(origin=origins(frame, "Path", path), **{k: v.astype(np.float32) for k, v in values.items()})


def _ages(frame: pd.DataFrame, path: Path) -> NDArray[np.float64]:
    values = numbers(frame, "Age", path)
    refuse(frame, "Age", path, (values < 0) | (values > OLDEST), f"an age lies between 0 and {OLDEST}")
    return np.where(values == 0, np.nan, values)
