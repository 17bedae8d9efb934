"""What happens around training: progress towards the last step, and files of predictions."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, WeightAveraging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segcft.files import staged
from segcft.tasks.base import Task
from segcft.tasks.sharding import held

TERMS = {f"train/{name}" for name in ("loss", "nelbo", "guidance", "shape", "change")}


class StepProgress(Callback):
    """Progress over the whole run: a bar in a terminal, ten lines in a file; terms of the loss, pace, and time left."""

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
        """The first batch may have had to be drawn or decoded: count from here."""
        if math.isnan(self._started):
            self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show progress at every tenth, or every per cent in a terminal; the only time a metric is read."""
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
        """Leave the bar as it is."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def numbers(trainer: Trainer) -> list[str]:
    """Terms of the training loss when a logger last looked, and what each stage is judged by in validation."""
    terms = {name: float(value) for name, value in trainer.callback_metrics.items() if name in TERMS}
    shown = {**terms, **trainer.progress_bar_metrics}
    return [f"{name} {shown[name]:.3f}" for name in sorted(shown)]


def _places(ours: nn.Module, theirs: nn.Module) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Where weights and buffers hang, for others may be put there."""
    seen = set()
    for one, other in zip(ours.modules(), theirs.modules(), strict=True):
        for kind in ("_parameters", "_buffers"):
            for name, value in getattr(other, kind).items():
                if value is not None and id(value) not in seen:
                    seen.add(id(value))
                    yield getattr(one, kind), getattr(other, kind), name


def _stage(module: LightningModule) -> str:
    return module.stage if isinstance(module, Task) else type(module).__name__


def _terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Average(AveragedModel):
    """An exponential moving average of all weights at one go, which looks up once where they are.

    Args:
        model: Whose weights and buffers to average.
        decay: Share of the average that a step keeps, in [0, 1].
        device: Where to keep it; that of the model, unless each step is to wait for a transfer.
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device | None = None) -> None:
        super().__init__(model, device, use_buffers=True)  # type: ignore[no-untyped-call]
        self._average: Callable[..., None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._places: list[tuple[dict[str, Any], dict[str, Any], str]] = []  # of the average, of the model, a name

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """As ``AveragedModel``: the first time a copy."""
        first = not self._places and self.n_averaged == 0
        self._places = self._places or list(_places(self.module, model))
        pairs = [(ours[name], theirs[name]) for ours, theirs, name in self._places]
        for average, value in pairs if first else ():
            average.copy_(value)
        for floating in () if first else (True, False):
            chosen = [pair for pair in pairs if pair[0].is_floating_point() == floating]
            if chosen:
                self._average(*map(held, zip(*chosen, strict=True)), self.n_averaged)
        self.n_averaged += 1


class EMA(WeightAveraging):
    """The exponential moving average of Lightning's ``EMAWeightAveraging``, cheaper.

    Args:
        decay: Share of the average that a step keeps, in [0, 1].
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the model to the device where it will be."""
        if stage == "fit":
            self._average_model = Average(pl_module, self.decay, trainer.strategy.root_device)


class PredictionFiles(BasePredictionWriter):
    """``segcft predict``: every batch as one file of tensors, opened by ``torch.load(path, weights_only=True)``.

    Args:
        folder: Where to write ``RANK-BATCH.pt``.
    """

    def __init__(self, folder: str) -> None:
        super().__init__("batch")
        self.folder = Path(folder)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with staged(self.folder / f"{trainer.global_rank}-{batch_idx:05d}.pt") as path:
            torch.save({name: value.cpu() for name, value in prediction.items()}, path)
