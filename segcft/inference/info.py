"""``segcft info``: what a checkpoint, a bundle or a folder is, what may be asked of it, and how it came about."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segcft.core import manifests
from segcft.core.formatting import number, printed_unit, quantity, resolving
from segcft.core.parsing import PlainParser

Facts = dict[str, Any]
VALIDATED = ("val/", "test/")


def info(arguments: list[str]) -> None:
    """Print what something is.

    Raises:
        ValueError: If it is nothing that segcft wrote.
    """
    parser = PlainParser("info", "What a checkpoint, bundle or folder is, and what may be asked of it.")
    parser.add_argument(
        "path", type=Path, help="checkpoint, bundle, prepared data set, or folder of a run or of results"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    try:
        facts = read(options.path.expanduser())
        print(json.dumps(facts, indent=2) if options.json else "\n".join(told(facts)))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{options.path} is damaged, or of another version of segcft: {error!r}") from error


def read(path: Path) -> Facts:
    """What there is to know of a path, as plain data; ``what`` says what it is.

    Raises:
        ValueError: If it is nothing that segcft wrote.
    """
    if path.is_file():
        return _checkpoint(path)
    for name, reader in READERS.items():
        if (path / name).is_file():
            return reader(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if stages := sorted(found.parent for found in path.glob("*/run.json")):
        return {
            "path": str(path),
            "what": "runs of an experiment",
            "stages": {each.name: _brief(each) for each in stages},
        }
    wanted = "a checkpoint, a bundle, a prepared data set, or a folder of a run or of results"
    raise ValueError(f"{path} is none that segcft wrote: {wanted} is needed")


def told(facts: Facts) -> Iterator[str]:
    """Lines for people."""
    yield f"{facts['path']}: {facts['what']}"
    for key, value in facts.items():
        if key in ("path", "what") or value in (None, {}, [], ""):
            continue
        name = key.replace("_", " ")
        if key == "variables":
            yield f"{name}:"
            yield from (f"  {_variable(each, about)}" for each, about in value.items())
        elif key in ("metrics", "stages"):
            yield f"{name}:"
            yield from (f"  {each}: {_plain(inner).strip('()')}" for each, inner in value.items())
        elif isinstance(value, dict):
            yield f"{name}: " + ", ".join(f"{each} {_plain(inner)}" for each, inner in value.items())
        else:
            yield f"{name}: " + (", ".join(map(_plain, value)) if isinstance(value, list) else _plain(value))


def _checkpoint(path: Path) -> Facts:
    from segcft.core import checkpoints  # lazily: it imports torch

    whole = checkpoints.read(path, mapped=True)
    content = whole["segcft"]
    return {
        "path": str(path),
        "what": "checkpoint",
        "stage": next(reversed(content["seconds"]), ""),
        **_parts(content["parts"], content["seconds"]),
        "steps": whole.get("global_step"),
        **_run(path.parent),
        **_evaluated(path, content["seconds"]),
    }


def _bundle(path: Path) -> Facts:
    content = _json(manifests.verified(path, "config.json"))
    kept = ("name", "segcft", "resolution")
    facts = {key: content.get(key) for key in kept} | _parts(content["parts"], content["seconds"])
    card = path / "MODEL_CARD.md"
    _, _, judged = card.read_text(encoding="utf-8").partition("## Performance\n\n") if card.is_file() else ("", "", "")
    stage, judged = next(reversed(content["seconds"]), ""), judged.partition("\n## ")[0].strip()
    return {"path": str(path), "what": "bundle", "stage": stage, **facts, "performance": judged}


def _run_folder(path: Path) -> Facts:
    last = path / "last.ckpt"
    facts = _checkpoint(last) if last.is_file() else _run(path)
    return {**facts, "path": str(path), "what": "folder of a run"}


def _results(path: Path) -> Facts:
    pooled = (path / "benchmark.json").is_file()
    content = _json(path / ("benchmark.json" if pooled else "metrics.json"))
    what = "results of an evaluation" + (", several training seeds" if pooled else "")
    kept = ("experiment", "split", "subjects", "seeds", "warnings")
    first = path / f"seed{content['seeds'][0]}/metrics.json" if pooled else path / "metrics.json"
    settings = (_json(first) if first.is_file() else content).get("settings")
    facts = {key: content.get(key) for key in kept} | _asked(settings or {})
    facts["warnings"] = facts["warnings"] or (content.get("health") or {}).get("warnings")
    return {"path": str(path), "what": what, **facts, "metrics": _metrics(content)}


def _asked(settings: Facts) -> Facts:
    """Of an evaluation: variables, structures and spacing of its data, and its evaluator."""
    return {key: settings.get(key) for key in ("variables", "structures", "spacing", "evaluator")}


def _metrics(content: Facts) -> Facts:
    """Method and intervention -> error (% of the target, or of the deviation if it is no size), slope and leakage."""
    wanted = ("mape", "mae_sd", "slope", "leakage")
    return {
        f"{method} do({name})": {key: _value(found.get(key)) for key in wanted}
        for method, every in (content.get("metrics") or {}).items()
        for name, found in every.items()
    }


def _evaluated(path: Path, seconds: dict[str, float]) -> Facts:
    """Of a checkpoint under checkpoints/EXPERIMENT: the metrics in results/EXPERIMENT of methods trained the same."""
    above = path.resolve().parts[:-1]
    if "checkpoints" not in above[:-1]:
        return {}
    place = len(above) - 1 - above[::-1].index("checkpoints")
    for file in sorted((Path(*above[:place]) / "results" / above[place + 1]).glob("**/metrics.json")):
        content = _json(file)
        same = {name for name, spent in (content.get("training") or {}).items() if spent == seconds}
        if same:
            found = {key: each for key, each in _metrics(content).items() if key.partition(" do(")[0] in same}
            return {"evaluated_in": str(file), "metrics": found}
    return {}


def _cache(path: Path) -> Facts:
    content = _json(path / "dataset.json")
    plan = {key: content["plan"][key] for key in ("source", "structures", "frame", "spacing", "channels", "unit")}
    facts = {key: content[key] for key in ("counts", "patients", "quarantined")}
    variables = {
        name: {"kind": None, "low": each["min"], "high": each["max"], "missing": each["missing"]}
        for name, each in content["variables"].items()
    }
    return {"path": str(path), "what": "prepared data set", **plan, **facts, "variables": variables}


READERS: dict[str, Callable[[Path], Facts]] = {
    "MANIFEST.json": _bundle,
    "benchmark.json": _results,
    "metrics.json": _results,
    "last.ckpt": _run_folder,
    "run.json": _run_folder,
    "dataset.json": _cache,
}


def _parts(parts: Facts, seconds: dict[str, float]) -> Facts:
    """Of recipes: the description of the data, and the parts' classes."""
    about: Facts = next(_found(parts, "DataDescription"), {"variables": {}})
    variables = {
        name: {key: value for key, value in each["init_args"].items() if key != "quantiles"}
        for name, each in about["variables"].items()
    }
    stages = next(_found(parts, "HVAE"), {}).get("stages")
    causal = next((each for kind in ("StructuralCausalModel", "Independent") for each in _found(parts, kind)), None)
    return {
        "parts": {name: recipe["class_path"] for name, recipe in parts.items()},
        "variables": variables,
        "structures": about.get("structures"),
        "graph": None if causal is None else _arrows(causal.get("graph") or {}) or ["no arrows"],
        "spacing": about.get("spacing"),
        "channels": about.get("channels"),
        "finest_stage": stages[0].get("init_args", stages[0]).get("resolution") if stages else None,
        "training_seconds": seconds,
    }


