"""Training, validation and test splits by patient: assigned by a hash, and checked to be disjoint."""

import hashlib
import os
import re
from typing import Literal

import numpy as np
import pandas as pd

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def hashed_splits(patients: "pd.Series[str]", seed: int) -> "pd.Series[str]":
    """Split of every row by a hash of its patient, 80/10/10; the same on every machine and for any other rows."""
    codes, names = pd.factorize(patients.to_numpy(object))
    return pd.Series(np.array([_hashed(seed, name) for name in names], object)[codes], patients.index, dtype="str")


def shared_patients(table: pd.DataFrame) -> list[str]:
    """Patients that are in more than one split; there must be none."""
    splits = table.groupby("patient")["split"].nunique()
    return [str(name) for name in splits.index[splits > 1]]


def refuse_shared(table: pd.DataFrame) -> None:
    """Check that no patient and no image file is in more than one split, however it is spelt.

    Patients that differ by blanks, case, leading zeros or a trailing ``.0`` count as one; paths are followed through
    links and ``./``.

    Raises:
        ValueError: Naming some that are.
    """
    pairs = table[["patient", "split"]].drop_duplicates()
    _refuse(pairs["patient"], pairs["patient"].map(normalised), pairs["split"], "patients")
    if "image" in table:
        _refuse(table["image"], table["image"].map(os.path.realpath), table["split"], "image files")


def normalised(patient: str) -> str:
    """A patient's name without what spelling adds to it.

    >>> normalised(" 007 "), normalised("7.0"), normalised("Patient 12")
    ('7', '7', 'patient12')
    """
    name = re.sub(r"\s+", "", str(patient)).casefold()
    return re.sub(r"^0+(?=\d)", "", re.sub(r"^(\d+)\.0+$", r"\1", name))


def _refuse(spelt: "pd.Series[str]", alike: "pd.Series[str]", splits: "pd.Series[str]", what: str) -> None:
    several = splits.groupby(alike).nunique()
    shared = several.index[several > 1]
    if len(shared):
        places = [sorted(set(zip(spelt[alike == name], splits[alike == name], strict=True))) for name in shared[:3]]
        shown = "; ".join(", ".join(f"{name} in {split}" for name, split in each[:4]) for each in places)
        raise ValueError(f"{len(shared)} {what} lie in more than one split, such as {shown}")


def _hashed(seed: int, patient: str) -> Split:
    tenth = int.from_bytes(hashlib.sha256(f"{seed}/{patient}".encode()).digest()[:8]) % 10
    return "test" if tenth == 9 else "val" if tenth == 8 else "train"
