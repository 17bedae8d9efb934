"""What a benchmark has to run: every stage of every seed with its own configuration, and what each waits for.

Nothing is declared twice. A stage's YAML names the checkpoints it starts from; those paths are pointed at the seed's
own folder, and are the stages it waits for.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Config = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: ``seed0/segcft``.
        seed: The benchmark's.
        command: Of segcft: ``fit`` or ``evaluate``.
        config: All of its configuration, YAML files merged.
        needs: Names of the jobs whose checkpoints it reads.
        product: The file that says it was run.
        arguments: Given on the command line, after the configuration.
    """

    name: str
    seed: int
    command: str
    config: Config
    needs: tuple[str, ...]
    product: Path
    arguments: tuple[str, ...] = field(default=())

    @property
    def stage(self) -> str:
        """Its name without the seed."""
        return self.name.partition("/")[2]


@dataclass(frozen=True)
class Study:
    """What is compared, read from ``experiments/EXPERIMENT/benchmark.yaml`` or another declaration beside it.

    Attributes:
        experiment: Name of the folder.
        name: Of its section and figure: ``EXPERIMENT``, or ``EXPERIMENT_DECLARATION`` if it is not called benchmark.
        folder: ``experiments/EXPERIMENT``.
        data: What differs from data.yaml in all stages.
        methods: Name in the tables -> ``{stage, corrections, confined}``.
        variations: Name -> stage it starts from under ``stage``, and what differs.
        seeds: Of the trainings.
        evaluator: Stage that judges.
        arguments: Options of every command.
        split: Split of the tables.
        out: Where results go.
        ask: What every subject is asked of every variable; None for the value of another subject.
    """

    experiment: str
    name: str
    folder: Path
    data: Config
    methods: dict[str, Config]
    variations: dict[str, Config]
    seeds: tuple[int, ...]
    evaluator: str
    arguments: tuple[str, ...]
    split: str
    out: Path
    ask: str | None = None

    @property
    def home(self) -> str:
        """Folder under checkpoints/; declarations on the same data share their stages."""
        return self.name if self.data else self.experiment


def read(path: Path) -> Config:
    """A YAML file; nothing if it does not exist."""
    content: Config = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return content or {}


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


def study(
    folder: Path,
    seeds: tuple[int, ...],
    arguments: tuple[str, ...],
    split: str,
    out: Path,
    methods: tuple[str, ...] = (),
    declaration: str = "benchmark",
) -> Study:
    """Read the declaration; without one, the methods of ``evaluate.yaml`` are compared.

    A declaration that is ``like`` another takes from that all that it does not say.

    Args:
        folder: ``experiments/EXPERIMENT``.
        seeds: Of the trainings; by default the declared ones, or three.
        arguments: Options of every command, each in one word (``--data.x=1``).
        split: Split of the tables.
        out: Where results go.
        methods: Some of the declared ones; by default all.
        declaration: Name of the YAML file.

    Raises:
        ValueError: If the experiment or declaration does not exist, or a method that is asked for is not declared.
    """
    if not (folder / "data.yaml").is_file():
        raise ValueError(f"{folder} is no experiment: it has no data.yaml")
    content = declared(folder, declaration)
    offered = content.get("methods") or read(folder / "evaluate.yaml").get("methods")
    if not offered:
        raise ValueError(f"{folder} has no evaluate.yaml that names methods: there is nothing to compare")
    chosen = {name: _method(value) for name, value in offered.items() if not methods or name in methods}
    for name in methods:
        if name not in offered:
            file = folder / f"{declaration}.yaml"
            raise ValueError(f"unknown method {name!r}; {file} compares {', '.join(offered)}")
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


def _method(value: str | Config) -> Config:
    given = {"stage": value} if isinstance(value, str) else dict(value)
    stage = given.get("stage") or given["checkpoint"]
    how = {"corrections": given.get("corrections", 0), "confined": given.get("confined", False)}
    return {"stage": Path(stage).parent.name if "/" in stage else stage, **how}


