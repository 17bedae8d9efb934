"""Results as files: metrics.json for programs, table.csv for spreadsheets, table.md for people."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from segcft.core.atomic_files import staged, write_text
from segcft.core.formatting import NO_BREAK, number
from segcft.evaluation.bootstrap import Estimate
from segcft.evaluation.summary import COLUMNS, NATIVE_COLUMNS, PAINTED, Estimates

REALISM = {"frechet": ("Fréchet", "{:.2f}"), "kernel": ("kernel", "{:.3f}")}
TABLES = {
    "Does it do what was asked?": ("mape", "mae", "mae_sd", "slope", "guide", "gap"),
    "Does the rest stay?": (
        *("leakage", "leakage_mean", "spill", "amplification", "outside", "change", "in_region", "old_edge"),
        *("reversibility", "composition", "reconstruction"),
    ),
    "Is it true, and does it look real?": (
        *("truth_ratio", "truth_ratio_neighbourhood", "nearer", "mask_ratio", "truth_psnr", "truth_ssim"),
        *("frechet", "kernel"),
    ),
}
NATIVE_TABLES = {
    "Did anatomy move, or is the old outline still there?": (
        *("old_edge", "new_edge", "detail", "energy", "energy_changed", "folded", "strain", "painted"),
    ),
    "Is it true?": ("truth_ratio", "truth_near", "truth_smooth", "truth_smooth_near", "edge_error"),
    "Can it be told from an untouched film?": ("auc", "auc_blurred"),
}
DETECTION = {"auc": ("AUC", "{:.2f}"), "auc_blurred": ("AUC, blurred", "{:.2f}")}
GAP = 4  # pixels between pictures
LINE = 14  # pixels of a line of text
DRAWN = str.maketrans({NO_BREAK: " ", "²": "^2", "³": "^3"})  # Pillow's own font lacks these


def table(metrics: Estimates, refinement: Mapping[str, str], floor: Mapping[str, float]) -> pd.DataFrame:
    """One row per method and question; of each metric the value, and ``_low`` and ``_high`` of its interval."""
    rows = []
    for method, found in metrics.items():
        for do, values in found.items():
            row: dict[str, Any] = {"method": method, "refinement": refinement.get(method, ""), "do": do}
            for name, estimate in values.items():
                row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            rows.append(row | {"evaluator_floor": floor[do]})
    return pd.DataFrame(rows)


def markdown(
    metrics: Estimates,
    refinement: Mapping[str, str],
    floor: Mapping[str, float],
    warnings: list[str],
    differences: Estimates | None = None,
) -> str:
    """The tables for people, 95 % intervals in brackets; warnings first."""
    parts = ["".join(f"🔴 **WARNING: {line}**\n\n" for line in warnings)]
    for place, (title, names) in enumerate(TABLES.items()):
        parts += ["" if not place else f"\n**{title}**\n\n", _grid(metrics, refinement, names, {} if place else floor)]
    if differences:
        names = ("mape", "mae_sd", "slope", "leakage", "spill", "outside", "truth_ratio", "mask_ratio", "old_edge")
        last = list(metrics)[-1]
        parts += [f"\n**Paired differences, each minus {last}**\n\n", _grid(differences, refinement, names, {})]
    return "".join(parts)


def native_markdown(size: int, metrics: Estimates, differences: Estimates, refinement: Mapping[str, str]) -> str:
    """What was measured on the final images; rows and columns that hold nothing are left out."""
    refined = dict(refinement) | {f"{name}{PAINTED}": text for name, text in refinement.items()}
    parts = [f"Images of {size} pixels, as they are handed out; intervals are 95 %.\n"]
    for title, names in NATIVE_TABLES.items():
        known = {
            method: {do: v for do, v in found.items() if any(n in v and math.isfinite(v[n].value) for n in names)}
            for method, found in metrics.items()
        }
        if any(known.values()):
            parts.append(f"\n**{title}**\n\n" + _grid(known, refined, names, {}))
    last = list(differences) and f"\n**Paired differences, each minus {list(refinement)[-1]}**\n\n"
    names = ("old_edge", "new_edge", "detail", "energy_changed", "truth_near", "truth_smooth_near", "edge_error")
    return "".join([*parts, *([last + _grid(differences, refined, names, {})] if last else [])])


def cell(estimate: Estimate, style: str) -> str:
    """``1.9 (1.7-2.2)``; no brackets without an interval, a dash without a value."""
    if not math.isfinite(estimate.value):
        return "-"
    value, low, high = (_signless(style.format(each) if style else number(each)) for each in estimate)
    if not math.isfinite(estimate.low) or value == low == high:
        return value
    return f"{value} ({low} to {high})" if low.startswith("-") else f"{value} ({low}-{high})"


def _signless(text: str) -> str:
    return text.removeprefix("-") if not text.strip("-0.,%") else text


def _style(name: str) -> tuple[str, str]:
    own = REALISM | DETECTION | {key: column[:2] for key, column in (NATIVE_COLUMNS | COLUMNS).items()}
    return own[name]


def _grid(metrics: Estimates, refinement: Mapping[str, str], names: tuple[str, ...], floor: Mapping[str, float]) -> str:
    """Columns that hold nothing are left out."""
    every = [values for found in metrics.values() for values in found.values()]
    shown = [name for name in names if any(name in v and math.isfinite(v[name].value) for v in every)]
    heads = ["method", "refinement", "do", *(_style(name)[0] for name in shown), *(["floor %"] if floor else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    nothing = Estimate(math.nan, math.nan, math.nan)
    for method, found in metrics.items():
        for do, values in found.items():
            cells = [
                method,
                refinement.get(method, ""),
                do,
                *(cell(values.get(name, nothing), _style(name)[1]) for name in shown),
            ]
            lines.append("| " + " | ".join([*cells, *([f"{floor[do]:.1f}"] if floor else [])]) + " |")
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    """What JSON can hold: estimates as ``{value, low, high}``, numbers that are not finite as null."""
    if isinstance(value, Estimate):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(plain(content), indent=2) + "\n")


def write_figure(path: Path, figure: Any, dpi: int = 110) -> None:
    """Write a PNG whole or not at all."""
    with staged(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def write_mosaic(path: Path, pictures: list[dict[str, Any]]) -> None:
    """Rows of pictures at full size, pixel by pixel, each under its name, as a grey PNG; whole or not at all.

    Args:
        path: Of the file.
        pictures: Of ``native_resolution.rows``: ``text`` and ``tiles``, name -> (H, W) uint8.
    """
    rows = [_strip(each["text"], each["tiles"]) for each in pictures]
    wide = max(row.width for row in rows)
    whole = Image.new("L", (wide, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    with staged(path) as temporary:
        whole.save(temporary, format="PNG")


def _strip(text: str, tiles: Mapping[str, Any]) -> Image.Image:
    high, wide = np.max([tile.shape for tile in tiles.values()], axis=0).tolist()
    strip = Image.new("L", (len(tiles) * (wide + GAP), high + 2 * LINE + GAP))
    pen = ImageDraw.Draw(strip)
    pen.text((2, 1), text.translate(DRAWN), fill=255)
    for place, (name, tile) in enumerate(tiles.items()):
        pen.text((place * (wide + GAP) + 2, LINE), name, fill=255)
        strip.paste(Image.fromarray(tile), (place * (wide + GAP), 2 * LINE))
    return strip
