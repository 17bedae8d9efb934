"""Read what ``segcft evaluate`` and ``segcft study`` wrote, and say clearly what is amiss."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from segcft.evaluation.bootstrap import Estimate
from segcft.evaluation.summary import TEXT, Estimates
from segcft.evaluation.traversal_file import FILE, Sweeps

UNCHANGED, TRUTH = "identity", "true_counterfactual"
COLUMNS = ("method", "do", "subject", "factual", "target", "measured", "judged", "error_percent", "error_sd")


@dataclass(frozen=True)
class Run:
    """One results folder.

    Attributes:
        folder: Where it lies.
        name: Of the experiment.
        content: All of metrics.json, or of benchmark.json.
        metrics: Method -> question -> metric.
        differences: The same, each method minus the last one.
        floor: The evaluator's own error by question, in %.
        warnings: Health alarms.
        refinement: Method -> what its guide still does at the answer.
        training: Method -> stage -> seconds; empty where it was not recorded.
        seconds: Stage -> seconds, of all methods and the evaluator.
        rows: subjects.csv of every seed, with a column ``seed``, the place among the seeds.
        seeds: Of the training, as far as known.
        units: Question -> unit.
        figure: Picture of the folder, or of a benchmark's first seed.
        sweeps: Pictures of a few subjects.
    """

    folder: Path
    name: str
    content: Mapping[str, Any]
    metrics: Estimates
    differences: Estimates
    floor: dict[str, float]
    warnings: list[str]
    refinement: dict[str, str]
    training: dict[str, dict[str, float]]
    seconds: dict[str, float]
    rows: pd.DataFrame
    seeds: tuple[str, ...]
    units: dict[str, str]
    figure: Path | None
    sweeps: Sweeps | None

    @property
    def questions(self) -> list[str]:
        """Variables that were asked for."""
        return list(self.metrics[UNCHANGED])

    @property
    def methods(self) -> list[str]:
        """Trained ones, in the order of the tables."""
        return [name for name in self.metrics if name not in (UNCHANGED, TRUTH)]

    @property
    def alarmed(self) -> set[str]:
        """Methods that a health alarm names."""
        return {name for name in self.methods for line in self.warnings if line.startswith(f"{name}, do(")}

    @property
    def subjects(self) -> int:
        """Subjects that every method was asked about."""
        return int(self.rows["subject"].nunique())


def read(folder: Path) -> Run:
    """Open a results folder, of one evaluation or of a benchmark.

    Raises:
        ValueError: If it, a file or a field of it is missing or damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of results")
    if (folder / "benchmark.json").is_file():
        return _benchmark(folder)
    if not (folder / "metrics.json").is_file():
        raise ValueError(f"{folder} holds neither metrics.json nor benchmark.json: run segcft evaluate first")
    content = _json(folder / "metrics.json")
    path = folder / "metrics.json"
    health = _field(content, "health", dict, path)
    return _run(folder, path, content, [folder], ("",), _field(health, "warnings", list, path))


def _benchmark(folder: Path) -> Run:
    path = folder / "benchmark.json"
    content = _json(path)
    seeds = tuple(str(seed) for seed in _field(content, "seeds", list, path))
    parts = [folder / f"seed{seed}" for seed in seeds]
    return _run(folder, path, content, parts, seeds, _field(content, "warnings", list, path))


def _run(
    folder: Path, path: Path, content: dict[str, Any], parts: list[Path], seeds: tuple[str, ...], warnings: list[str]
) -> Run:
    """What both kinds of folder have in common; ``parts`` hold the rows of each seed."""
    metrics = _estimates(_field(content, "metrics", dict, path), path)
    if UNCHANGED not in metrics or not set(metrics) - {UNCHANGED, TRUTH}:
        raise ValueError(f"{path}: 'metrics' needs {UNCHANGED!r} and at least one method, it has {', '.join(metrics)}")
    first = _json(parts[0] / "metrics.json") if parts[0] != folder else content
    found = first.get("seconds", {})
    kept = parts[0] / FILE
    rows = pd.concat([_rows(part, list(metrics)).assign(seed=place) for place, part in enumerate(parts)])
    return Run(
        folder=folder,
        name=str(content.get("experiment", folder.name)),
        content=content if parts[0] == folder else {**first, **content},
        metrics=metrics,
        differences=_estimates(_field(content, "differences", dict, path), path),
        floor=_floor(_field(content, "evaluator_floor", dict, path), metrics, path),
        warnings=[str(line) for line in warnings],
        refinement=dict(first.get("refinement", {})),
        training=dict(first.get("training", {})),
        seconds=dict(found),
        rows=rows.reset_index(drop=True),
        seeds=seeds if seeds != ("",) else (),
        units=_units(parts[0]),
        figure=next((at / "figure.png" for at in (parts[0], folder) if (at / "figure.png").is_file()), None),
        sweeps=Sweeps.read(kept) if kept.is_file() else None,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: run segcft evaluate again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object")
    return content


def _field(content: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    if name not in content:
        raise ValueError(f"{path} lacks {name!r}; an older segcft may have written it: run segcft evaluate again")
    if not isinstance(content[name], kind):
        raise ValueError(f"{path}: {name!r} is not of type {kind.__name__}")
    return content[name]


def _estimates(found: Mapping[str, Any], path: Path) -> Estimates:
    """As ``reports.plain`` wrote them; null is NaN."""
    try:
        return {
            method: {
                do: {
                    name: Estimate(*(_number(value[key]) for key in Estimate._fields)) for name, value in values.items()
                }
                for do, values in questions.items()
            }
            for method, questions in found.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: an estimate is not {{value, low, high}}: {error!r}") from error


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _floor(found: Mapping[str, Any], metrics: Estimates, path: Path) -> dict[str, float]:
    missing = [do for do in metrics[UNCHANGED] if do not in found]
    if missing:
        raise ValueError(f"{path}: 'evaluator_floor' lacks {', '.join(missing)}")
    return {do: _number(found[do]) for do in metrics[UNCHANGED]}


def _rows(folder: Path, methods: list[str]) -> pd.DataFrame:
    path = folder / "subjects.csv"
    try:
        frame = pd.read_csv(path, converters={"method": str, "do": str})
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: run segcft evaluate again") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table: {error}") from error
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    absent = sorted(set(methods) - set(frame["method"]))
    if absent:
        raise ValueError(f"{path} has no rows of {', '.join(absent)}, which the metrics name")
    words = [str(name) for name in frame if name not in TEXT and not pd.api.types.is_numeric_dtype(frame[name])]
    if words:
        raise ValueError(f"{path}: the columns {', '.join(words)} hold something that is no number")
    return frame


def _units(folder: Path) -> dict[str, str]:
    path = folder / "interventions.csv"
    if not path.is_file():
        return {}
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not {"variable", "unit"} <= set(table):
        raise ValueError(f"{path} lacks the columns variable, unit")
    return dict(zip(table["variable"], table["unit"], strict=True))