def jobs(plan: Study) -> list[Job]:
    """Every command in an order in which it could be run, seed by seed."""
    made: dict[str, Job] = {}
    for seed in plan.seeds:
        for stage in (plan.evaluator, *(method["stage"] for method in plan.methods.values())):
            _add(plan, seed, stage, made)
        evaluation = _evaluation(plan, seed)
        made[evaluation.name] = evaluation
    return list(made.values())


def _add(plan: Study, seed: int, stage: str, made: dict[str, Job], above: tuple[str, ...] = ()) -> None:
    """A stage after everything it needs."""
    name = f"seed{seed}/{stage}"
    if name in made:
        return
    if stage in above:
        raise ValueError(f"{' -> '.join((*above, stage))}: a stage waits for itself")
    variation = dict(plan.variations.get(stage) or {})
    file = plan.folder / f"{variation.pop('stage', stage)}.yaml"
    if not file.is_file():
        raise ValueError(f"stage {stage!r}: neither {file} nor a variation of that name exists")
    config = merged(merged(merged(read(plan.folder / "data.yaml"), read(file)), plan.data), variation)
    config["seed_everything"] = int(config.get("seed_everything") or 0) + 100 * seed
    config["experiment"] = f"{plan.home}/seed{seed}"
    if stage in plan.variations or stage == plan.evaluator:
        config["model"].setdefault("init_args", {})["stage"] = stage
    config, needs = _pointed(config, plan, seed)
    for needed in needs:
        _add(plan, seed, needed, made, (*above, stage))
    product = Path("checkpoints") / plan.home / f"seed{seed}" / stage / "last.ckpt"
    waits = tuple(f"seed{seed}/{needed}" for needed in needs)
    made[name] = Job(name, seed, "fit", config, waits, product, plan.arguments)


def _evaluation(plan: Study, seed: int) -> Job:
    config = merged(merged(read(plan.folder / "data.yaml"), read(plan.folder / "evaluate.yaml")), plan.data)
    root = f"checkpoints/{plan.experiment}"
    config["evaluator"] = f"{root}/{plan.evaluator}/last.ckpt"
    config["methods"] = {
        name: {"checkpoint": f"{root}/{method['stage']}/last.ckpt", **{k: v for k, v in method.items() if k != "stage"}}
        for name, method in plan.methods.items()
    }
    out = plan.out / f"seed{seed}"
    config |= {"experiment": f"{plan.home}/seed{seed}", "out": str(out), "split": plan.split}
    config |= {"ask": plan.ask} if plan.ask else {}
    config, needs = _pointed(config, plan, seed)
    shared = tuple(argument for argument in plan.arguments if argument.startswith("--data"))  # it has no trainer
    waits = tuple(f"seed{seed}/{needed}" for needed in needs)
    return Job(f"seed{seed}/evaluate", seed, "evaluate", config, waits, out / "metrics.json", shared)


def _pointed(value: Any, plan: Study, seed: int) -> tuple[Any, tuple[str, ...]]:
    """Checkpoints of this experiment become the seed's own; also the stages they belong to."""
    found: dict[str, None] = {}
    pattern = re.compile(rf"^checkpoints/{re.escape(plan.experiment)}/([^/]+)/last\.ckpt$")

    def point(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {key: point(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [point(inner) for inner in item]
        match = pattern.match(item) if isinstance(item, str) else None
        if not match:
            return item
        found[match[1]] = None
        return f"checkpoints/{plan.home}/seed{seed}/{match[1]}/last.ckpt"

    return point(value), tuple(found)


def merged(base: Config, more: Config) -> Config:
    """``more`` over ``base``, dicts entry by entry; another class or {} takes none of the former one's."""
    if "class_path" in more and more["class_path"] != base.get("class_path", more["class_path"]):
        return dict(more)
    result = dict(base)
    for key, value in more.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if value and isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def fingerprints(made: list[Job]) -> dict[str, str]:
    """Name -> hash of all that decides what a job makes, that of the jobs before it included."""
    found: dict[str, str] = {}
    for job in made:
        facts = [job.command, job.config, job.arguments, [found[name] for name in job.needs]]
        found[job.name] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return found
