"""Ends a training when one of its processes is stopped, which closes no connection: the others would wait for hours."""

import logging
import os
import signal
import threading
from datetime import timedelta

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.distributed import TCPStore  # type: ignore[attr-defined]

BEAT, SILENCE = 5.0, 45.0  # seconds
OVER = "over"
log = logging.getLogger(__name__)


class StoppedProcesses(Callback):
    """Every process counts in the store by which they met, and ends when another one's count stands still.

    Counting has a thread of its own, so a process that is only slow, in a long validation for instance, is not mistaken
    for one that is stopped. A machine that is lost without a word is noticed, too. The checkpoints are intact, and the
    same command resumes.
    """

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._counts: dict[int, bytes] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin, if there are several processes."""
        if trainer.world_size == 1 or "MASTER_ADDR" not in os.environ:
            return
        self._stopped.clear()
        self._counts = dict.fromkeys(range(trainer.world_size), b"")
        for task in (self._exchange, self._watch):
            threading.Thread(target=task, args=(trainer,), daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nobody needs this process any more."""
        self._stopped.set()

    def _exchange(self, trainer: Trainer) -> None:
        """Count, and read what the others have counted; hangs if the process that keeps the store is stopped."""
        number, rank = 0, trainer.global_rank
        try:
            place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=SILENCE))
            while not self._stopped.is_set():
                number += 1
                store.set(_key(rank), str(number))
                self._counts[rank] = str(number).encode()
                self._stopped.wait(BEAT)
                for other in self._counts.keys() - {rank}:
                    if store.check([_key(other)]):
                        self._counts[other] = store.get(_key(other))
            store.set(_key(rank), OVER)
        except RuntimeError as error:  # the store has ended: so do the connections that the others wait for
            log.debug("processes no longer watch each other: %s", error)
            self._stopped.set()

    def _watch(self, trainer: Trainer) -> None:
        """Look at the counts; time in which this process was itself stopped does not count."""
        before, silent = dict(self._counts), dict.fromkeys(self._counts, 0)
        while not self._stopped.wait(BEAT):
            for rank, count in self._counts.items():
                still = count == before[rank] not in (b"", OVER.encode())
                silent[rank] = silent[rank] + 1 if still else 0
            before = dict(self._counts)
            if lost := [rank for rank, beats in silent.items() if beats * BEAT >= SILENCE]:
                self._end(trainer, lost)

    def _end(self, trainer: Trainer, lost: list[int]) -> None:
        """End the process from this thread: the main one waits within a library."""
        keeper = trainer.global_rank in lost  # the own count stands still if the store does not answer
        which = "process 0, or the one that started it," if keeper else f"process {', '.join(map(str, lost))}"
        log.error(
            "%s has not been heard of for %g s: it was stopped, or its machine was lost. This process (%d) ends; "
            "run the same command to resume", which, SILENCE, trainer.global_rank,
        )  # fmt: skip
        kill = getattr(trainer.strategy.launcher, "kill", None)
        if kill is not None:  # processes that this one has started
            kill(signal.SIGKILL)
        os._exit(1)


def _key(rank: int) -> str:
    return f"segcft/alive/{rank}"
