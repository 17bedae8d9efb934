"""Keep what a run has learnt: whole checkpoints, often enough, and at the signals that schedulers send."""

import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from data_modules.common.loaders import TrainingLoader
from segcft.callbacks.resume import LAST, MARK, PREVIOUS, Run
from segcft.core import distributed
from segcft.core.atomic_files import staged
from segcft.core.interruption import Interrupted

log = logging.getLogger(__name__)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and keeps the one before it as ``previous.ckpt``.

    A disk that is full leaves the former checkpoint as it was, and training goes on: there may be room next time.

    Attributes:
        failed: What went wrong with the latest checkpoint; None if it was written.
    """

    def __init__(self) -> None:
        self.failed: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside it, then rename."""
        path, self.failed = Path(path), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with staged(path) as temporary:
                torch.save(checkpoint, temporary)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                if path.name == LAST and path.exists():
                    with staged(path.with_name(PREVIOUS)) as former:
                        _link(path, former)
        except (OSError, RuntimeError) as error:  # torch's writer raises the second
            self.failed = f"{path} could not be written: {error}".splitlines()[0]
            log.warning("%s; the former one is whole, training goes on", self.failed)


class Keep(ModelCheckpoint):
    """Saves ``last.ckpt`` after every epoch, every few minutes and at SIGTERM and SIGUSR1, after which it stops.

    It saves between two optimiser steps of an epoch, where a loader can go on, or at the end of the epoch; at a signal
    that comes later in an epoch, after it. Several processes ask each other every ``every`` steps.

    Args:
        folder: Of the stage's checkpoints.
        minutes: Between two checkpoints within an epoch.
        run: What is being trained.
        every: Steps after which several processes ask each other.
    """

    def __init__(self, folder: str, minutes: float, run: Run, every: int = 10) -> None:
        # after every epoch, whether validated or not: the last one is what the next stage reads
        super().__init__(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.minutes, self.run, self.every = minutes, run, every
        self._saved, self._asked = time.monotonic(), False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say that this run is at work, once every process has seen what lay there before."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        trainer.strategy.barrier("resume")
        if trainer.is_global_zero:
            folder = Path(str(self.dirpath))
            version = getattr(trainer.logger, "version", None)
            Run(self.run.number, self.run.configuration, version).mark(folder)
            for left in folder.glob(".*.part"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and listen to signals instead of Lightning, which would stop without having saved."""
        super().on_train_start(trainer, pl_module)
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._hear)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Whose it is."""
        checkpoint["run"] = self.run.number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time and training could go on from here."""
        alone = trainer.world_size == 1
        if not _between_steps(trainer) or not (alone or trainer.global_step % self.every == 0):
            return
        due = self._asked or time.monotonic() - self._saved >= 60 * self.minutes
        if distributed.any_of(due, pl_module.device):
            self._keep(trainer)
            self._stop_if_asked(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and stop if asked and not at the end anyway."""
        if isinstance(trainer.train_dataloader, TrainingLoader):
            trainer.train_dataloader.finish_epoch()
        super().on_train_epoch_end(trainer, pl_module)
        self._saved = time.monotonic()
        if not _over(trainer):
            self._stop_if_asked(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run whose last checkpoint was not written has not finished.

        Raises:
            OSError: If so.
        """
        super().on_train_end(trainer, pl_module)
        failed = getattr(trainer.strategy.checkpoint_io, "failed", None)
        if failed:
            raise OSError(failed)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to go on with."""
        if trainer.is_global_zero:
            for name in (MARK, PREVIOUS):
                (Path(str(self.dirpath)) / name).unlink(missing_ok=True)

    def _keep(self, trainer: Trainer) -> None:
        self._save_checkpoint(trainer, str(Path(str(self.dirpath)) / LAST))
        self._saved = time.monotonic()

    def _stop_if_asked(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if distributed.any_of(self._asked, pl_module.device):
            raise Interrupted(f"asked to stop, saved at step {trainer.global_step}: the same command goes on there")

    def _hear(self, number: int, frame: Any) -> None:
        self._asked = True


def _between_steps(trainer: Trainer) -> bool:
    """Whether no gradients are gathered, the epoch goes on, and nothing is validated before it does."""
    loop = trainer.fit_loop.epoch_loop
    ready, interval = loop.batch_progress.current.ready, trainer.val_check_batch
    validates = isinstance(interval, int) and ready % interval == 0 and trainer.enable_validation
    return not (loop._should_accumulate() or loop._num_ready_batches_reached() or validates or _over(trainer))


def _over(trainer: Trainer) -> bool:
    """Whether this was the last step or epoch."""
    steps = trainer.max_steps is not None and 0 <= trainer.max_steps <= trainer.global_step
    epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
    return steps or trainer.should_stop or (epochs and trainer.fit_loop.epoch_loop._num_ready_batches_reached())


def _link(path: Path, copy: Path) -> None:
    """Another name for the same file; a copy where the file system knows no such thing."""
    try:
        os.link(path, copy)
    except OSError:
        shutil.copyfile(path, copy)
