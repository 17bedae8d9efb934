"""Training, validation and test splits by patient: assigned by a hash, and checked to be disjoint."""

import hashlib
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
    """Check that no patient is in more than one split.

    Raises:
        ValueError: If one is.
    """
    pairs = table[["patient", "split"]].drop_duplicates()
    shared = pairs.loc[pairs["patient"].duplicated(keep=False), "patient"].unique()
    if len(shared):
        places = {name: sorted(pairs.loc[pairs["patient"] == name, "split"]) for name in shared[:3]}
        raise ValueError(f"{len(shared)} patients lie in more than one split, such as {places}")


def _hashed(seed: int, patient: str) -> Split:
    tenth = int.from_bytes(hashlib.sha256(f"{seed}/{patient}".encode()).digest()[:8]) % 10
    return "test" if tenth == 9 else "val" if tenth == 8 else "train"
