"""What happens around training: progress towards the last step, and files of predictions."""

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from segcft.files import staged
from segcft.tasks.base import Task
from segcft.tasks.sharding import held


class StepProgress(Callback):
    """Progress over the whole run with an estimate of the time left: a bar in a terminal, ten lines in a file."""

    def __init__(self) -> None:
        self._started, self._first_step, self._shown = math.nan, 0, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started, self._first_step, self._shown = math.nan, trainer.global_step, -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The first batch may have had to be drawn or decoded: count from here."""
        if math.isnan(self._started):
            self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show progress at every tenth, or every per cent in a terminal; the only time a metric is read."""
        steps, done = int(trainer.estimated_stepping_batches), trainer.global_step
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        mark = done * (100 if terminal else 10) // max(1, steps)
        if not trainer.is_global_zero or mark == self._shown:
            return
        self._shown = mark
        spent = time.monotonic() - self._started
        left = spent / max(1, done - self._first_step) * (steps - done)
        numbers = "  ".join(
            f"{name} {float(value):.3f}" for name, value in sorted(trainer.progress_bar_metrics.items())
        )
        stage = pl_module.stage if isinstance(pl_module, Task) else type(pl_module).__name__
        line = f"{stage:>10} {done:>6}/{steps}  {spent:5.0f} s spent {left:5.0f} s left  {numbers}"
        print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal and done < steps else "\n", file=sys.stderr)


class EMA(WeightAveraging):
    """The exponential moving average of Lightning's ``EMAWeightAveraging``, of all weights at one go.

    Args:
        decay: Share of the average that a step keeps, in [0, 1].
    """

    def __init__(self, decay: float = 0.999) -> None:
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(multi_avg_fn=lambda old, new, count: average(held(old), held(new), count))


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
