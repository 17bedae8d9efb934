"""Several runs side by side."""

import math
from html import escape
from typing import Any

from segcft.reporting.charts import forest
from segcft.reporting.findings import Findings, duration
from segcft.reporting.html import DASH, label
from segcft.reporting.load_results import UNCHANGED, Run

HEADS = ("error, %", "unchanged image", "evaluator's floor", "subjects", "training", "alarms")


def comparison(found: list[Findings]) -> str:
    """Every run's answer, side by side."""
    heads = "".join(f"<th>{head}</th>" for head in HEADS)
    rows = "".join(_compared(findings, place) for place, findings in enumerate(found))
    asked = {(tuple(f.run.questions), f.score, f.run.subjects, _targets(f.run)) for f in found}
    note = (
        "All runs asked the same subjects the same."
        if len(asked) == 1
        else "The runs asked different questions, or other subjects: errors of different runs are no fair comparison."
    )
    return (
        f'<header><p class="kicker">{len(found)} runs</p><h1>Runs side by side</h1></header><section><div class="wide">'
        f'<table><thead><tr><th class="name">run</th><th class="name">best method</th>{heads}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="fine-print">{note}</p>{_together(found)}</section>'
    )


def _compared(findings: Findings, place: int) -> str:
    run, best = findings.run, findings.best
    of = "" if findings.score == "mape" else " of SD"
    own = findings.pooled[best][findings.score] if best else None
    error = f"{own.value:.1f}{of}<small>{own.low:.1f} to {own.high:.1f}</small>" if own else DASH
    alarms = f'<span class="chip bad">{len(run.warnings)}</span>' if run.warnings else "none"
    floor = f"{findings.floor:.1f}" if math.isfinite(findings.floor) else DASH
    spent = duration(findings.trained(best)) if best else ""
    return (
        f'<tr><th class="name"><a href="#run{place}">{label(run.name)}</a><small>{escape(run.folder.name)}</small></th>'
        f'<td class="name">{label(best) if best else "none without alarm"}</td><td>{error}</td>'
        f"<td>{findings.pooled[UNCHANGED][findings.score].value:.1f}</td><td>{floor}</td>"
        f"<td>{run.subjects}</td><td>{spent or DASH}</td><td>{alarms}</td></tr>"
    )


def _together(found: list[Findings]) -> str:
    """Intervals of all methods of all runs, where they are measured alike."""
    if len({findings.score for findings in found}) > 1:
        return ""
    values = {
        f"{place + 1}: {name}": findings.pooled[name]
        for place, findings in enumerate(found)
        for name in sorted(findings.run.methods, key=lambda method: findings.pooled[method][findings.score].value)
    }
    alarmed = {f"{place + 1}: {name}" for place, findings in enumerate(found) for name in findings.run.alarmed}
    return forest(values, found[0].score, None, alarmed, ranked=False)


def _targets(run: Run) -> Any:
    rows = run.rows[run.rows["method"] == UNCHANGED]
    return round(float(rows["target"].sum()), 3)
