"""Jobs in processes of their own, a few at a time, each once what it needs is done."""

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar


@dataclass
class Work:
    """A job at work."""

    process: subprocess.Popen[Any]
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds."""
        return time.monotonic() - self.started


AtWork = TypeVar("AtWork", bound=Work)


class Queue(ABC, Generic[AtWork]):
    """What waits, and what is at work.

    Args:
        needs: Name of a job -> those that it waits for, in an order in which they could be run.
        processes: How many at once.
    """

    def __init__(self, needs: Mapping[str, Sequence[str]], processes: int) -> None:
        self.needs, self.processes = needs, processes
        self.waiting = list(needs)
        self.working: dict[str, AtWork] = {}

    @abstractmethod
    def start(self, name: str) -> AtWork:
        """Start a job."""

    @abstractmethod
    def end(self, name: str, work: AtWork) -> bool:
        """A process has ended: whether the job is done."""

    def look(self) -> None:
        """Whenever processes were looked at."""

    def drain(self, poll: float) -> list[str]:
        """Until all is done, or one has failed and the others at work have ended; the names of those that failed."""
        failed: list[str] = []
        try:
            while self.working or (self.waiting and not failed):
                while not failed and len(self.working) < self.processes and (name := self._ready()):
                    self.waiting.remove(name)
                    self.working[name] = self.start(name)
                time.sleep(poll)
                for name in [name for name, work in self.working.items() if work.process.poll() is not None]:
                    failed += [] if self.end(name, self.working.pop(name)) else [name]
                self.look()
        finally:  # interrupted
            for work in self.working.values():
                work.process.terminate()
                work.process.wait()
        return failed

    def _ready(self) -> str | None:
        busy = {*self.waiting, *self.working}
        return next((name for name in self.waiting if not busy.intersection(self.needs[name])), None)
