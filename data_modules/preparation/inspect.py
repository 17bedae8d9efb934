"""``segcft inspect``: a one-page summary of a prepared data set."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_modules.common.splits import refuse_shared
from data_modules.preparation.cache import IMAGES, MASKS, TABLE, Cache, open_cache
from data_modules.preparation.statistics import attributes
from segcft.core.atomic_files import digest, staged, write_text
from segcft.core.formatting import number, resolving

COLOURS = ("#e8553d", "#3d8be8", "#f2c14e", "#58b368", "#b05cc6", "#40bfc1", "#9a6b4f", "#888888")
SPLIT_COLOURS = {"train": "#3d6fb6", "val": "#e08a2e", "test": "#4a9d5b"}
COLUMNS = 6


def inspect(
    cache: str, out: str | None = None, images: int = 18, seed: int = 0, verify: bool = False
) -> dict[str, Any]:
    """Draw a contact sheet, histograms, correlations, counts and missing values of a prepared data set.

    Args:
        cache: Folder written by ``segcft prepare``.
        out: Folder for inspection.png and inspection.md; None for ``results/NAME-OF-THE-CACHE``.
        images: Number of subjects on the contact sheet, sampled evenly from the splits.
        seed: Seed of that sample.
        verify: Read all files and compare their SHA-256 with the recorded one.

    Returns:
        Counts, patients and missing values.

    Raises:
        ValueError: If the cache is missing, partial or damaged, or a patient or image is in two splits.
    """
    opened = open_cache(Path(cache).expanduser())
    if verify:
        _verify(opened)
    refuse_shared(opened.table)
    found = {name: opened.facts[name] for name in ("counts", "patients", "quarantined", "variables", "intensity")}
    target = Path(out).expanduser() if out else Path("results") / opened.folder.name
    target.mkdir(parents=True, exist_ok=True)
    with staged(target / "inspection.png") as path:
        page(opened, images, seed).savefig(path, format="png", dpi=100)
    write_text(target / "inspection.md", report(opened))
    print(report(opened))
    print(f"page: {target / 'inspection.png'}")
    return found


def report(cache: Cache) -> str:
    """Counts and variables as Markdown."""
    facts, plan = cache.facts, cache.facts["plan"]
    frame = " x ".join(map(str, plan["frame"]))
    lines = [
        f"# {plan['source']}: {cache.folder.name}",
        "",
        f"{len(cache.table)} subjects, {frame}, {plan['dtype']}, structures {', '.join(plan['structures'])}; "
        f"{facts['quarantined']} could not be read.",
        f"None of {cache.table['patient'].nunique()} patients is in more than one split.",
        "",
        "| split | subjects | patients |",
        "|---|---|---|",
        *(f"| {name} | {count} | {facts['patients'][name]} |" for name, count in facts["counts"].items()),
        "",
        "| variable | known | missing | mean | deviation | least | most |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in facts["variables"].items():
        digits = resolving((found["max"] or 0.0) - (found["min"] or 0.0))
        numbers = ("" if found[k] is None else number(found[k], digits) for k in ("mean", "std", "min", "max"))
        lines.append(f"| {name} | {found['known']} | {found['missing']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def page(cache: Cache, images: int = 18, seed: int = 0) -> Any:
    """The page as a matplotlib figure, drawn without a display."""
    from matplotlib.figure import Figure  # lazily: slow to import

    names = [name for name in attributes(cache.table) if cache.table[name].notna().any()]
    rows = math.ceil(images / COLUMNS), math.ceil(max(1, len(names)) / COLUMNS)
    heights = (2.0 * rows[0], 1.5 * rows[1], 0.32 * len(names) + 1.9)
    figure = Figure(figsize=(13, sum(heights) + 0.9), layout="constrained")
    figure.suptitle(_title(cache), fontsize=11)
    parts: Any = figure.subfigures(3, 1, height_ratios=heights)
    sheet, histograms, matrix = parts
    _contact_sheet(sheet, cache, images, seed)
    _histograms(histograms, cache, names, rows[1])
    _correlations(matrix, cache.table, names)
    return figure


def _title(cache: Cache) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in cache.facts["counts"].items())
    patients = cache.table["patient"].nunique()
    return (
        f"{cache.facts['plan']['source']} ({cache.folder.name}): {counts}; {patients} patients, none in more than one "
        f"split; {cache.facts['quarantined']} unreadable"
    )


def _contact_sheet(figure: Any, cache: Cache, count: int, seed: int) -> None:
    """Draw images with the contours of their structures; of volumes the middle slice."""
    axes = figure.subplots(math.ceil(count / COLUMNS), COLUMNS, squeeze=False).ravel()
    structures, (low, high) = cache.facts["plan"]["structures"], cache.facts["plan"]["window"]
    chosen = cache.table.sample(min(count, len(cache.table)), random_state=seed).sort_values(["split", "row"])
    for axis, (_, subject) in zip(axes, chosen.iterrows(), strict=False):
        row = np.array([subject["row"]])
        axis.imshow(_slice(cache.images[row][0, 0]), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        for mask, colour in zip(cache.read_masks(row, structures)[0], COLOURS, strict=False):
            if _slice(mask).any():
                axis.contour(_slice(mask), levels=[0.5], colors=[colour], linewidths=0.9)
        axis.set_title(
            f"{subject['split']}: {str(subject['id'])[-28:]}", fontsize=6, color=SPLIT_COLOURS[subject["split"]]
        )
    for axis in axes:
        axis.set_axis_off()
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour) for colour, _ in zip(COLOURS, structures, strict=False)]
    figure.legend(lines, structures, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=8)


def _histograms(figure: Any, cache: Cache, names: list[str], rows: int) -> None:
    """Draw a relative histogram of every variable, one line per split."""
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        known = cache.table[name].dropna().astype(float)
        bins = _bins(known)
        for split, part in cache.table.groupby("split"):
            values = part[name].dropna().astype(float)
            weights = np.full(len(values), 1 / max(1, len(values)))
            axis.hist(values, bins, weights=weights, histtype="step", color=SPLIT_COLOURS[str(split)], label=str(split))
        missing = int(cache.table[name].isna().sum())
        axis.set_title(name + (f" ({missing} missing)" if missing else ""), fontsize=7)
        axis.tick_params(labelsize=6)
        axis.set_yticks([])
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    if names:
        axes[0].legend(fontsize=6, frameon=False)


def _bins(values: "pd.Series[float]") -> Any:
    """Bin edges: few for few distinct values, a single bin around a constant."""
    low, high, different = values.min(), values.max(), values.nunique()
    if different == 1:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, min(25, max(3, different + 1)))


def _correlations(figure: Any, table: pd.DataFrame, names: list[str]) -> None:
    """Draw the Pearson correlations of the training split and the share of missing values."""
    train = table.loc[table["split"] == "train", names].astype(float)
    matrix, missing = figure.subplots(1, 2, width_ratios=(3, 2))
    values = train.corr().to_numpy()
    drawn = matrix.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value) and len(names) <= 16:
            colour = "white" if abs(value) > 0.6 else "black"
            matrix.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    places = np.arange(len(names))
    matrix.set_xticks(places, names, rotation=45, ha="right", fontsize=6)
    matrix.set_yticks(places, names, fontsize=6)
    matrix.set_title("correlation, training split", fontsize=8)
    figure.colorbar(drawn, ax=matrix, shrink=0.8)
    missing.barh(places, 100 * table[names].isna().mean().to_numpy(), color="#999999")
    missing.set_yticks(places, names, fontsize=6)
    missing.invert_yaxis()
    missing.set_xlim(0, 100)
    missing.set_title("missing, %", fontsize=8)
    missing.tick_params(axis="x", labelsize=6)


def _slice(values: Any) -> Any:
    return values if values.ndim == 2 else values[values.shape[0] // 2]


def _verify(cache: Cache) -> None:
    """Compare the files' checksums with the recorded ones.

    Raises:
        ValueError: If one differs.
    """
    for name in (IMAGES, MASKS, TABLE):
        if digest(cache.folder / name) != cache.facts["sha256"][name]:
            raise ValueError(f"{cache.folder / name} is damaged: its SHA-256 is not the recorded one; prepare it again")
