"""The report as Markdown: the same findings, for pull requests and notebooks."""

import os
from pathlib import Path

from segcft.evaluation import result_tables
from segcft.evaluation.result_tables import cell
from segcft.reporting.data_card import facts
from segcft.reporting.findings import Findings, duration, headline
from segcft.reporting.tables import NOTHING, SHOWN, STYLES

SIGNS = {"alarm": "🔴", "doubt": "🟡", "fine": "🟢", "note": "⚪"}


def markdown(found: list[Findings], out: Path) -> str:
    """One section a run, figures linked relative to ``out``."""
    return "\n".join(_run(findings, out) for findings in found)


def _run(findings: Findings, out: Path) -> str:
    run = findings.run
    parts = [f"# {escaped(run.name)}", "", escaped(" ".join(headline(findings))), ""]
    parts += [f"🔴 **{escaped(line)}**\n" for line in run.warnings]
    parts += [f"- {SIGNS[check.status]} **{check.title}.** {escaped(check.text)}" for check in findings.checks]
    parts += ["", "## Mean over the variables", "", _pooled(findings), ""]
    text = result_tables.markdown(run.metrics, run.refinement, run.floor, [], run.differences)
    parts += ["## Variable by variable", "", text.replace("&", "&amp;").replace("<", "&lt;")]
    if run.figure is not None:
        linked = Path(os.path.relpath(run.figure, out.parent)).as_posix().replace(" ", "%20")
        parts += [f"![{escaped(run.name)}]({linked})", ""]
    parts += ["## Data card", "", *(f"- {key}: {escaped(value)}" for key, value in facts(run).items()), ""]
    return "\n".join(parts)


def _pooled(findings: Findings) -> str:
    run, pooled = findings.run, findings.pooled
    shown = [c for c in SHOWN if any(values.get(c.metric, NOTHING).value == values.get(c.metric, NOTHING).value
                                     for values in pooled.values())]  # fmt: skip
    lines = ["| method | " + " | ".join(column.title for column in shown) + " | training |"]
    lines.append("|" + "---|" * (len(shown) + 2))
    rest = [name for name in pooled if name not in findings.ranked]
    for name in [*findings.ranked, *rest]:
        cells = " | ".join(cell(pooled[name].get(c.metric, NOTHING), STYLES[c.metric]) for c in shown)
        bold = "**" if name == findings.best else ""
        alarm = " 🔴" if name in run.alarmed else ""
        lines.append(f"| {bold}{escaped(name)}{bold}{alarm} | {cells} | {duration(findings.trained(name)) or '-'} |")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text that can neither open a tag nor end a table's cell."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
