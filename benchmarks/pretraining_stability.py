"""Does pretraining diverge? The first steps of experiments' own schedules, with other seeds, rates and optimisers.

    python -m benchmarks.pretraining_stability chest_phantom chexpert:size_128 --set half:lr=x0.5,beta2=0.95

EXPERIMENT pretrains as ``segcft study EXPERIMENT`` does, EXPERIMENT:DECLARATION as its declaration says. Of
``--set NAME:KEY=VALUE,...`` entries replace those of ``optimisation``, among them ``lr`` (``lr=x2`` doubles it);
``gradient_clip_val`` and ``precision`` are the trainer's. All see the same subjects in the same order.

A training counts as diverged if its NELBO, smoothed over 20 steps, rises after step 60 by more than half a nat per
dimension above the best so far, or is not finite. Writes OUT.csv, one line per training, OUT.md and OUT.json, which
holds every step, and goes on from it.
"""

import argparse
import csv
import json
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from data_modules.common.data_module import DataModule
from segcft.callbacks.training_health import StepGuard
from segcft.study import plan
from segcft.study.experiment import Config, located, merged
from segcft.tasks import Task

SMOOTH, LEARNT, RISE, LAST = 20, 60, 0.5, 30  # steps; steps; nats per dimension; steps
TRAINER = ("gradient_clip_val", "precision")  # what a set-up may change that is not of the optimisation


class Course(NamedTuple):
    """One training: its NELBO and its gradient's norm, before clipping, at every step."""

    recipe: str
    setup: str
    seed: int
    seconds: float
    nelbo: list[float]
    norm: list[float]

    @property
    def smooth(self) -> list[float]:
        """Means of the last ``SMOOTH`` steps."""
        return [statistics.fmean(self.nelbo[max(0, end - SMOOTH) : end]) for end in range(1, len(self.nelbo) + 1)]

    @property
    def rise(self) -> float:
        """How far above its best the smoothed NELBO once was, after step ``LEARNT``."""
        best, worst = math.inf, 0.0
        for value in self.smooth[LEARNT:]:
            if not math.isfinite(value):
                return math.inf
            best = min(best, value)
            worst = max(worst, value - best)
        return worst

    @property
    def diverged(self) -> bool:
        """Whether that is too far."""
        return self.rise > RISE

    @property
    def reached(self) -> float:
        """Mean NELBO of the last steps."""
        return statistics.fmean(self.nelbo[-LAST:])

    @property
    def steepest(self) -> float:
        """Largest norm since step ``LEARNT``."""
        return max(self.norm[LEARNT:], default=math.nan)


