"""What is searched, as a YAML file says."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from segcft.core import bounded_yaml

# an option of a stage; what is trusted and where a training reads and writes is not for a plan to say
OPTION = re.compile(r"(?!(trust|config|c|experiment|ckpt_path|weights_only|resume)$)[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Plan:
    """What is searched.

    Attributes:
        configs: Configuration files of ``segcft fit``, in order; or, in their place, the next two.
        experiment: Folder under experiments/, or one that segcft brings along.
        stage: Of the experiment.
        objective: A number that the stage logs on the validation split, ``val/...``.
        direction: ``minimize`` or ``maximize``.
        trials: Settings to try.
        seeds: Each trial is trained with each; its objective is their mean.
        space: Option -> ``{low, high}``, with ``log: true`` or ``step`` if wished, or ``{choices}``; whole numbers if
            ``low`` and ``high`` are. Empty to train the configuration as it is.
        configuration: All of the configuration of the stage; not written in the file.
    """

    objective: str
    configs: list[str] = field(default_factory=list)
    experiment: str = ""
    stage: str = ""
    direction: str = "minimize"
    trials: int = 1
    seeds: list[int] = field(default_factory=lambda: [0])
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> Plan:
    """The plan in a YAML file.

    Raises:
        ValueError: Naming file, field and value of what is wrong.
    """
    try:
        content = bounded_yaml.read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    known = {each.name for each in fields(Plan)} - {"configuration"}
    if not isinstance(content, dict) or not {"objective"} <= content.keys() <= known:
        needed = "objective, and experiment with stage or configs, are needed"
        raise ValueError(f"{path}: {needed}; {', '.join(sorted(known))} are known")
    plan = Plan(**content)
    for name, need in _lacking(plan):
        raise ValueError(f"{path}: {name} = {getattr(plan, name)!r}: {need}")
    for name, values in plan.space.items():
        if not OPTION.fullmatch(str(name)):
            raise ValueError(f"{path}: space: {name!r} is no option that may be searched")
        try:
            distribution(values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: space: {name} = {values!r}: {error}") from error
    return plan


def distribution(values: Mapping[str, Any]) -> Any:
    """What Optuna calls one line of a space.

    Raises:
        ValueError: If it is none.
    """
    optuna = engine()
    choices = values.get("choices")
    if values.keys() == {"choices"} and isinstance(choices, list) and choices:
        plain = [each if isinstance(each, str | int | float | bool) else json.dumps(each) for each in choices]
        return optuna.distributions.CategoricalDistribution(plain)
    if not {"low", "high"} <= values.keys() <= {"low", "high", "log", "step"}:
        raise ValueError("{low, high}, with log or step, or {choices: [...]} is needed")
    whole = type(values["low"]) is int and type(values["high"]) is int
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return kind(**values)


def engine() -> Any:
    """Optuna, silent.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import optuna  # lazily: an optional extra
    except ImportError as error:
        raise ValueError("segcft sweep needs Optuna: pip install optuna, or segcft's extra 'sweep'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _lacking(plan: Plan) -> Iterator[tuple[str, str]]:
    """Fields that are wrong, and what they need."""
    yield from _lacking_configuration(plan)
    if not str(plan.objective).startswith("val/"):
        yield "objective", "a number of the validation split, val/..., is needed"
    if plan.direction not in ("minimize", "maximize"):
        yield "direction", "minimize or maximize is needed"
    if type(plan.trials) is not int or plan.trials < 1:
        yield "trials", "a number of at least 1 is needed"
    if not _listed(plan.seeds, int) or len(set(plan.seeds)) < len(plan.seeds):
        yield "seeds", "a list of different whole numbers is needed"
    if not isinstance(plan.space, dict):
        yield "space", "option -> {low, high} or {choices} is needed"


def _lacking_configuration(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.experiment:
        if plan.configs or not plan.stage:
            yield "experiment", "a stage of it is needed, and no configs"
    elif not _listed(plan.configs, str) or not all(Path(name).is_file() for name in plan.configs):
        yield "configs", "a list of files that exist is needed"


def _listed(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is kind for each in value)
