"""What has to be run: every stage with its own configuration, and what each waits for.

Nothing is declared twice. A stage's configuration names the stages it starts from, and those are the ones it waits for.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segcft.core.formatting import meant
from segcft.study.experiment import Config, data, merged, offered, pointed, read, stage, without_absent

TRAINING = ("--model", "--trainer", "--seed_everything", "--save_every", "--resume", "--deterministic")
EVALUATION = (
    "--subjects",
    "--ask",
    "--native",
    "--detect",
    "--references",
    "--sweeps",
    "--gap",
    "--strict",
    "--mechanism",
    "--methods.",
)
OPTIONS = ("--data", *TRAINING, *EVALUATION)  # of both, of ``segcft fit``, of ``segcft evaluate``


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: ``seed0/segcft``, or ``segcft`` of an experiment's only training.
        stage: Its name without the seed.
        command: Of segcft: ``fit`` or ``evaluate``.
        config: All of its configuration.
        needs: Names of the jobs whose checkpoints it reads.
        product: The file that says it was run.
        arguments: Given on the command line, after the configuration.
        asked: Whether it was asked for; what is only needed is run if its product is missing.
    """

    name: str
    stage: str
    command: str
    config: Config
    needs: tuple[str, ...]
    product: Path
    arguments: tuple[str, ...] = field(default=())
    asked: bool = True


@dataclass(frozen=True)
class Study:
    """What is trained and compared: an experiment, or a declaration beside it such as ``benchmark.yaml``.

    Attributes:
        experiment: Name of the folder.
        name: Of its section and figure: ``EXPERIMENT``, or ``EXPERIMENT_DECLARATION`` if it is not called benchmark.
        folder: ``experiments/EXPERIMENT``.
        data: What differs from data.yaml in all stages.
        methods: Name in the tables -> ``{stage, corrections, confined}``; empty if the experiment compares none.
        variations: Name -> the stage it is ``like``, by default that of its name, and what differs.
        seeds: Of the trainings; None for the only one, whose stages lie in ``checkpoints/EXPERIMENT``.
        evaluator: Stage that judges.
        arguments: Options of every command that is asked for.
        split: Split of the tables.
        out: Where results go.
        ask: What every subject is asked of every variable; None for the value of another subject.
        stages: Those that are asked for; by default all that the comparison needs.
    """

    experiment: str
    name: str
    folder: Path
    data: Config
    methods: dict[str, Config]
    variations: dict[str, Config]
    seeds: tuple[int | None, ...]
    evaluator: str
    arguments: tuple[str, ...]
    split: str
    out: Path
    ask: str | None = None
    stages: tuple[str, ...] = ()

    @property
    def home(self) -> str:
        """Folder under checkpoints/; declarations on the same data share their stages."""
        return self.name if self.data else self.experiment

    def place(self, seed: int | None) -> str:
        """Folder of one training's checkpoints, under checkpoints/."""
        return self.home if seed is None else f"{self.home}/seed{seed}"


def declared(folder: Path, name: str) -> Config:
    """A declaration, over the one that it is ``like``; nothing if there is no ``benchmark.yaml``.

    Methods, if it names any, are all its own.

    Raises:
        ValueError: If another one does not exist.
    """
    file = folder / f"{name}.yaml"
    if name != "benchmark" and not file.is_file():
        raise ValueError(f"{file} does not exist: nothing says what to compare")
    content = read(file)
    if "like" not in content:
        return content
    methods = {"methods": content["methods"]} if "methods" in content else {}
    return merged(declared(folder, content["like"]), content) | methods


