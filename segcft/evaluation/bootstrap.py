"""Intervals without assumptions: everything reported is a function of column means, and rows are resampled.

A paired bootstrap: one set of resamples serves every method and every metric, so the interval of a difference between
two methods knows that both answered for the same subjects.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Means = Mapping[str, Array]  # column -> its mean, one of every resample (R,)
Metric = Callable[[Means], Array]


class Estimate(NamedTuple):
    """A number and its 95 % interval (percentiles of the bootstrap); NaN where it is not defined."""

    value: float
    low: float
    high: float


def resamples(levels: Sequence[npt.ArrayLike], count: int = 2000) -> Array:
    """How often each row appears in each bootstrap resample; the first one is the data themselves.

    With several factors their levels are drawn independently and a row counts by the product of its levels' counts
    (Owen, 2007, "The pigeonhole bootstrap", doi:10.1214/07-AOAS122): seeds that share subjects are crossed with them.

    Args:
        levels: Level of every row by factor, N each: ``[subjects]``, or ``[seeds, subjects]``.
        count: Number of resamples.

    Returns:
        (count + 1, N) weights.
    """
    generator = np.random.default_rng(0)
    weights: Array = np.ones((count + 1, len(np.asarray(levels[0]))))
    for factor in levels:
        names, place = np.unique(np.asarray(factor), return_inverse=True)
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
        weights *= np.concatenate([np.ones((1, len(names))), drawn])[:, place]
    return weights


def means(columns: Mapping[str, npt.ArrayLike], weights: Array) -> dict[str, Array]:
    """Weighted mean of every column (N,), one a resample (R,); NaN entries do not count."""
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1)  # (N, columns)
    known = np.isfinite(values)
    total, counted = weights @ np.where(known, values, 0.0), weights @ known.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(counted > 0, total / counted, np.nan)
    return dict(zip(columns, found.T, strict=True))


def estimate(values: Array) -> Estimate:
    """Value of the data, (R,) first, and the interval of the resamples after it."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(drawn):
        return Estimate(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


def mean(column: str) -> Metric:
    """The mean of a column."""
    return lambda found: found.get(column, _nothing(found))


def ratio(above: str, below: str) -> Metric:
    """The mean of one column over that of another."""
    return quotient(mean(above), mean(below))


def quotient(above: Metric, below: Metric) -> Metric:
    """One metric over another; NaN where the other is 0."""

    def of(found: Means) -> Array:
        bottom = below(found)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(bottom != 0, above(found) / bottom, np.nan)

    return of


def largest(prefix: str) -> Metric:
    """The mean that is furthest from 0, with its sign, among columns that start with ``prefix``; 0 if there is none."""

    def of(found: Means) -> Array:
        every = np.stack([value for name, value in found.items() if name.startswith(prefix)] or [_nothing(found)])
        size = np.where(np.isfinite(every), np.abs(every), -1.0)
        chosen = np.take_along_axis(every, size.argmax(0)[None], 0)[0]
        return np.where(np.isfinite(chosen), chosen, 0.0)

    return of


def _nothing(found: Means) -> Array:
    return np.full_like(next(iter(found.values())), np.nan)
