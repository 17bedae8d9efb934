"""Run jobs two at a time, one thread each; what was done stays done."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.plan import Job, fingerprints


@dataclass
class Running:
    """A process, its log and when it started."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float


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


class Schedule:
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
        self.program = program
        self.jobs, self.logs, self.processes = {job.name: job for job in made}, logs, processes
        self.fingerprints = fingerprints(made)
        self.waiting = [job.name for job in made if not done(job, self.fingerprints[job.name])]
        self.running: dict[str, Running] = {}

    def plan(self) -> str:
        """A line a job: done or to run, and what it waits for."""
        lines = []
        for name, job in self.jobs.items():
            state = "run " if name in self.waiting else "done"
            after = f"  after {', '.join(job.needs)}" if job.needs else ""
            lines.append(f"{state} {name}{after}")
        return "\n".join(lines)

    def run(self, poll: float = 0.5, report: float = 60.0) -> None:
        """Until all is done.

        Raises:
            ValueError: If a job failed; the others at work are finished first, and count.
        """
        try:
            failed = self._work(poll, report)
        finally:
            for at_work in self.running.values():  # interrupted
                at_work.process.terminate()
        if failed:
            raise ValueError(f"{failed[0]} failed: see {self.logs / failed[0]}.log; run again to go on")

    def _work(self, poll: float, report: float) -> list[str]:
        """Names of the jobs that failed."""
        failed: list[str] = []
        shown = time.monotonic()
        while self.running or (self.waiting and not failed):
            while len(self.running) < self.processes and not failed and (name := self._ready()):
                self._start(name)
            time.sleep(poll)
            for name in [name for name, at_work in self.running.items() if at_work.process.poll() is not None]:
                failed += self._finish(name)
            if self.running and time.monotonic() - shown > report:
                shown = time.monotonic()
                self._show("at work: " + ", ".join(f"{name} {self._last(name)}" for name in self.running))
        return failed

    def _ready(self) -> str | None:
        busy = {*self.waiting, *self.running}
        return next((name for name in self.waiting if not busy.intersection(self.jobs[name].needs)), None)

    def _start(self, name: str) -> None:
        self.waiting.remove(name)
        job = self.jobs[name]
        config, log = self.logs / f"{name}.yaml", self.logs / f"{name}.log"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(job.config, sort_keys=False))
        stamp(job).unlink(missing_ok=True)
        command = [*self.program, job.command, f"--config={config}", *job.arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        self.running[name] = Running(process, log, time.monotonic())

    def _finish(self, name: str) -> list[str]:
        """Stamp the product; the name if there is none to stamp."""
        at_work, job = self.running.pop(name), self.jobs[name]
        spent = time.monotonic() - at_work.started
        if at_work.process.returncode or not job.product.is_file():
            self._show(f"{name} FAILED after {spent:.0f} s:\n{_tail(at_work.log, 12)}")
            return [name]
        stamp(job).write_text(f"{self.fingerprints[name]} {spent:.1f}\n")
        self._show(f"{name} took {spent:.0f} s")
        return []

    def left(self) -> float | None:
        """Seconds until all is done, guessed from the same stage of other seeds; None while nothing is known."""
        known: dict[str, list[float]] = {}
        for name, job in self.jobs.items():
            if name not in self.waiting and name not in self.running and stamp(job).is_file():
                known.setdefault(job.stage, []).append(seconds(job))
        if not known:
            return None
        every = [spent for spents in known.values() for spent in spents]
        usual = sum(every) / len(every)
        total = 0.0
        for name in (*self.waiting, *self.running):
            same = known.get(self.jobs[name].stage, [usual])
            begun = time.monotonic() - self.running[name].started if name in self.running else 0.0
            total += max(0.0, sum(same) / len(same) - begun)
        return total / self.processes

    def _show(self, text: str) -> None:
        finished, left = len(self.jobs) - len(self.waiting) - len(self.running), self.left()
        guess = "" if left is None else f", about {left / 60:.0f} min left"
        print(f"[{finished}/{len(self.jobs)}{guess}] {text}", file=sys.stderr, flush=True)

    def _last(self, name: str) -> str:
        line = _tail(self.running[name].log, 1).split()
        return next((word for word in line if "/" in word and word.replace("/", "").isdigit()), "")


def _tail(path: Path, lines: int) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
