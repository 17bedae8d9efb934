"""Where a run's numbers come from, as far as it was recorded."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from segcft.core.formatting import printed_unit
from segcft.reporting.findings import duration
from segcft.reporting.load_results import Run


def card(run: Run) -> str:
    """Data, training and machine; the configuration folded away."""
    rows = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts(run).items())
    return f'<section class="card"><h2>Data card</h2><dl>{rows}</dl></section>{_configuration(run)}'


def _configuration(run: Run) -> str:
    """What was compared; of a benchmark also how each method is asked."""
    plan = {"methods of the benchmark": run.content["methods"]} if "command" in run.content else {}
    settings = plan | (run.content.get("settings") or {})
    text = escape(json.dumps(settings, indent=2))
    return f"<details><summary>Configuration</summary><pre>{text}</pre></details>" if settings else ""


def facts(run: Run) -> dict[str, str]:
    """By name; what is not known is left out."""
    content, settings = run.content, run.content.get("settings") or {}
    units = {do: printed_unit(run.units.get(do, "")) for do in run.questions}
    found = {
        "experiment": run.name,
        "data": settings.get("data"),
        "subjects": f"{run.subjects}, {content.get('split', '?')} split",
        "variables": ", ".join(f"{do} ({unit})" if unit else do for do, unit in units.items()),
        "structures": ", ".join(settings.get("structures", [])),
        "training seeds": ", ".join(run.seeds),
        "seed of subjects and targets": content.get("seed"),
        "evaluator": settings.get("evaluator"),
        "training, all stages": ", ".join(f"{stage} {duration(spent)}" for stage, spent in run.seconds.items()),
        "hardware": machine(content.get("hardware") or {}),
        "commit": content.get("commit"),
        "command": content.get("command"),
    }
    return {key: str(value) for key, value in found.items() if value not in (None, "")}


def machine(found: Mapping[str, Any]) -> str:
    """In words.

    >>> machine({"processor": "Xeon", "cores": 2, "torch": "2.6"})
    'Xeon, 2 cores, torch 2.6'
    """
    named = {"processor": "{}", "accelerator": "{}", "cores": "{} cores"}
    return ", ".join(named.get(key, f"{key} {{}}").format(value) for key, value in found.items())