def single(folder: Path, stages: tuple[str, ...], arguments: tuple[str, ...], split: str, out: Path) -> Study:
    """One training of an experiment.

    Args:
        folder: ``experiments/EXPERIMENT``.
        stages: Those that are asked for; by default all that the comparison needs.
        arguments: Options of every stage that is asked for, each in one word (``--data.x=1``).
        split: Split of the tables.
        out: Where results go.

    Raises:
        ValueError: If a stage or option is unknown.
    """
    known = offered(folder)
    for name in stages:
        if name not in known:
            raise ValueError(f"unknown stage {name!r}{meant(name, known) or '; there are ' + ', '.join(known)}")
    _check(arguments)
    content = stage(folder, "evaluate")
    methods = {name: _method(value) for name, value in (content.get("methods") or {}).items()}
    return Study(
        experiment=folder.name,
        name=folder.name,
        folder=folder,
        data={},
        methods=methods,
        variations={},
        seeds=(None,),
        evaluator=content.get("evaluator") or "evaluator",
        arguments=arguments,
        split=split,
        out=out,
        stages=stages or (() if methods else tuple(name for name in known if name != "attributes")),
    )


def study(
    folder: Path,
    seeds: tuple[int, ...],
    arguments: tuple[str, ...],
    split: str,
    out: Path,
    methods: tuple[str, ...] = (),
    declaration: str = "benchmark",
) -> Study:
    """Read a declaration; without one, the methods of ``evaluate.yaml`` are compared.

    Args:
        folder: ``experiments/EXPERIMENT``.
        seeds: Of the trainings; by default the declared ones, or three.
        arguments: Options of every command, each in one word (``--data.x=1``).
        split: Split of the tables.
        out: Where results go.
        methods: Some of the declared ones; by default all.
        declaration: Name of the YAML file.

    Raises:
        ValueError: If the declaration does not exist, or a method that is asked for or an option is unknown.
    """
    _check(arguments)
    content = declared(folder, declaration)
    every = content.get("methods") or stage(folder, "evaluate").get("methods")
    if not every:
        raise ValueError(f"{folder} has no evaluate.yaml that names methods: there is nothing to compare")
    chosen = {name: _method(value) for name, value in every.items() if not methods or name in methods}
    for name in methods:
        if name not in every:
            file = folder / f"{declaration}.yaml"
            raise ValueError(f"unknown method {name!r}; {file} compares {', '.join(every)}")
    return Study(
        experiment=folder.name,
        name=folder.name if declaration == "benchmark" else f"{folder.name}_{declaration}",
        data={"data": content["data"]} if content.get("data") else {},
        folder=folder,
        methods=chosen,
        variations=content.get("variations") or {},
        seeds=seeds or tuple(content.get("seeds") or (0, 1, 2)),
        evaluator=content.get("evaluator") or "evaluator",
        arguments=arguments,
        split=split,
        out=out,
        ask=content.get("ask"),
    )


def jobs(plan: Study) -> list[Job]:
    """Every command in an order in which it could be run, seed by seed."""
    made: dict[str, Job] = {}
    compared = tuple(method["stage"] for method in plan.methods.values())
    for seed in plan.seeds:
        wanted = plan.stages or (plan.evaluator, *compared)
        for name in wanted:
            if name != "evaluate":
                _add(plan, seed, name, made)
        if plan.methods and (not plan.stages or "evaluate" in plan.stages):
            for name in (plan.evaluator, *compared):
                _add(plan, seed, name, made)
            evaluation = _evaluation(plan, seed)
            made[evaluation.name] = evaluation
    return list(made.values())


def configuration(plan: Study, seed: int | None, name: str) -> tuple[Config, tuple[str, ...]]:
    """All of the configuration of a stage, as ``segcft fit --config`` reads it, and the stages that it needs.

    Raises:
        ValueError: If neither experiment, recipe nor variations know the stage, or it weighs an unknown variable.
    """
    variation = dict(plan.variations.get(name) or {})
    own = stage(plan.folder, variation.pop("like", name))
    if not own:
        raise ValueError(f"stage {name!r}: neither {plan.folder / name}.yaml nor a variation of that name exists")
    config = without_absent(merged(merged(merged(data(plan.folder), own), plan.data), variation))
    _check_weights(plan, name, config)
    config["seed_everything"] = int(config.get("seed_everything") or 0) + 100 * (seed or 0)
    config["experiment"] = plan.place(seed)
    if name in plan.variations or name == plan.evaluator:
        config["model"].setdefault("init_args", {})["stage"] = name
    return pointed(config, f"checkpoints/{plan.place(seed)}")


