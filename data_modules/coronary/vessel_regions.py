"""Sizes of structures in the whole and in the thirds of a straightened vessel."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REGIONS = ["proximal", "mid", "distal"]


def region_weights(rows: int) -> NDArray[np.float64]:
    """Fraction of each of ``rows`` rows in each third of the vessel, (3, rows); the fractions of a row sum to one.

    >>> region_weights(4).round(2).tolist()
    [[1.0, 0.33, 0.0, 0.0], [0.0, 0.67, 0.67, 0.0], [0.0, 0.0, 0.33, 1.0]]
    """
    first = np.arange(rows) * len(REGIONS) / rows  # a row's upper edge, in thirds
    third = np.arange(len(REGIONS))[:, None]
    overlap = np.minimum(first + len(REGIONS) / rows, third + 1) - np.maximum(first, third)
    weights: NDArray[np.float64] = overlap.clip(0) * rows / len(REGIONS)
    return weights


def measured(
    mask: NDArray[np.bool_ | np.float32], structures: Sequence[str], spacing: Sequence[float], regions: bool = True
) -> dict[str, float]:
    """Area (mm^2) or volume (mm^3) of every structure, in the whole vessel and in each third.

    Args:
        mask: (K, *S), binary or fractional; the first axis is along the vessel.
        structures: Names of the K channels.
        spacing: Pixel size along each axis of S, mm.
        regions: Whether to measure the thirds.

    Returns:
        ``<structure>_area`` or ``..._volume``, then ``proximal_<structure>_area`` and so on.
    """
    kind = "area" if len(spacing) == 2 else "volume"
    rows = mask.reshape(*mask.shape[:2], -1).sum(axis=2) * math.prod(spacing)  # (K, L)
    sizes = {f"{name}_{kind}": float(row.sum()) for name, row in zip(structures, rows, strict=True)}
    if regions:
        thirds = rows @ region_weights(mask.shape[1]).T  # (K, 3)
        for name, values in zip(structures, thirds, strict=True):
            sizes |= {f"{region}_{name}_{kind}": float(v) for region, v in zip(REGIONS, values, strict=True)}
    return sizes
