"""Training, validation and test splits by patient: assigned by a hash, and checked to be disjoint."""

import hashlib
import os
import re
from collections.abc import Callable, Hashable
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHOWN = 3  # of many that are wrong


def hashed_splits(patients: "pd.Series[str]", seed: int) -> "pd.Series[str]":
    """Split of every row by a hash of its patient, 80/10/10; the same on every machine and for any other rows."""
    codes, names = pd.factorize(patients.to_numpy(object))
    return pd.Series(np.array([_hashed(seed, name) for name in names], object)[codes], patients.index, dtype="str")


def refuse_shared(table: pd.DataFrame) -> None:
    """Check that no patient and no image file is in more than one split, however it is spelt.

    Patients that differ by blanks, case, leading zeros or a trailing ``.0`` count as one; so do paths, symbolic and
    hard links of one file.

    Args:
        table: Columns ``patient`` and ``split``, and where they are known ``image`` (path) and ``origin`` (file, row,
            field and value).

    Raises:
        ValueError: Naming some that are, and the first row of each in every split.
    """
    reasons = [_overlap(table, "patient", _people(table["patient"]), "patients")]
    if "image" in table:
        reasons.append(_overlap(table, "image", _mapped(table["image"], _file), "image files"))
    if found := [reason for reason in reasons if reason]:
        raise ValueError("; ".join(found))


def normalised(patient: str) -> str:
    """A patient's name without what spelling adds to it.

    >>> normalised(" 007 "), normalised("7.0"), normalised("Patient 12")
    ('7', '7', 'patient12')
    """
    name = re.sub(r"\s+", "", str(patient)).casefold()
    return re.sub(r"^0+(?=\d)", "", re.sub(r"^(\d+)\.0+$", r"\1", name))


def _people(patients: "pd.Series[str]") -> NDArray[np.object_]:
    return _mapped(patients, normalised)


def _mapped(column: "pd.Series[str]", function: Callable[[str], object]) -> NDArray[np.object_]:
    """A function of every cell, called once for each different one."""
    codes, names = pd.factorize(column.astype(str).to_numpy(object))
    values = np.empty(len(names), object)
    values[:] = [function(name) for name in names]
    return values[codes]


def _file(path: str) -> object:
    """What is equal for all names of one file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return os.path.normpath(path)
    return found.st_dev, found.st_ino


def _shared(alike: NDArray[np.object_], splits: "pd.Series[str]") -> list[object]:
    """Values that occur in more than one split."""
    pairs = pd.DataFrame({"value": alike, "split": splits.to_numpy()}).drop_duplicates()
    return list(pairs.loc[pairs["value"].duplicated(), "value"].unique())


def _overlap(table: pd.DataFrame, field: str, alike: NDArray[np.object_], what: str) -> str:
    """A sentence about values of a column in more than one split; empty if there are none."""
    shared = _shared(alike, table["split"])
    if not shared:
        return ""
    places = []
    for value in shared[:SHOWN]:
        rows = table[[other == value for other in alike]].drop_duplicates("split").sort_values("split")
        places.append(", ".join(_place(row, field) for row in rows.to_dict("records")))
    return f"{len(shared)} {what} lie in more than one split, such as {'; '.join(places)}"


def _place(row: dict[Hashable, object], field: str) -> str:
    origin = f" ({row['origin']})" if "origin" in row else ""
    return f"{row[field]} in {row['split']}{origin}"


def _hashed(seed: int, patient: str) -> Split:
    tenth = int.from_bytes(hashlib.sha256(f"{seed}/{patient}".encode()).digest()[:8]) % 10
    return "test" if tenth == 9 else "val" if tenth == 8 else "train"
