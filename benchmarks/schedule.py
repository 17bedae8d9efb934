"""Run jobs two at a time, one thread each; what was done stays done."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.jobs import Queue, Work
from benchmarks.plan import Job, fingerprints

REPORT = 60.0  # seconds between two lines about what is at work


@dataclass
class Running(Work):
    """A job at work, and its log."""

    log: Path = Path()


def stamp(job: Job) -> Path:
    """File beside a product that says which configuration made it, and in how many seconds."""
    return job.product.parent / "benchmark.stamp"


def done(job: Job, fingerprint: str) -> bool:
    """Whether the product is there, complete and made by this very configuration."""
    mark = stamp(job)
    return job.product.is_file() and mark.is_file() and mark.read_text().split()[0] == fingerprint


def seconds(job: Job) -> float:
    """What a finished job took."""
    return float(stamp(job).read_text().split()[1])


class Schedule(Queue[Running]):
    """All jobs of a benchmark.

    Args:
        made: In an order in which they could be run.
        logs: Folder of their configurations and logs.
        processes: How many at once.
        program: Takes a job's command, ``--config=FILE`` and its arguments.
    """

    def __init__(
        self,
        made: list[Job],
        logs: Path,
        processes: int = 2,
        program: Sequence[str] = (sys.executable, "-m", "segcft"),
    ) -> None:
        super().__init__({job.name: job.needs for job in made}, processes)
        self.program, self.jobs, self.logs = program, {job.name: job for job in made}, logs
        self.fingerprints, self._reported = fingerprints(made), time.monotonic()
        self.waiting = [job.name for job in made if not done(job, self.fingerprints[job.name])]

    def plan(self) -> str:
        """A line a job: done or to run, and what it waits for."""
        lines = []
        for name, job in self.jobs.items():
            state = "run " if name in self.waiting else "done"
            after = f"  after {', '.join(job.needs)}" if job.needs else ""
            lines.append(f"{state} {name}{after}")
        return "\n".join(lines)

    def run(self, poll: float = 0.5) -> None:
        """Until all is done.

        Raises:
            ValueError: If a job failed; the others at work are finished first, and count.
        """
        if failed := self.drain(poll):
            raise ValueError(f"{failed[0]} failed: see {self.logs / failed[0]}.log; run again to go on")

    def start(self, name: str) -> Running:
        """Start a job; no product has its stamp until it is whole."""
        job = self.jobs[name]
        config, log = self.logs / f"{name}.yaml", self.logs / f"{name}.log"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(job.config, sort_keys=False))
        stamp(job).unlink(missing_ok=True)
        command = [*self.program, job.command, f"--config={config}", *job.arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        return Running(process, log=log)

    def end(self, name: str, work: Running) -> bool:
        """Stamp the product, if there is one to stamp."""
        job, spent = self.jobs[name], work.spent
        if work.process.returncode or not job.product.is_file():
            self._show(f"{name} FAILED after {spent:.0f} s:\n{_tail(work.log, 12)}")
            return False
        stamp(job).write_text(f"{self.fingerprints[name]} {spent:.1f}\n")
        self._show(f"{name} took {spent:.0f} s")
        return True

    def look(self) -> None:
        """Every minute, say what is at work."""
        if self.working and time.monotonic() - self._reported > REPORT:
            self._reported = time.monotonic()
            self._show("at work: " + ", ".join(f"{name} {self._last(name)}" for name in self.working))

    def left(self) -> float | None:
        """Seconds until all is done, guessed from the same stage of other seeds; None while nothing is known."""
        known: dict[str, list[float]] = {}
        for name, job in self.jobs.items():
            if name not in self.waiting and name not in self.working and stamp(job).is_file():
                known.setdefault(job.stage, []).append(seconds(job))
        if not known:
            return None
        every = [spent for spents in known.values() for spent in spents]
        usual = sum(every) / len(every)
        total = 0.0
        for name in (*self.waiting, *self.working):
            same = known.get(self.jobs[name].stage, [usual])
            begun = self.working[name].spent if name in self.working else 0.0
            total += max(0.0, sum(same) / len(same) - begun)
        return total / self.processes

    def _show(self, text: str) -> None:
        finished, left = len(self.jobs) - len(self.waiting) - len(self.working), self.left()
        guess = "" if left is None else f", about {left / 60:.0f} min left"
        print(f"[{finished}/{len(self.jobs)}{guess}] {text}", file=sys.stderr, flush=True)

    def _last(self, name: str) -> str:
        line = _tail(self.working[name].log, 1).split()
        return next((word for word in line if "/" in word and word.replace("/", "").isdigit()), "")


def _tail(path: Path, lines: int) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
