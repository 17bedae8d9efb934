"""An experiment's configuration: a recipe, the data set, and what differs.

``experiments/NAME/data.yaml`` says what the data are and which ``recipe`` the stages follow: a folder of
``experiments/recipes/``, or another experiment. ``NAME/STAGE.yaml`` says in what a stage differs from the recipe's. One
rule lays one over the other everywhere, in variations and declarations, too: entry by entry, see ``merged``; a file
that is ``like`` another one says only in what it differs. A stage names the stages that it starts from:
``pretrained: pretrain``.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from segcft.core import bounded_yaml
from segcft.core.formatting import meant

Config = dict[str, Any]
RECIPES = "recipes"
INPUTS = ("pretrained", "judge", "judges", "mechanism", "evaluator", "checkpoint", "methods")  # name stages, or files
STAGE = re.compile(r"\w+")
FOREIGN = ("recipe", "like")  # of an experiment, and not of its stages


def located(name: str, experiments: Path = Path("experiments")) -> Path:
    """The folder of an experiment: in ``experiments``, else the one that segcft brings along.

    Raises:
        ValueError: If there is none of that name.
    """
    roots = (experiments, _shipped())
    for root in roots:
        if (root / name / "data.yaml").is_file():
            return root / name
    known = sorted({path.parent.name for root in roots for path in root.glob("*/data.yaml")})
    near = meant(name, known) or f"; there are {', '.join(known)}"
    raise ValueError(f"{name} is no experiment: {experiments / name / 'data.yaml'} does not exist{near}")


def read(path: Path) -> Config:
    """A YAML file; nothing if it does not exist.

    Raises:
        ValueError: If it is no mapping.
    """
    try:
        content = bounded_yaml.read(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"{path}: entries of the form NAME: VALUE are needed")
    return content or {}


def merged(base: Config, more: Config) -> Config:
    """``more`` over ``base``, dicts entry by entry; another class or {} takes none of the former one's."""
    if "class_path" in more and more["class_path"] != base.get("class_path", more["class_path"]):
        return dict(more)
    result = dict(base)
    for key, value in more.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if value and isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def without_absent(config: Config) -> Config:
    """The same without variables that are null: a declaration leaves out what its data set has."""
    given = config.get("data", {}).get("init_args", {})
    kept = {name: value for name, value in (given.get("variables") or {}).items() if value is not None}
    if not kept:
        return config
    return {**config, "data": {**config["data"], "init_args": {**given, "variables": kept}}}


def data(folder: Path) -> Config:
    """What all stages of an experiment share."""
    return {key: value for key, value in read(folder / "data.yaml").items() if key not in FOREIGN}


def offered(folder: Path) -> list[str]:
    """Stages that an experiment has, of its own or by its recipe; ``evaluate`` among them."""
    every = set[str]()
    place: Path | None = folder
    while place is not None:
        every |= {path.stem for path in place.glob("*.yaml")}
        place = _recipe(place)
    return sorted(name for name in every if name == "evaluate" or "model" in stage(folder, name))


def stage(folder: Path, name: str, above: tuple[str, ...] = ()) -> Config:
    """A stage's own part: the recipe's, and over it the experiment's; over the stage that it is ``like``, if any.

    Raises:
        ValueError: If a stage is like itself, or the recipe does not exist.
    """
    if name in above:
        raise ValueError(f"{folder}: {' -> '.join((*above, name))}: a stage is like itself")
    recipe = _recipe(folder)
    own = read(folder / f"{name}.yaml")
    if "like" in own:
        return merged(stage(folder, own["like"], (*above, name)), {k: v for k, v in own.items() if k != "like"})
    return merged(stage(recipe, name) if recipe else {}, own)


def pointed(config: Any, folder: str) -> tuple[Any, tuple[str, ...]]:
    """Stages that are named as inputs become their checkpoints under ``folder``; also which stages those are."""
    found: dict[str, None] = {}

    def point(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            inside = key == "methods"  # methods: {seg_cft: segcft}
            return {name: point(inner, "methods" if inside and isinstance(inner, str) else name)
                    for name, inner in value.items()}  # fmt: skip
        if isinstance(value, list):
            return [point(inner, key) for inner in value]
        if key in INPUTS and isinstance(value, str) and STAGE.fullmatch(value):
            found[value] = None
            return f"{folder}/{value}/last.ckpt"
        return value

    return point(config, ""), tuple(found)


def _shipped() -> Path:
    """The experiments that segcft brings along."""
    return Path(str(files("segcft"))) / "experiments"


def _recipe(folder: Path) -> Path | None:
    name: str | None = read(folder / "data.yaml").get("recipe")
    if name is None:
        return None
    own, shipped = folder.parent, _shipped()
    places = [root / name for root in (own / RECIPES, own, shipped / RECIPES, shipped)]
    for place in places:
        if place.is_dir() and place.resolve() != folder.resolve():
            return Path(place)
    raise ValueError(f"{folder / 'data.yaml'}: recipe = {name!r}: neither {places[0]} nor {places[1]} exists")
