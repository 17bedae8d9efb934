"""What came out of a sweep: a table, a picture, and the best trial as a configuration."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segcft.core.atomic_files import staged, write_text
from segcft.sweeping.search_space import Plan

Row = dict[str, Any]


def write_tables(rows: list[Row], plan: Plan, out: Path) -> None:
    """``table.csv`` by trial, ``table.md`` best first, and ``best.yaml``, a --config for ``segcft fit``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "table.csv", text.getvalue())
    ranked = sorted(rows, key=lambda row: _rank(row, plan))
    lines = [" | ".join(map(_cell, row.values())) for row in [dict(zip(rows[0], rows[0], strict=True)), *ranked]]
    lines.insert(1, " | ".join(["---"] * len(rows[0])))
    head = f"{plan.objective}, {plan.direction}, mean over seeds {', '.join(map(str, plan.seeds))}; best first.\n\n"
    write_text(out / "table.md", head + "".join(f"| {line} |\n" for line in lines))
    if ranked[0]["objective"] is not None:
        write_text(out / "best.yaml", yaml.safe_dump(_nested({name: ranked[0][name] for name in plan.space})))


def picture(rows: list[Row], plan: Plan, path: Path) -> None:
    """The objective by trial, and against every option; the best trial is filled."""
    from matplotlib.figure import Figure  # lazily: slow to import

    done = sorted((row for row in rows if row["objective"] is not None), key=lambda row: _rank(row, plan))
    names = ["trial", *plan.space]
    figure = Figure(figsize=(3.2 * len(names), 2.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        number = name == "trial" or "low" in plan.space[name]
        x = [row[name] if number else str(row[name]) for row in done]
        y, spread = [row["objective"] for row in done], [row["std"] or 0.0 for row in done]
        axis.errorbar(x, y, spread, fmt="o", color="#3d8be8", markerfacecolor="none", capsize=2)
        axis.plot(x[:1], y[:1], "o", color="#e8553d")
        axis.set_xlabel(name.removeprefix("model.init_args."), fontsize=8)
        if number and name != "trial" and plan.space[name].get("log"):
            axis.set_xscale("log")
    figure.axes[0].set_ylabel(plan.objective)
    with staged(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _rank(row: Row, plan: Plan) -> tuple[bool, float]:
    value = row["objective"]
    return value is None, 0.0 if value is None else value if plan.direction == "minimize" else -value


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``a.b`` -> value as dicts; texts that stand for lists or dicts are read."""
    result: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split(".")
        inner = result
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = yaml.safe_load(value) if isinstance(value, str) else value
    return result
