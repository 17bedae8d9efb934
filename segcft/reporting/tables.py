"""The table of methods: value and interval, best of each column marked, references below."""

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import NamedTuple

from segcft.core.formatting import number
from segcft.evaluation.bootstrap import Estimate
from segcft.evaluation.result_tables import REALISM
from segcft.evaluation.summary import COLUMNS
from segcft.reporting.findings import Findings, duration
from segcft.reporting.html import DASH, MINUS, label
from segcft.reporting.load_results import TRUTH, UNCHANGED

NOTHING = Estimate(math.nan, math.nan, math.nan)
UNRANKED = ("behind", "gap")  # columns without a best


class TableColumn(NamedTuple):
    """A column of the table.

    Attributes:
        metric: Its key in metrics.json.
        title: Of the column.
        aim: The value that is best; infinite where more is better.
        hint: What it is.
    """

    metric: str
    title: str
    aim: float
    hint: str


SHOWN = (
    TableColumn("mape", "error %", 0, "mean |measured - target| / target, by the evaluator"),
    TableColumn("mae_sd", "error, % of SD", 0, "mean |measured - target| in per cent of the training deviation"),
    TableColumn("behind", "behind the best", 0, "error minus that of the best method, paired over subjects"),
    TableColumn("slope", "slope", 1, "measured over asked change; 1 is all of it"),
    TableColumn(
        "gap", "guide's gap", 0, "evaluator's error minus that of the method's own guide; large: it is being gamed"
    ),
    TableColumn("leakage_mean", "leakage %", 0, "mean absolute change of structures that nothing was asked of"),
    TableColumn("truth_ratio", "error to truth", 0, "error to the true counterfactual over the unchanged image's"),
    TableColumn("nearer", "nearer", math.inf, "share of answers nearer to the truth than the unchanged image"),
    TableColumn("mask_ratio", "mask error", 0, "masks of answer and truth that differ, over the unchanged image's"),
    TableColumn("old_edge", "old edge", 0, "share of the former edge that a shrinking structure leaves behind"),
    TableColumn("frechet", "Fréchet", 0, "distance to training images in the evaluator's features"),
)
STYLES = {name: column.style for name, column in COLUMNS.items()} | {
    name: style for name, (_, style) in REALISM.items()
}
STYLES |= {"behind": "{:.2f}"}


def table(findings: Findings, values: Mapping[str, Mapping[str, Estimate]]) -> str:
    """One row a method, sorted by the score; a click on a head sorts anew.

    Args:
        findings: Ranks and alarms.
        values: Method -> metric, of one question or of all.
    """
    shown = [column for column in SHOWN if column.metric != _other(findings.score) and _known(values.values(), column)]
    methods = sorted(findings.run.methods, key=lambda name: _rank(values[name][findings.score].value))
    best = {column.metric: _best(column, {name: values[name] for name in findings.ranked}) for column in shown}
    timed = bool(findings.run.training)
    heads = [_head(column) for column in shown]
    if timed:
        heads.insert(1, _head(TableColumn("", "training", 0, "time that all stages of the method took")))
    rows = [_row(findings, name, values[name], shown, best, timed) for name in methods]
    known = [name for name in (UNCHANGED, TRUTH) if name in values]
    below = [_row(findings, name, values[name], shown, {}, timed) for name in known]
    return (
        f'<div class="wide"><table class="methods"><thead><tr><th class="name">method</th>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tfoot>{''.join(below)}</tfoot></table></div>"
    )


def _head(column: TableColumn) -> str:
    return f'<th data-aim="{column.aim}" title="{escape(column.hint)}" tabindex="0">{escape(column.title)}</th>'


def _other(score: str) -> str:
    return "mae_sd" if score == "mape" else "mape"


def _row(
    findings: Findings,
    name: str,
    values: Mapping[str, Estimate],
    shown: list[TableColumn],
    best: Mapping[str, str | None],
    timed: bool,
) -> str:
    run = findings.run
    marks = '<span class="chip good">best</span>' if name == findings.best else ""
    marks += '<span class="chip bad">alarm</span>' if name in run.alarmed else ""
    refinement = run.refinement.get(name, "off")
    small = f"<small>{escape(refinement)}</small>" if refinement not in ("off", "") else ""
    cells = [
        _cell(values.get(column.metric, NOTHING), STYLES[column.metric], best.get(column.metric) == name)
        for column in shown
    ]
    spent = findings.trained(name)
    if timed:
        cells.insert(1, f'<td data-value="{_plain(spent)}">{duration(spent) or DASH}</td>')
    kind = ' class="best"' if name == findings.best else ""
    head = f'<th class="name" scope="row" title="{escape(name)}">{label(name)}{marks}{small}</th>'
    return f"<tr{kind}>{head}{''.join(cells)}</tr>"


def _cell(found: Estimate, style: str, best: bool) -> str:
    if not math.isfinite(found.value):
        return f'<td data-value="">{DASH}</td>'
    value, low, high = (_written(each, style) for each in found)
    interval = f"<small>{low} to {high}</small>" if math.isfinite(found.low) and low != high else ""
    mark = ' class="top"' if best else ""
    return f'<td data-value="{found.value!r}"{mark}>{value}{interval}</td>'


def _written(value: float, style: str) -> str:
    text = style.format(value) if style else number(value)
    zero = not text.strip("-0.,")
    return text.lstrip("-") if zero else text.replace("-", MINUS)


def _best(column: TableColumn, values: Mapping[str, Mapping[str, Estimate]]) -> str | None:
    """Nearest to the aim; nobody if fewer than two are known, or all are the same."""
    known = {name: found.get(column.metric, NOTHING).value for name, found in values.items()}
    known = {name: value for name, value in known.items() if math.isfinite(value)}
    if len(set(known.values())) < 2 or column.metric in UNRANKED:
        return None
    if math.isinf(column.aim):
        return max(known, key=known.__getitem__)
    return min(known, key=lambda name: abs(known[name] - column.aim))


def _known(values: Iterable[Mapping[str, Estimate]], column: TableColumn) -> bool:
    return any(math.isfinite(found.get(column.metric, NOTHING).value) for found in values)


def _plain(value: float) -> str:
    return f"{value!r}" if math.isfinite(value) else ""


def _rank(value: float) -> float:
    return value if math.isfinite(value) else math.inf
