"""From rows to numbers with intervals: what each metric is, the same for one seed and for many."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from segcft.evaluation.bootstrap import (
    Array,
    Estimate,
    Means,
    Metric,
    estimate,
    largest,
    mean,
    means,
    quotient,
    ratio,
    resamples,
)

Estimates = dict[str, dict[str, dict[str, Estimate]]]  # method -> do -> metric
Moments = Callable[[pd.DataFrame], dict[str, Array]]


class Column(NamedTuple):
    """One metric in the tables.

    Attributes:
        title: Of its column.
        style: How a number is written; in three digits if it is empty.
        metric: Of the means of ``moments``.
    """

    title: str
    style: str
    metric: Metric


def amplification(found: Means) -> dict[str, Array]:
    """Slope of every other variable's change on the requested one, both in training deviations, by least squares.

    Leakage that follows the request: 0 where changes of other variables have nothing to do with what was asked.
    """
    spread = found["asked_sd_squared"] - found["asked_sd"] ** 2
    slopes = {}
    for key, value in found.items():
        if key.startswith("shift_"):
            name = key.removeprefix("shift_")
            with np.errstate(invalid="ignore", divide="ignore"):
                together = found[f"together_{name}"] - value * found["asked_sd"]
                slopes[name] = np.where(spread > 0, together / spread, np.nan)
    return slopes


def _amplification(found: Means) -> Array:
    return largest("")(amplification(found) or {"": np.zeros_like(found["asked_sd"])})


def _gap(found: Means) -> Array:
    return found["judged_guided"] - found["guided"]


def _leakage_mean(found: Means) -> Array:
    every = [value for name, value in found.items() if name.startswith("moved_") and np.isfinite(value[0])]
    return np.mean(every, axis=0) if every else np.zeros_like(found["outside"])


TEXT = ("method", "refinement", "do")  # columns that are no numbers
COLUMNS = {
    "mape": Column("MAPE %", "{:.1f}", mean("error_percent")),
    "mae": Column("MAE", "", mean("error")),
    "mae_sd": Column("MAE % of SD", "{:.1f}", mean("error_sd")),
    "slope": Column("slope", "{:.2f}", ratio("achieved", "requested")),
    "guide": Column("by its guide %", "{:.1f}", mean("guided")),
    "gap": Column("gap", "{:.1f}", _gap),
    "leakage": Column("leakage %", "{:.2f}", largest("moved_")),
    "leakage_mean": Column("mean leakage %", "{:.2f}", _leakage_mean),
    "spill": Column("spill", "{:.2f}", quotient(largest("aside_"), mean("purpose"))),
    "amplification": Column("amplification", "{:.3f}", _amplification),
    "outside": Column("change outside", "{:.4f}", mean("outside")),
    "change": Column("change", "{:.4f}", mean("change")),
    "in_region": Column("change in region", "{:.2f}", ratio("within", "change")),
    "reversibility": Column("reversibility", "{:.4f}", mean("reversibility")),
    "composition": Column("composition", "{:.4f}", mean("composition")),
    "reconstruction": Column("reconstruction", "{:.4f}", mean("reconstruction")),
    "truth_mae": Column("error to truth", "{:.4f}", mean("truth_mae")),
    "truth_mae_neighbourhood": Column("in the neighbourhood", "{:.4f}", mean("truth_mae_neighbourhood")),
    "truth_ratio": Column("truth ratio", "{:.2f}", ratio("truth_mae", "truth_mae_unchanged")),
    "truth_ratio_neighbourhood": Column(
        "near", "{:.2f}", ratio("truth_mae_neighbourhood", "truth_mae_neighbourhood_unchanged")
    ),
    "nearer": Column("nearer than unchanged", "{:.2f}", mean("nearer")),
    "mask_ratio": Column("mask ratio", "{:.2f}", ratio("mask_error", "mask_error_unchanged")),
    "truth_psnr": Column("PSNR dB", "{:.1f}", mean("truth_psnr")),
    "truth_ssim": Column("SSIM", "{:.3f}", mean("truth_ssim")),
    "old_edge": Column("old edge", "{:.2f}", ratio("edge_after", "edge_before")),
}
NATIVE_COLUMNS = {  # of the final images, see ``native_resolution``
    "old_edge": Column("old edge", "{:.2f}", ratio("old_edge", "old_edge_before")),
    "new_edge": Column("new edge", "{:.2f}", ratio("new_edge", "new_edge_there")),
    "detail": Column("old detail", "{:.2f}", mean("detail")),
    "energy": Column("energy", "{:.2f}", ratio("energy", "energy_before")),
    "energy_changed": Column("where changed", "{:.2f}", ratio("energy_changed", "energy_changed_before")),
    "folded": Column("folded %", "{:.3f}", mean("folded")),
    "strain": Column("strain", "{:.3f}", mean("strain")),
    "painted": Column("painted %", "{:.1f}", ratio("painted", "altered")),
    "truth_ratio": Column("truth ratio", "{:.2f}", ratio("error", "error_unchanged")),
    "truth_near": Column("near", "{:.2f}", ratio("error_near", "error_near_unchanged")),
    "truth_smooth": Column("blurred", "{:.2f}", ratio("smooth", "smooth_unchanged")),
    "truth_smooth_near": Column("blurred, near", "{:.2f}", ratio("smooth_near", "smooth_near_unchanged")),
    "edge_error": Column("edge error", "{:.2f}", ratio("edge_error", "edge_error_unchanged")),
}
PAINTED = "_painted"  # ending of the row of an answer that paints the enlarged change instead of moving pixels


def moments(frame: pd.DataFrame) -> dict[str, Array]:
    """Columns of ``rows`` of one question, and the products whose means the metrics need, (N,) each."""
    columns = {str(key): frame[key].to_numpy(np.float64) for key in frame.columns if key not in TEXT}
    requested = columns["target"] - columns["factual"]
    moved = columns["measured"] - columns["before"]
    columns["achieved"] = moved * requested
    columns["requested"] = requested**2
    with np.errstate(invalid="ignore", divide="ignore"):
        columns["purpose"] = np.abs(moved * columns["asked_sd"] / requested)
    columns["asked_sd_squared"] = columns["asked_sd"] ** 2
    columns["judged_guided"] = np.where(np.isfinite(columns["guided"]), columns["judged"], np.nan)
    for key in [name for name in columns if name.startswith(("change_", "shift_"))]:
        name = key.split("_", 1)[1]
        if key.startswith("change_"):
            columns[f"moved_{name}"] = np.abs(columns[key])
        else:
            columns[f"together_{name}"] = columns[key] * columns["asked_sd"]
            columns[f"aside_{name}"] = np.abs(columns[key])
    return columns


def summarise(
    frame: pd.DataFrame,
    factors: Sequence[str] = ("subject",),
    count: int = 2000,
    columns: Mapping[str, Column] = COLUMNS,
    prepare: Moments = moments,
) -> dict[str, Any]:
    """Every metric with its interval.

    Args:
        frame: ``rows`` of all methods, with a column ``method``; every method answers the same rows in the same order.
        factors: Columns that are resampled: subjects, or seeds and subjects.
        count: Number of resamples.
        columns: The metrics.
        prepare: Rows of one method and question -> columns whose means they need.

    Returns:
        ``metrics``: method -> do -> metric -> estimate; ``differences``: the same, of each method minus the last one.
    """
    drawn = drawn_metrics(frame, factors, count, columns, prepare)
    differences = {}
    for method, found in drawn.items():
        differences[method] = {do: _less(values, drawn[list(drawn)[-1]][do]) for do, values in found.items()}
    differences.pop(list(drawn)[-1])
    estimates = {m: {do: _estimates(values) for do, values in found.items()} for m, found in drawn.items()}
    return {"metrics": estimates, "differences": differences}


def drawn_metrics(
    frame: pd.DataFrame,
    factors: Sequence[str],
    count: int = 2000,
    columns: Mapping[str, Column] = COLUMNS,
    prepare: Moments = moments,
) -> dict[str, dict[str, dict[str, Array]]]:
    """Method -> do -> metric -> its value in every resample, the data's own first; the same for all methods."""
    drawn: dict[str, dict[str, dict[str, Array]]] = {}
    weights: dict[bytes, Array] = {}
    for (method, do), part in frame.groupby(["method", "do"], sort=False):
        levels = [part[factor].to_numpy() for factor in factors]
        key = b"".join(level.tobytes() for level in levels)
        if key not in weights:
            weights[key] = resamples(levels, count)
        averages = means(prepare(part), weights[key])
        drawn.setdefault(str(method), {})[str(do)] = {name: column.metric(averages) for name, column in columns.items()}
    return drawn


