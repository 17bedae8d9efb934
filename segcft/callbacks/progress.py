"""Progress display of training: a bar in a terminal, lines in a log file."""

import math
import os
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from segcft.tasks.base import Task

TERMS = {f"train/{name}" for name in ("loss", "nelbo", "guidance", "shape", "change")}


class StepProgress(Callback):
    """Progress over the whole run: loss terms, speed and remaining time, as a bar (terminal) or ten lines (file)."""

    def __init__(self) -> None:
        self._started, self._first_step, self._shown, self._images = math.nan, 0, -1, 0
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started, self._first_step, self._shown, self._images = math.nan, trainer.global_step, -1, 0
        if trainer.is_global_zero and _terminal():
            console = Console(stderr=True)
            told = TextColumn("{task.fields[told]}")
            columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), told)
            self._bar = Progress(*columns, console=console)
            self._bar.add_task(_stage(pl_module), total=int(trainer.estimated_stepping_batches), told="")
            self._bar.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start timing here, since loading the first batch may have included preparing data."""
        if math.isnan(self._started):
            self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show progress every 10 %, in a terminal every 1 %; metrics are read from the device only then."""
        self._images += len(batch["index"]) * trainer.world_size
        steps, done = int(trainer.estimated_stepping_batches), trainer.global_step
        mark = done * (100 if self._bar else 10) // max(1, steps)
        if not trainer.is_global_zero or mark == self._shown:
            return
        self._shown = mark
        spent = time.monotonic() - self._started
        left = spent / max(1, done - self._first_step) * (steps - done)
        pace = f"{self._images / max(spent, 1e-9):.0f} images/s"
        told = f"{spent:5.0f} s spent {left:5.0f} s left  {'  '.join([*numbers(trainer), pace])}"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, told=told, refresh=True)
        else:
            print(f"{_stage(pl_module):>10} {done:>6}/{steps}  {told}", file=sys.stderr)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the progress bar, leaving it visible."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the progress bar."""
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def numbers(trainer: Trainer) -> list[str]:
    """The training loss terms last logged, and the main validation metrics of the stage."""
    terms = {name: float(value) for name, value in trainer.callback_metrics.items() if name in TERMS}
    shown = {**terms, **trainer.progress_bar_metrics}
    return [f"{name} {shown[name]:.3f}" for name in sorted(shown)]


def _stage(module: LightningModule) -> str:
    return module.stage if isinstance(module, Task) else type(module).__name__


def _terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
