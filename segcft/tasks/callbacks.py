"""What happens around training: progress towards the last step, and pictures of what the model believes."""

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from torch import Tensor

from segcft.files import staged
from segcft.interventions import fixed_do
from segcft.tasks.base import Batch, Task


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


class CounterfactualImages(Callback):
    """Factual, reconstruction and counterfactual of the first validation subjects, as an image in TensorBoard.

    Args:
        subjects: Number of subjects.
    """

    def __init__(self, subjects: int = 6) -> None:
        self.subjects = subjects

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first batch; EMA weights are still in place here."""
        writer = getattr(trainer.logger, "experiment", None)
        model = getattr(pl_module, "model", None)
        if batch_idx or model is None or writer is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        few = {name: value[: self.subjects] for name, value in batch.items()}
        answer = model(few["image"], few, fixed_do(few, model.parents.askable), temperature=0.0)
        rows = [few["image"], answer.abduction.pixels.loc, answer.image, answer.image - few["image"]]
        writer.add_image("counterfactuals", _grid(rows), trainer.global_step)


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


def _grid(rows: list[Tensor]) -> Tensor:
    """Rows of (B, C, *S) in [-1, 1] -> one picture (1, height, width) in [0, 1]; volumes show their middle slice."""
    flat = [row[:, 0] if row.dim() == 4 else row[:, 0, row.shape[2] // 2] for row in rows]  # (B, H, W)
    picture = torch.cat([torch.cat(list(row), dim=1) for row in flat], dim=0)
    return (picture.float().clamp(-1, 1)[None] + 1) / 2
