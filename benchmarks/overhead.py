"""What the Trainer and the default callbacks cost a training step, against a plain loop over the same batches.

    .venv/bin/python -m benchmarks.overhead --rounds 20

Three runs of the demo's pretraining take turns on the CPU: a plain loop (read, abduct, backward, clip, AdamW, average),
Lightning's Trainer around the same, and ``segcft fit`` with everything it adds (TensorBoard every 10 steps, guard,
pictures, checkpoints). Each is a thread, and takes a step while the others wait: what disturbs the machine disturbs all
three. Compared are CPU seconds of ten steps, one of them logged.
"""

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from benchmarks.clock import ratio
from data_modules.chest_phantom import ChestPhantom
from segcft.callbacks.ema import EMA, Average
from segcft.cli import cpu
from segcft.cli.main import main as segcft
from segcft.core.recipes import build
from segcft.hvae.hvae import HVAE
from segcft.hvae.stages import Stage
from segcft.study.plan import configuration, single
from segcft.tasks import PretrainHVAE
from segcft.tasks.base import Optimisation

EXPERIMENT = Path(__file__).resolve().parents[1] / "experiments/chest_phantom"
WINDOW = 10  # steps, as many as between two that are logged


class Turns:
    """Threads of which one moves at a time: a step, then the next."""

    def __init__(self) -> None:
        self._ring: list[str] = []
        self._gates: dict[str, threading.Semaphore] = {}
        self._spent: dict[str, list[float]] = {}
        self._began = 0.0

    def all(self, runs: Mapping[str, Callable[[], None]]) -> dict[str, list[float]]:
        """CPU seconds a step of every run: means of ten, after the first ten, which warm up.

        The last run has the thread that asks: one that listens to signals has to have the main one.
        """
        self._ring = list(runs)
        self._gates = {name: threading.Semaphore(0) for name in runs}
        self._spent = {name: [] for name in runs}
        *others, last = runs
        with ThreadPoolExecutor(len(runs)) as pool:
            begun = [pool.submit(self._run, name, runs[name]) for name in others]
            self._gates[self._ring[0]].release()
            self._run(last, runs[last])
            for each in begun:
                each.result()
        edges = range(WINDOW + 1, len(self._spent[last]), WINDOW)  # what precedes the first step is no step
        return {
            name: [statistics.mean(spent[edge : edge + WINDOW]) for edge in edges]
            for name, spent in self._spent.items()
        }

    def step(self) -> None:
        """A step of the run whose turn it is begins, once all others have taken theirs."""
        name = self._ring.pop(0)
        self._spent[name].append(time.process_time() - self._began)
        self._ring.append(name)
        self._gates[self._ring[0]].release()
        self._wait(name)

    def _wait(self, name: str) -> None:
        self._gates[name].acquire()
        self._began = time.process_time()

    def _run(self, name: str, run: Callable[[], None]) -> None:
        self._wait(name)
        torch.set_num_threads(1)
        cpu.hasten()
        torch.manual_seed(0)
        try:
            run()
        finally:
            self._ring.remove(name)
            if self._ring:
                self._gates[self._ring[0]].release()


TURNS = Turns()


class Laps(Callback):
    """Tells when a step begins."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take turns."""
        TURNS.step()


class Runs:
    """The same pretraining three times over.

    Args:
        size: Pixels along a side: the demo's 64, or 16 for a test.
        batch_size: Images a step.
        steps: Of every run: one epoch.
    """

    def __init__(self, size: int, batch_size: int, steps: int) -> None:
        self.steps = steps
        self.counts = {"train": steps * batch_size, "val": batch_size, "test": batch_size}
        self.data = ChestPhantom(size=size, subjects=self.counts, batch_size=batch_size)
        config = yaml.safe_load((EXPERIMENT / "pretrain.yaml").read_text())
        hvae = config["model"]["init_args"]["hvae"]["init_args"]
        self.stages = [Stage(**stage) for stage in hvae["stages"]]
        self.likelihood = hvae["likelihood"]

    def _task(self) -> PretrainHVAE:
        hvae = partial(HVAE, stages=self.stages, likelihood=build(self.likelihood))
        choice = Optimisation(lr=2e-3)
        return PretrainHVAE(self.data.description, hvae, optimisation=choice, frame=self.data.frame)

    def loop(self) -> None:
        """Without Lightning."""
        task = self._task()
        model, choice = task.model.to(memory_format=torch.channels_last), task.optimisation
        learning = list(task.parameters())
        optimiser = choice.optimiser(weight for weight in learning if weight.requires_grad)
        average = Average(task, 0.99)
        for batch in self.data.train_dataloader():
            TURNS.step()
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
        limits = {"trainer": {"max_steps": self.steps, "limit_val_batches": 0, "accelerator": "cpu"}}
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path("here.yaml").write_text(yaml.safe_dump({"data": {"init_args": given}, **limits}))
            config, _ = configuration(single(EXPERIMENT, ("pretrain",), (), "test", Path("results")), None, "pretrain")
            Path("stage.yaml").write_text(yaml.safe_dump(config))
            names = ["stage.yaml", "here.yaml"]
            laps = "--trainer.callbacks+=benchmarks.overhead.Laps"
            status = segcft(
                ["fit", *(f"--config={name}" for name in names), laps, "--trust=benchmarks", "--resume=never"]
            )
        if status:
            raise SystemExit(f"segcft fit ended with status {status}")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of ten steps of each")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args(given)
    runs = Runs(options.size, options.batch_size, WINDOW * (options.rounds + 1) + 1)
    spent = TURNS.all({"loop": runs.loop, "Trainer": runs.trainer, "segcft fit": runs.fit})
    print("| run | CPU ms a step (range) | over the loop | over the Trainer |\n|---|---|---|---|")
    for name, seconds in spent.items():
        shown = [f"{1000 * statistics.median(seconds):.2f} ({1000 * min(seconds):.2f}-{1000 * max(seconds):.2f})"]
        for base in ("loop", "Trainer"):
            paired = ratio(seconds, spent[base])
            shown.append("" if name in ("loop", base) else f"{paired[0] - 1:+.1%} (minima {paired[3] - 1:+.1%})")
        print(f"| {name} | {' | '.join(shown)} |")


if __name__ == "__main__":
    from benchmarks import overhead  # whose Laps and TURNS the command line imports

    overhead.main()
