"""Statistics of a prepared data set: counts, intensities and variables."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_modules.preparation.cache import IMAGES

LOOKED_AT = 1000  # number of training images used for intensities, evenly spaced
LIBRARIES = ("numpy", "pandas", "opencv-python-headless", "pillow", "pydicom", "nibabel")
PERCENTILES = (0.5, 5, 50, 95, 99.5)


def statistics(folder: Path, table: pd.DataFrame, plan: dict[str, Any]) -> dict[str, Any]:
    """Counts, intensity and variable statistics of a cache's arrays and table, as plain data."""
    splits = table.groupby("split", sort=True)
    return {
        "counts": {str(name): len(part) for name, part in splits},
        "patients": {str(name): int(part["patient"].nunique()) for name, part in splits},
        "intensity": _intensity(folder, table, plan),
        "variables": {name: describe(table[name]) for name in attributes(table)},
        "versions": {name: version(name) for name in LIBRARIES},
    }


def attributes(table: pd.DataFrame) -> list[str]:
    """Columns that can be used as variables."""
    return [str(name) for name in table.select_dtypes("number").columns if name != "row"]


def describe(values: "pd.Series[Any]") -> dict[str, float | int | None]:
    """Count, missing, mean, standard deviation and range of one column; None if all values are missing."""
    known = values.dropna().astype(float)
    numbers = {"mean": known.mean(), "std": known.std(ddof=0), "min": known.min(), "max": known.max()}
    shown = {name: float(f"{value:.6g}") if len(known) else None for name, value in numbers.items()}
    return {"known": len(known), "missing": int(values.isna().sum()), **shown}


def _intensity(folder: Path, table: pd.DataFrame, plan: dict[str, Any]) -> dict[str, Any]:
    """Mean, standard deviation and percentiles of the grey levels of training images."""
    images = np.load(folder / IMAGES, mmap_mode="r")
    rows = table.loc[table["split"] == "train", "row"].to_numpy()
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).astype(np.int64))]
    levels = np.zeros(2**16, np.int64)
    low = int(np.iinfo(plan["dtype"]).min)
    for row in rows:
        levels += np.bincount(images[row].ravel().astype(np.int64) - low, minlength=len(levels))
    share, value = levels.cumsum() / levels.sum(), np.arange(len(levels)) + low
    mean = float((levels * value).sum() / levels.sum())
    std = float(np.sqrt((levels * (value - mean) ** 2).sum() / levels.sum()))
    percentiles = {f"p{p:g}": int(value[np.searchsorted(share, p / 100)]) for p in PERCENTILES}
    return {"images": len(rows), "mean": round(mean, 4), "std": round(std, 4), **percentiles}