def _estimates(values: dict[str, Array]) -> dict[str, Estimate]:
    return {name: estimate(drawn) for name, drawn in values.items()}


def _less(one: dict[str, Array], other: dict[str, Array]) -> dict[str, Estimate]:
    return {name: estimate(drawn - other[name]) for name, drawn in one.items()}


def off_target(part: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Rows of one method and question -> other variable -> absolute and signed change in %, and amplification."""
    averages = means(moments(part), np.ones((1, len(part))))
    slopes = amplification(averages)
    found = {}
    for name, slope in slopes.items():
        if np.isfinite(averages[f"change_{name}"][0]):
            moved, signed = averages[f"moved_{name}"], averages[f"change_{name}"]
            found[name] = {"leakage": float(moved[0]), "signed": float(signed[0]), "amplification": float(slope[0])}
    return found


def health(metrics: Estimates, floor: dict[str, float], threshold: float) -> dict[str, Any]:
    """Does a method please its guide more than an independent judge?

    The evaluator's error may exceed the guide's by the evaluator's own, and by ``threshold``.

    Args:
        metrics: Of ``summarise``.
        floor: The evaluator's own error, by variable, in %.
        threshold: Points beyond the floor that are borne.

    Returns:
        ``threshold``, and ``warnings``, a line each.
    """
    warnings = []
    for method, found in metrics.items():
        for do, values in found.items():
            gap, bound = values["gap"].value, floor[do] + threshold
            if gap > bound:  # never of NaN
                guide = values["guide"].value
                warnings.append(
                    f"{method}, do({do}): {gap + guide:.1f} % off by the evaluator, {guide:.1f} % by its own guide; "
                    f"a gap of {gap:.1f} exceeds {bound:.1f} (floor + {threshold:g}): the guide is being gamed"
                )
    return {"threshold": threshold, "warnings": warnings}