class Trace(Callback):
    """Notes what a course holds, and stops early: the schedule is that of the whole training."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.nelbo: list[float] = []
        self.norm: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Before clipping."""
        gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
        self.norm.append(float(torch.nn.utils.get_total_norm(gradients)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done."""
        self.nelbo.append(float(trainer.callback_metrics["train/nelbo"]))
        trainer.should_stop = len(self.nelbo) >= self.steps


def recipe(name: str, data: list[str]) -> Config:
    """What an experiment pretrains with; ``data`` are options such as ``chexpert.root=...``."""
    experiment, _, declaration = name.partition(":")
    folder, here = located(experiment), Path("results")
    if declaration:
        chosen = plan.study(folder, (0,), (), "val", here, declaration=declaration)
    else:
        chosen = plan.single(folder, ("pretrain",), (), "val", here)
    config, _ = plan.configuration(chosen, chosen.seeds[0], "pretrain")
    for option in data:
        key, _, value = option.partition("=")
        chosen_experiment, *path = key.split(".")
        if chosen_experiment == experiment:
            place = config["data"]["init_args"]
            for step in path[:-1]:
                place = place[step]["init_args"]
            place[path[-1]] = yaml.safe_load(value)
    return config


def changed(config: Config, changes: str) -> Config:
    """Entries of its optimisation replaced."""
    model, trainer = config["model"]["init_args"], dict(config["trainer"])
    optimisation = dict(model.get("optimisation") or {})
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        factor = float(value[1:]) * optimisation["lr"] if value.startswith("x") else yaml.safe_load(value)
        (trainer if key in TRAINER else optimisation)[key] = factor
    return merged(config, {"model": {"init_args": {"optimisation": optimisation}}}) | {"trainer": trainer}


def train(name: str, setup: str, config: Config, seed: int, steps: int) -> Course:
    """Its first steps."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(DataModule, "data", required=True)
    parser.add_subclass_arguments(Task, "model", required=True)
    parser.link_arguments("data.description", "model.init_args.description", apply_on="instantiate")
    settings = config["trainer"]
    seed_everything(seed, verbose=False)
    built = parser.instantiate_classes(parser.parse_object({key: config[key] for key in ("data", "model")}))
    trace = Trace(steps)
    trainer = Trainer(
        max_steps=settings["max_steps"],
        gradient_clip_val=settings.get("gradient_clip_val"),
        precision=settings.get("precision"),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
        accelerator="cpu",
        callbacks=[trace, StepGuard()],
    )
    started = time.monotonic()
    try:
        trainer.fit(built["model"], built["data"])
    except ValueError as error:  # the guard gave up
        print(f"{name} {setup} seed {seed}: {error}", flush=True)
        trace.nelbo.append(math.nan)
    return Course(name, setup, seed, round(time.monotonic() - started, 1), trace.nelbo, trace.norm)


def table(courses: list[Course]) -> str:
    """A line a recipe and set-up."""
    lines = [
        "| recipe | set-up | diverged | NELBO reached | largest rise | largest norm after step 60 |",
        "|---|---|---|---|---|---|",
    ]
    for recipe_, setup in dict.fromkeys((course.recipe, course.setup) for course in courses):
        here = [course for course in courses if (course.recipe, course.setup) == (recipe_, setup)]
        reached = " ".join(f"{course.reached:.3f}" for course in here)
        rise, steep = max(course.rise for course in here), max(course.steepest for course in here)
        count = sum(course.diverged for course in here)
        lines.append(f"| {recipe_} | {setup} | {count} of {len(here)} | {reached} | {rise:.2f} | {steep:.3g} |")
    return "\n".join(lines) + "\n"


def write(courses: list[Course], out: Path) -> None:
    """All files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(table(courses))
    out.with_suffix(".json").write_text(json.dumps([course._asdict() for course in courses]))
    with out.with_suffix(".csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["recipe", "setup", "seed", "diverged", "reached", "rise", "steepest", "seconds"])
        for one in courses:
            rows.writerow([*one[:3], one.diverged, one.reached, one.rise, one.steepest, one.seconds])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--set", action="append", dest="setups", help="NAME:KEY=VALUE,...; as shipped by default")
    parser.add_argument("--data", action="append", default=[], help="EXPERIMENT.KEY=VALUE, of the data module")
    parser.add_argument("--out", type=Path, default=Path("build/pretraining_stability"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    file = options.out.with_suffix(".json")
    courses = [Course(**one) for one in json.loads(file.read_text())] if file.is_file() else []
    done = {(one.recipe, one.setup, one.seed) for one in courses}
    for name in options.recipes:
        for seed in options.seeds:
            for given in options.setups or ["shipped:"]:
                setup, _, changes = given.partition(":")
                if (name, setup, seed) in done:
                    continue
                config = changed(recipe(name, options.data), changes)
                one = train(name, setup, config, seed, options.steps)
                courses.append(one)
                write(courses, options.out)
                told = f"{name} {setup} seed {seed}: {one.reached:.3f}, rise {one.rise:.2f}, norm {one.steepest:.3g}"
                print(f"{told}, {one.seconds:.0f} s{', DIVERGED' if one.diverged else ''}", flush=True)
    print(table(courses))


if __name__ == "__main__":
    main()
