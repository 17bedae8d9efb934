"""Checkpoints during training: written atomically, at intervals and on the signals that job schedulers send."""

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
from segcft.core import checkpoints, distributed
from segcft.core.atomic_files import staged
from segcft.core.folder_lock import Lock
from segcft.core.interruption import Interrupted

log = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically, and keeps the previous one as ``previous.ckpt``.

    If writing fails, for instance because the disk is full, the last checkpoint stays intact and training continues.

    Weights that are not finite stop the training, and so does another process that took over the folder.

    Args:
        lock: Of the folder, if it is held.

    Attributes:
        failed: Error of the latest attempt; None if it succeeded.
    """

    def __init__(self, lock: Lock | None = None) -> None:
        self.lock = lock
        self.failed: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to a temporary file, then rename it."""
        path, self.failed = Path(path), None
        if self.lock is not None:
            self.lock.check()
        checkpoints.refuse_not_finite(checkpoint.get("state_dict", {}), f"the model, {path} is kept as it was,")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with staged(path) as temporary:
                torch.save(checkpoint, temporary)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                if path.name == LAST and path.exists():
                    with staged(path.with_name(PREVIOUS)) as former:
                        _link(path, former)
        except (OSError, RuntimeError) as error:  # RuntimeError comes from torch's writer
            self.failed = f"{path} could not be written: {error}".splitlines()[0]
            log.warning("%s; the previous checkpoint is intact, training continues", self.failed)


class IntervalCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt`` after every epoch and every few minutes, and on SIGTERM or SIGUSR1 saves and stops.

    Within an epoch it saves only between optimiser steps, where the data loader can resume; otherwise at the end of the
    epoch. With several processes, they agree every ``every`` steps on whether to save.

    Args:
        folder: Folder of the stage's checkpoints.
        minutes: Minutes between checkpoints within an epoch.
        run: The run, whose number is stored in every checkpoint.
        every: Steps between agreements of several processes.
    """

    def __init__(self, folder: str, minutes: float, run: Run, every: int = 10) -> None:
        # after every epoch, with or without validation: the next stage reads the last checkpoint
        super().__init__(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.minutes, self.run, self.every = minutes, run, every
        self._saved, self._asked = time.monotonic(), False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Mark the run as unfinished, once every process has looked for an earlier one."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        trainer.strategy.barrier("resume")
        if trainer.is_global_zero:
            folder = Path(str(self.dirpath))
            version = getattr(trainer.logger, "version", None)
            Run(self.run.number, self.run.configuration, version).mark(folder)
            for left in folder.glob(".*.part"):  # left by a process that was killed while writing
                left.unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and install signal handlers; Lightning's would stop without saving."""
        super().on_train_start(trainer, pl_module)
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._hear)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the number of the run in its checkpoint."""
        checkpoint["run"] = self.run.number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is due and training can be resumed from this step."""
        alone = trainer.world_size == 1
        if not _between_steps(trainer) or not (alone or trainer.global_step % self.every == 0):
            return
        due = self._asked or time.monotonic() - self._saved >= 60 * self.minutes
        if distributed.any_of(due, pl_module.device):
            self._keep(trainer)
            self._stop_if_asked(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and stop if a signal asked for it, unless training ends here anyway."""
        if isinstance(trainer.train_dataloader, TrainingLoader):
            trainer.train_dataloader.finish_epoch()
        super().on_train_epoch_end(trainer, pl_module)
        self._saved = time.monotonic()
        if not _over(trainer):
            self._stop_if_asked(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fail if the last checkpoint could not be written.

        Raises:
            OSError: With the error of the last attempt.
        """
        super().on_train_end(trainer, pl_module)
        failed = getattr(trainer.strategy.checkpoint_io, "failed", None)
        if failed:
            raise OSError(failed)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the mark of an unfinished run and ``previous.ckpt``."""
        if trainer.is_global_zero:
            for name in (MARK, PREVIOUS):
                (Path(str(self.dirpath)) / name).unlink(missing_ok=True)

    def _keep(self, trainer: Trainer) -> None:
        self._save_checkpoint(trainer, str(Path(str(self.dirpath)) / LAST))
        self._saved = time.monotonic()

    def _stop_if_asked(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if distributed.any_of(self._asked, pl_module.device):
            raise Interrupted(f"asked to stop, saved at step {trainer.global_step}: run the same command to resume")

    def _hear(self, number: int, frame: Any) -> None:
        self._asked = True


def _between_steps(trainer: Trainer) -> bool:
    """Whether no gradients are being accumulated, the epoch continues and no validation comes before the next step."""
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
    """Create a hard link to a file, or a copy if the file system has no hard links."""
    try:
        os.link(path, copy)
    except OSError:
        shutil.copyfile(path, copy)