def _check(arguments: tuple[str, ...]) -> None:
    """See that options can be a stage's, before the first stage is run."""
    for argument in arguments:
        if not argument.partition("=")[0].startswith(OPTIONS):
            near = meant(argument.partition("=")[0].partition(".")[0], OPTIONS)
            raise ValueError(f"unknown option {argument}{near}; options of stages begin with {', '.join(OPTIONS)}")


def _check_weights(plan: Study, name: str, config: Config) -> None:
    """See that weights are of variables that data.yaml declares; not where the command line changes either."""
    variables = config.get("data", {}).get("init_args", {}).get("variables")
    weights = config.get("model", {}).get("init_args", {}).get("weights") or {}
    if not variables or any("variables" in word or "weights" in word for word in plan.arguments):
        return
    for variable in weights:
        if variable not in variables:
            raise ValueError(
                f"{plan.folder.name}, stage {name}: weights name {variable!r}, but the variables of data.yaml are "
                f"{', '.join(variables)}: give weights of those in {plan.folder / name}.yaml, or another recipe"
            )


def _method(value: str | Config) -> Config:
    given = {"stage": value} if isinstance(value, str) else dict(value)
    name = given.get("stage") or given["checkpoint"]
    how = {"corrections": given.get("corrections", 0), "confined": given.get("confined", False)}
    return {"stage": Path(name).parent.name if "/" in name else name, **how}


def _named(seed: int | None, name: str) -> str:
    return name if seed is None else f"seed{seed}/{name}"


def _add(plan: Study, seed: int | None, name: str, made: dict[str, Job], above: tuple[str, ...] = ()) -> None:
    """A stage after everything it needs."""
    if _named(seed, name) in made:
        return
    if name in above:
        raise ValueError(f"{' -> '.join((*above, name))}: a stage waits for itself")
    config, needs = configuration(plan, seed, name)
    for needed in needs:
        _add(plan, seed, needed, made, (*above, name))
    product = Path("checkpoints") / plan.place(seed) / name / "last.ckpt"
    asked = not plan.stages or name in plan.stages
    waits = tuple(_named(seed, needed) for needed in needs)
    arguments = tuple(word for word in plan.arguments if asked and not word.startswith(EVALUATION))
    made[_named(seed, name)] = Job(_named(seed, name), name, "fit", config, waits, product, arguments, asked)


def _evaluation(plan: Study, seed: int | None) -> Job:
    config = without_absent(merged(merged(data(plan.folder), stage(plan.folder, "evaluate")), plan.data))
    config["evaluator"] = plan.evaluator
    config["methods"] = {
        name: {"checkpoint": method["stage"], **{k: v for k, v in method.items() if k != "stage"}}
        for name, method in plan.methods.items()
    }
    out = plan.out if seed is None else plan.out / f"seed{seed}"
    config |= {"experiment": plan.place(seed), "out": str(out), "split": plan.split}
    config |= {"ask": plan.ask} if plan.ask else {}
    config, needs = pointed(config, f"checkpoints/{plan.place(seed)}")
    shared = tuple(word for word in plan.arguments if not word.startswith(TRAINING))
    waits = tuple(_named(seed, needed) for needed in needs)
    return Job(_named(seed, "evaluate"), "evaluate", "evaluate", config, waits, out / "metrics.json", shared)


def fingerprints(made: list[Job], kept: Mapping[str, str] | None = None) -> dict[str, str]:
    """Name -> hash of all that decides what a job makes, that of the jobs before it included.

    Args:
        made: In an order in which they could be run.
        kept: Fingerprints of products that are used as they are.
    """
    found = dict(kept or {})
    for job in made:
        if job.name not in found:
            facts: list[Any] = [job.command, job.config, job.arguments, [found[name] for name in job.needs]]
            found[job.name] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return found
