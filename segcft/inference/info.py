"""``segcft info``: what a checkpoint, a bundle or a folder is, what may be asked of it, and how it came about."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segcft.core.formatting import number, printed_unit, quantity
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
    facts = read(options.path.expanduser())
    print(json.dumps(facts, indent=2) if options.json else "\n".join(told(facts)))


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
        elif isinstance(value, dict):
            yield f"{name}: " + ", ".join(f"{each} {_plain(inner)}" for each, inner in value.items())
        else:
            yield f"{name}: " + (", ".join(map(_plain, value)) if isinstance(value, list) else _plain(value))


def _checkpoint(path: Path) -> Facts:
    from segcft.core import checkpoints  # lazily: it imports torch

    content = checkpoints.read(path)["segcft"]
    return {
        "path": str(path),
        "what": "checkpoint",
        **_parts(content["parts"], content["seconds"]),
        **_run(path.parent),
    }


def _bundle(path: Path) -> Facts:
    content = _json(path / "config.json")
    kept = ("name", "segcft", "resolution")
    facts = {key: content.get(key) for key in kept} | _parts(content["parts"], content["seconds"])
    return {"path": str(path), "what": "bundle", **facts, "graph": _arrows(content.get("graph") or {})}


def _run_folder(path: Path) -> Facts:
    last = path / "last.ckpt"
    facts = _checkpoint(last) if last.is_file() else _run(path)
    return {**facts, "path": str(path), "what": "folder of a run"}


def _results(path: Path) -> Facts:
    content = _json(path / "metrics.json")
    rows = {
        f"{method} do({name})": {key: _value(found.get(key)) for key in ("mape", "slope", "leakage")}
        for method, every in (content.get("metrics") or {}).items()
        for name, found in every.items()
    }
    facts = {key: content.get(key) for key in ("split", "subjects", "evaluator")}
    return {"path": str(path), "what": "results of an evaluation", **facts, "metrics": rows}


def _cache(path: Path) -> Facts:
    content = _json(path / "dataset.json")
    made = content.get("plan") or {}
    facts = {key: made.get(key) for key in ("source", "structures", "frame", "unit")}
    facts |= {key: content.get(key) for key in ("counts", "patients", "quarantined")}
    return {"path": str(path), "what": "prepared data set", **facts}


READERS: dict[str, Callable[[Path], Facts]] = {
    "MANIFEST.json": _bundle,
    "metrics.json": _results,
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
    return {
        "parts": {name: recipe["class_path"] for name, recipe in parts.items()},
        "variables": variables,
        "structures": about.get("structures"),
        "spacing": about.get("spacing"),
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
    kept = {key: content.get(key) for key in ("command", "commit", "finished", "steps", "seconds")}
    seed = (content.get("config") or {}).get("seed_everything")
    return kept | {"seed": seed, "subjects": (content.get("data") or {}).get("subjects"), "validation": measured}


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
    if about.get("categories"):
        return f"{name}: {' or '.join(about['categories'])}"
    if about.get("kind") == "binary":
        return f"{name}: 0 or 1"
    measured = f", {about['measure']} of {about['structure']}" if about.get("structure") else ""
    return f"{name}: {number(about['low'])} to {quantity(about['high'], about.get('unit', ''))}{measured}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items() if inner is not None) + ")"
    if isinstance(value, list):
        return " x ".join(map(_plain, value))
    return printed_unit(str(value))
