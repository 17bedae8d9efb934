"""The page: one HTML file that needs nothing but itself."""

import math
from collections.abc import Mapping
from html import escape
from importlib.resources import files

from segcft.core.formatting import printed_unit
from segcft.evaluation.bootstrap import Estimate
from segcft.reporting.charts import forest, scatter
from segcft.reporting.comparison import comparison
from segcft.reporting.data_card import card
from segcft.reporting.findings import Check, Findings, headline, verdict
from segcft.reporting.html import DASH, MINUS, embedded, label, sentence
from segcft.reporting.load_results import Run
from segcft.reporting.tables import NOTHING, table
from segcft.reporting.traversal_viewer import viewer

DIFFERENCES = {"mape": "error %", "mae_sd": "error, % of SD", "slope": "slope", "leakage_mean": "leakage %"}
SIGNS = {"alarm": "✕", "doubt": "!", "fine": "✓", "note": "i"}


def page(found: list[Findings]) -> str:
    """One section a run, the comparison of several before them."""
    many = len(found) > 1
    body = [comparison(found)] if many else []
    body += [_run(findings, place) for place, findings in enumerate(found)]
    title = " and ".join(dict.fromkeys(findings.run.name for findings in found))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(title)}: counterfactual images compared</title>'
        f"<style>{_asset('style.css')}</style></head>\n<body><main>{''.join(body)}</main>"
        f"<script>{_asset('page.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return files("segcft.reporting").joinpath(name).read_text(encoding="utf-8")


def _run(findings: Findings, place: int) -> str:
    run = findings.run
    content = run.content
    about = [str(content.get("split", "")) + " split", f"{run.subjects} subjects", f"{len(run.methods)} methods"]
    about += [f"{len(run.seeds)} training seed{'s' if len(run.seeds) > 1 else ''}"] if run.seeds else []
    parts = [
        f'<header id="run{place}"><p class="kicker">{escape(" · ".join(about))}</p><h1>{label(run.name)}</h1>',
        f'<p class="answer">{sentence(" ".join(headline(findings)))}</p></header>',
        _alarms(run),
        _checks(findings.checks),
        _numbers(findings),
        _scatters(findings),
        _pictures(run, findings),
        _differences(run),
        card(run),
    ]
    return f'<article class="run">{"".join(parts)}</article>'


def _alarms(run: Run) -> str:
    if not run.warnings:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in run.warnings)
    return f'<section class="alarms" role="alert"><h2>Health alarms: do not trust these</h2><ul>{lines}</ul></section>'


def _checks(checks: list[Check]) -> str:
    every = "".join(
        f'<li class="{check.status}"><i>{SIGNS[check.status]}</i><b>{escape(check.title)}</b>'
        f"<span>{sentence(check.text)}</span></li>"
        for check in checks
    )
    return f'<section class="checks"><h2>May I trust it? {escape(verdict(checks))}</h2><ul>{every}</ul></section>'


def _numbers(findings: Findings) -> str:
    """Table and intervals of all questions together, then of each."""
    run, pooled = findings.run, {name: dict(values) for name, values in findings.pooled.items()}
    if findings.best:
        for name in run.methods:
            if name != findings.best:
                pooled[name]["behind"] = findings.less(name, findings.best)
    tabs = [("all variables", pooled)] if len(run.questions) > 1 else []
    for do in run.questions:
        tabs.append((do, {name: by_do[do] for name, by_do in run.metrics.items()}))
    if len(run.questions) == 1:
        tabs = [(run.questions[0], pooled)]
    sections = "".join(
        f'<section class="tab" data-title="{label(title)}"><h3>{label(title)}</h3>{table(findings, values)}'
        f"{forest(values, findings.score, findings.best, run.alarmed)}</section>"
        for title, values in tabs
    )
    return (
        f'<section class="numbers"><h2>Methods</h2><div class="tabs">{sections}</div><p class="fine-print">Small '
        "print: 95 % of 2,000 bootstrap resamples, the same for every method. Bold: best of its column among methods "
        "without alarm. Below the line: references, no methods. Click a head to sort.</p></section>"
    )


def _scatters(findings: Findings) -> str:
    """Asked against measured, a panel a method and variable."""
    run = findings.run
    order = sorted(run.methods, key=lambda name: findings.ranked.index(name) if name in findings.ranked else 99)
    parts = []
    for do in run.questions:
        rows = run.rows[run.rows["do"] == do]
        shown = rows[rows["method"].isin(order)]
        ends = float(shown["target"].min()), float(shown["target"].max())
        space = 0.06 * (ends[1] - ends[0]) or 1.0
        ends = (ends[0] - space, ends[1] + space)
        unit = printed_unit(run.units.get(do, ""))
        panels = "".join(
            scatter(rows[rows["method"] == name], label(name), unit, ends, _quality(run.metrics[name][do]))
            for name in order
        )
        parts.append(f'<h3>{label(do)}{f", {escape(unit)}" if unit else ""}</h3><div class="scatters">{panels}</div>')
    return (
        '<section><h2>Asked and measured, subject by subject</h2><p class="lead">Across: what was asked. Up: what the '
        f"evaluator measures in the answer. On the line they agree.</p>{''.join(parts)}</section>"
    )


def _quality(values: Mapping[str, Estimate]) -> str:
    name, sign = ("mape", " %") if math.isfinite(values["mape"].value) else ("mae_sd", " % of SD")
    return f"{values[name].value:.1f}{sign} off, slope {values['slope'].value:.2f}".replace("-", MINUS)


def _pictures(run: Run, findings: Findings) -> str:
    parts = []
    if run.sweeps is not None:
        order = findings.ranked + [name for name in run.methods if name not in findings.ranked]
        parts.append(f"<section><h2>Step through the answers</h2>{viewer(run.sweeps, order)}</section>")
    if run.figure is not None:
        parts.append(
            f'<section class="picture"><h2>Figure</h2><div class="wide"><img src="{embedded(run.figure)}" '
            f'title="click to enlarge" alt="figure of {label(run.name)}"></div></section>'
        )
    return "".join(parts)


def _differences(run: Run) -> str:
    """As in metrics.json: each method minus the last one."""
    if not run.differences or not run.methods:
        return ""
    rows = ""
    for name, by_do in run.differences.items():
        for do, values in by_do.items():
            cells = "".join(_difference(values.get(key, NOTHING)) for key in DIFFERENCES)
            rows += f'<tr><th class="name">{label(name)}</th><th class="name">{label(do)}</th>{cells}</tr>'
    heads = "".join(f"<th>{title}</th>" for title in DIFFERENCES.values())
    return (
        f'<details><summary>Paired differences, each minus {label(run.methods[-1])}</summary><div class="wide"><table>'
        f'<thead><tr><th class="name">method</th><th class="name">variable</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _difference(found: Estimate) -> str:
    if not math.isfinite(found.value):
        return f"<td>{DASH}</td>"
    value, low, high = (f"{each:.2f}".replace("-", "−") for each in found)  # noqa: RUF001
    return f"<td>{value}<small>{low} to {high}</small></td>"
