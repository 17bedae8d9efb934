"""Writes the output of ``segcft predict`` to files."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from segcft.core.atomic_files import staged


class PredictionFiles(BasePredictionWriter):
    """Writes every predicted batch as one file of tensors, to be read by ``torch.load(path, weights_only=True)``.

    Args:
        folder: Output folder; files are called ``RANK-BATCH.pt``.
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
        """Write one batch atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with staged(self.folder / f"{trainer.global_rank}-{batch_idx:05d}.pt") as path:
            torch.save({name: value.cpu() for name, value in prediction.items()}, path)
