"""What the Trainer and the default callbacks cost a training step, against a plain loop over the same batches.

    .venv/bin/python -m benchmarks.overhead --rounds 5

Three runs of the demo's pretraining take turns on the CPU: a plain loop (read, abduct, backward, clip, AdamW, average),
Lightning's Trainer around the same, and ``segcft fit`` with everything it adds (TensorBoard every 10 steps, guard,
pictures, checkpoints). Timed are CPU seconds between the starts of steps, ten at a time: one logged step among them.
"""

import argparse
import contextlib
import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from benchmarks.clock import ratio
from data_modules.chest_phantom import ChestPhantom
from segcft.cli import main as segcft
from segcft.hvae import HVAE
from segcft.recipes import build
from segcft.tasks import PretrainHVAE
from segcft.tasks.base import Optimisation
from segcft.tasks.callbacks import EMA, Average

EXPERIMENT = Path(__file__).resolve().parents[1] / "experiments/chest_phantom"
WINDOW = 10  # steps, as many as between two that are logged


class Laps(Callback):
    """CPU seconds a step, by windows; the first one warms up."""

    found: ClassVar[list[float]] = []
    marks: ClassVar[list[float]] = []

    @classmethod
    def mark(cls) -> None:
        """A step begins."""
        cls.marks.append(time.process_time())

    @classmethod
    def take(cls) -> float:
        """Median over the windows, and forget them."""
        edges = cls.marks[WINDOW::WINDOW]
        laps = [(after - before) / WINDOW for before, after in itertools.pairwise(edges)]
        cls.marks.clear()
        return statistics.median(laps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Mark."""
        self.mark()


class Runs:
    """The same pretraining three times over.

    Args:
        size: Pixels along a side: the demo's 64, or 16 for a test.
        batch_size: Images a step.
        steps: Of every run.
        subjects: Phantoms to train on.
    """

    def __init__(self, size: int, batch_size: int, steps: int, subjects: int) -> None:
        self.steps = steps
        self.counts = {"train": subjects, "val": batch_size, "test": batch_size}
        self.data = ChestPhantom(size=size, subjects=self.counts, batch_size=batch_size)
        config = yaml.safe_load((EXPERIMENT / "pretrain.yaml").read_text())
        hvae = config["model"]["init_args"]["hvae"]["init_args"]
        self.stages = [{**stage, "resolution": stage["resolution"] * size // 64} for stage in hvae["stages"]]
        self.likelihood = hvae["likelihood"]

    def _task(self) -> PretrainHVAE:
        def built(*shape: int) -> HVAE:
            names = dict(zip(("spatial_dims", "channels", "parents_dim"), shape, strict=True))
            stages = [{"class_path": "segcft.hvae.Stage", "init_args": stage} for stage in self.stages]
            options = {**names, "stages": stages, "likelihood": self.likelihood}
            made: HVAE = build({"class_path": "segcft.hvae.HVAE", "init_args": options})
            return made

        return PretrainHVAE(self.data.description, built, optimisation=Optimisation(lr=2e-3))

    def loop(self) -> None:
        """Without Lightning."""
        task = self._task()
        model, choice = task.model.to(memory_format=torch.channels_last), task.optimisation
        learning = list(task.parameters())
        optimiser = choice.optimiser(weight for weight in learning if weight.requires_grad)
        average = Average(task, 0.99)
        batches = itertools.chain.from_iterable(iter(self.data.train_dataloader()) for _ in itertools.count())
        for batch in itertools.islice(batches, self.steps):
            Laps.mark()
            optimiser.zero_grad()
            model.abduct(batch["image"], batch).elbo.nelbo(2.0).mean().backward()
            nn.utils.clip_grad_norm_(learning, 100.0)
            optimiser.step()
            average.update_parameters(task)

    def trainer(self) -> None:
        """Lightning's loop alone."""
        bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        callbacks = [EMA(0.99), Laps()]
        options = {"max_steps": self.steps, "gradient_clip_val": 100.0, "limit_val_batches": 0, "accelerator": "cpu"}
        Trainer(**bare, enable_model_summary=False, callbacks=callbacks, **options).fit(self._task(), self.data)

    def fit(self) -> None:
        """``segcft fit`` with its defaults; validation and its pictures come with the epochs, not with the steps."""
        given = {"size": self.data.size, "batch_size": self.data.batch_size, "subjects": self.counts}
        shape = {"model": {"init_args": {"hvae": {"init_args": {"stages": self.stages}}}}}
        limits = {"trainer": {"max_steps": self.steps, "limit_val_batches": 0, "accelerator": "cpu"}}
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path("here.yaml").write_text(yaml.safe_dump({"data": {"init_args": given}, **shape, **limits}))
            names = [str(EXPERIMENT / "data.yaml"), str(EXPERIMENT / "pretrain.yaml"), "here.yaml"]
            laps = "--trainer.callbacks+=benchmarks.overhead.Laps"
            status = segcft(["fit", *(f"--config={name}" for name in names), laps, "--resume=never"])
        if status:
            raise SystemExit(f"segcft fit ended with status {status}")


def measure(runs: Runs, rounds: int) -> dict[str, list[float]]:
    """CPU seconds a step of every kind of run, in alternating rounds after one to warm up."""
    kinds = {"loop": runs.loop, "Trainer": runs.trainer, "segcft fit": runs.fit}
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(rounds + 1):
        for name, run in kinds.items():
            torch.manual_seed(0)
            run()
            seconds = Laps.take()
            if turn:
                spent[name].append(seconds)
    return spent


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=51)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--subjects", type=int, default=640)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    spent = measure(Runs(options.size, options.batch_size, options.steps, options.subjects), options.rounds)
    print("| run | CPU ms a step (range) | over the loop | over the Trainer |\n|---|---|---|---|")
    for name, seconds in spent.items():
        shown = [f"{1000 * statistics.median(seconds):.2f} ({1000 * min(seconds):.2f}-{1000 * max(seconds):.2f})"]
        for base in ("loop", "Trainer"):
            paired = ratio(seconds, spent[base])
            shown.append("" if name in ("loop", base) else f"{paired[0] - 1:+.1%} (minima {paired[3] - 1:+.1%})")
        print(f"| {name} | {' | '.join(shown)} |")
    assert all(math.isfinite(each) for seconds in spent.values() for each in seconds)


if __name__ == "__main__":
    from benchmarks import overhead  # whose Laps the command line imports

    overhead.main()
