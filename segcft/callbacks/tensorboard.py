"""TensorBoard's writer, and logging of training speed and memory under the same tags for every stage."""

import math
import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from segcft.tasks.base import Batch, looked_at


def writer(trainer: Trainer) -> SummaryWriter | None:
    """TensorBoard's writer, in the process that logs; None if there is none."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            board: SummaryWriter = logger.experiment
            return board
    return None


class Throughput(Callback):
    """Logs ``pace/images_per_second`` since the last logged step (without validation), and ``pace/memory_gib``."""

    def __init__(self) -> None:
        self._since, self._images, self._due = math.nan, 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since, self._images = time.monotonic(), 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._since -= time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock."""
        self._since += time.monotonic()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note that this batch ends in an optimiser step; with gradient accumulation not every batch does."""
        self._due = looked_at(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log."""
        self._images += len(batch["index"]) * trainer.world_size
        if self._due:
            now = time.monotonic()
            speed = self._images / max(now - self._since, 1e-9)
            numbers = {"pace/images_per_second": speed, "pace/memory_gib": memory(pl_module.device)}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, trainer.global_step)
            self._since, self._images, self._due = now, 0, False


def memory(device: torch.device) -> float:
    """Peak memory in GiB: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