def _found(value: Any, name: str) -> Iterator[Facts]:
    """Arguments of every recipe of a class in nested recipes, outermost first."""
    if isinstance(value, dict):
        if str(value.get("class_path", "")).rpartition(".")[2] == name:
            yield value["init_args"]
        for inner in value.values():
            yield from _found(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _found(inner, name)


def _run(folder: Path) -> Facts:
    """How it was trained, from ``run.json`` beside it; nothing where there is none."""
    if not (folder / "run.json").is_file():
        return {}
    content = _json(folder / "run.json")
    measured = {key: value for key, value in (content.get("metrics") or {}).items() if key.startswith(VALIDATED)}
    kept = {key: content[key] for key in ("command", "commit", "finished", "steps", "seconds") if content.get(key)}
    seed = (content.get("config") or {}).get("seed_everything")
    return (
        kept
        | {"seed": seed, "subjects": (content.get("data") or {}).get("subjects"), "validation": measured}
        | {"packages": content.get("packages")}
    )


def _brief(folder: Path) -> Facts:
    """A run in a line."""
    content = _run(folder)
    return {key: content.get(key) for key in ("finished", "steps", "seconds", "seed")}


def _json(path: Path) -> Facts:
    try:
        content: Facts = json.loads(path.read_text(encoding="utf-8"))
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _arrows(graph: dict[str, list[str]]) -> list[str]:
    return [f"{cause} -> {effect}" for effect, causes in graph.items() for cause in causes]


def _value(estimate: Any) -> Any:
    return estimate.get("value") if isinstance(estimate, dict) else estimate


def _variable(name: str, about: Facts) -> str:
    sexes = ("female", "male") if name == "sex" else ("0", "1")
    named = about.get("categories") or (sexes if about.get("kind") == "binary" else ())
    measured = f", {about['measure']} of {about['structure']}" if about.get("structure") else ""
    missing = f", {number(about['missing'])} missing" if about.get("missing") else ""
    if named or about["low"] is None:
        return f"{name}: {' or '.join(named) or 'no values'}{missing}"
    decimals = resolving(about["high"] - about["low"])
    high = quantity(about["high"], about.get("unit", ""), decimals)
    return f"{name}: {number(about['low'], decimals)} to {high}{measured}{missing}"


def _plain(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items() if inner is not None) + ")"
    if isinstance(value, list):
        return " x ".join(map(_plain, value))
    return printed_unit(str(value))
