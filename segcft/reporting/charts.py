"""Interval plots and scatter plots as SVG that follows the page's colours."""

import math
from collections.abc import Iterable, Mapping
from html import escape

import pandas as pd

from segcft.core.formatting import number
from segcft.evaluation.bootstrap import Estimate
from segcft.reporting.html import MINUS, label, plain
from segcft.reporting.load_results import TRUTH, UNCHANGED
from segcft.reporting.tables import NOTHING, SHOWN

LABELS, PANEL, GAP, ROW, HEAD, FOOT = 180, 200, 34, 22, 26, 26  # pixels of the interval plots
SIDE, LEFT, BOTTOM, TOP = 190, 40, 22, 6  # of a scatter plot
MOST = 300  # points of a scatter plot
MOST_LETTERS = 25  # of a name beside the interval plots
PLOTTED = ("slope", "leakage_mean", "truth_ratio", "old_edge", "outside")


def forest(
    values: Mapping[str, Mapping[str, Estimate]], score: str, best: str | None, alarmed: set[str], ranked: bool = True
) -> str:
    """Every method's value and interval, a panel a metric, ranked by the score; hollow marks are references."""
    names = [score, *(name for name in PLOTTED if _finite(values, name))][:5]
    titles = {column.metric: column.title for column in SHOWN} | {"outside": "change outside"}
    order = [name for name in values if name not in (UNCHANGED, TRUTH)]
    if ranked:
        order.sort(key=lambda name: values[name].get(score, NOTHING).value)
    rows = order + [name for name in (UNCHANGED, TRUTH) if name in values]
    height, width = HEAD + ROW * len(rows) + FOOT, LABELS + PANEL * len(names)
    parts = []
    for place, name in enumerate(rows):
        y = HEAD + ROW * (place + 0.5)
        kind = "best" if name == best else "alarm" if name in alarmed else ""
        parts.append(f'<text class="row {kind}" x="{LABELS - 14}" y="{y + 4:.0f}">{_cut(name)}</text>')
    for place, metric in enumerate(names):
        found = {name: values[name].get(metric, NOTHING) for name in rows}
        inner = _panel(found, titles[metric], best, alarmed, height)
        parts.append(f'<g transform="translate({LABELS + PANEL * place},0)">{inner}</g>')
    return (
        f'<div class="wide"><svg class="forest" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="values and intervals">{"".join(parts)}</svg></div>'
    )


def _panel(found: Mapping[str, Estimate], title: str, best: str | None, alarmed: set[str], height: int) -> str:
    low, high = _range(found.values())
    inner = PANEL - GAP

    def x(value: float) -> float:
        return inner * (value - low) / (high - low)

    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{HEAD}" y2="{height - FOOT}"/>')
        text = number(tick).replace("-", MINUS)
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{height - FOOT + 15}">{text}</text>')
    for place, (name, value) in enumerate(found.items()):
        y = HEAD + ROW * (place + 0.5)
        if not math.isfinite(value.value):
            continue
        kind = "reference" if name in (UNCHANGED, TRUTH) else "best" if name == best else ""
        kind = "alarm" if name in alarmed else kind
        if math.isfinite(value.low):
            parts.append(
                f'<line class="bar {kind}" x1="{x(value.low):.1f}" x2="{x(value.high):.1f}" y1="{y}" y2="{y}"/>'
            )
        told = f"{label(name)}: {number(value.value)} ({number(value.low)} to {number(value.high)})"
        parts.append(
            f'<circle class="dot {kind}" cx="{x(value.value):.1f}" cy="{y}" r="4"><title>{told}</title></circle>'
        )
    return "".join(parts)


def _range(found: Iterable[Estimate]) -> tuple[float, float]:
    every = [value for one in found for value in one if math.isfinite(value)]
    low, high = min([0.0, *every]), max([0.0, *every])
    space = 0.03 * (high - low) or 0.5
    return (low - space if low < 0 else low), high + space


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between two others.

    >>> ticks(0, 22.1), ticks(-0.1, 1.02)
    ([0.0, 5.0, 10.0, 15.0, 20.0], [0.0, 0.5, 1.0])
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.9)
    first = math.ceil(low / step - 1e-9)
    found = []
    while first * step <= high:
        found.append(round(first * step, 10))
        first += 1
    return found


def scatter(rows: pd.DataFrame, title: str, unit: str, ends: tuple[float, float], below: str) -> str:
    """Target against measured value of one method and question; the line is where they are equal."""
    size, (low, high) = SIDE - LEFT - 8, ends

    def at(value: float) -> float:
        return size * (value - low) / (high - low)

    few = rows.iloc[:: max(1, math.ceil(len(rows) / MOST))]
    dots = []
    for subject, target, measured in zip(few["subject"], few["target"], few["measured"], strict=True):
        if math.isfinite(target) and math.isfinite(measured):
            told = f"subject {subject}: asked {number(target)}, measured {number(measured)} {escape(unit)}"
            y = min(max(at(measured), 0), size)
            dots.append(f'<circle cx="{at(target):.1f}" cy="{size - y:.1f}" r="2"><title>{told}</title></circle>')
    marks = "".join(
        f'<text class="tick" x="{at(t):.1f}" y="{size + 14}">{_short(t)}</text>'
        f'<text class="tick left" x="-5" y="{size - at(t) + 3:.1f}">{_short(t)}</text>'
        f'<path class="grid" d="M{at(t):.1f} 0V{size}M0 {size - at(t):.1f}H{size}"/>'
        for t in ticks(low, high, 3)
    )
    return (
        f'<figure class="scatter"><figcaption>{title}<small>{below}</small></figcaption>'
        f'<svg viewBox="0 0 {SIDE} {size + TOP + BOTTOM}"><g transform="translate({LEFT},{TOP})">{marks}'
        f'<path class="equal" d="M0 {size}L{size} 0"/>{"".join(dots)}</g></svg></figure>'
    )


def _short(value: float) -> str:
    """Thousands as k, so that axes stay narrow.

    >>> _short(15000), _short(0.25), _short(2500)
    ('15k', '0.25', '2.5k')
    """
    return f"{number(value / 1000)}k" if abs(value) >= 1000 else number(value)


def _cut(name: str) -> str:
    """A name that fits beside the panels; all of it while the pointer rests on it."""
    shown = plain(name)
    return (
        f"{escape(shown[: MOST_LETTERS - 1])}…<title>{label(name)}</title>"
        if len(shown) > MOST_LETTERS
        else label(name)
    )


def _finite(values: Mapping[str, Mapping[str, Estimate]], name: str) -> bool:
    return any(math.isfinite(v.get(name, NOTHING).value) for m, v in values.items() if m not in (UNCHANGED, TRUTH))
