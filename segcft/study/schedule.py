"""Run stages in processes of their own, a few at a time, one thread each; what was done stays done."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from segcft.core.interruption import AGAIN, Interrupted
from segcft.study.plan import Job, fingerprints

REPORT = 30.0  # seconds between two lines about what is at work
STEP = re.compile(r" (\d+/\d+) .* (\d+) s left")  # of the lines that a stage prints while it trains
STAMP = "study.stamp"
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
NEW = "not made yet"
DOES = {
    "pretrain": "learns what the images look like: the HVAE",
    "evaluator": "learns to judge the results, and guides nothing",
    "regressor": "learns to read sizes off images: the judge of Reg-CFT",
    "segmentor": "learns to outline structures: the judge of Seg-CFT",
    "attributes": "fits how the variables cause each other",
    "regcft": "fine-tunes the HVAE under the regressor",
    "segcft": "fine-tunes the HVAE under the segmentor",
    "nocft": "fine-tunes the HVAE without a judge: the baseline",
    "evaluate": "compares the methods on test subjects",
}
SECONDS = {"pretrain": 350, "evaluator": 225, "regressor": 160, "segmentor": 135, "regcft": 315, "segcft": 235,
           "nocft": 40, "evaluate": 60, "attributes": 30}  # of the chest phantom on one core  # fmt: skip


@dataclass
class Running:
    """A job at work, and its log; it has none if it speaks to the terminal."""

    process: subprocess.Popen[bytes]
    log: Path | None
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds."""
        return time.monotonic() - self.started

    @property
    def said(self) -> str:
        """The last lines of its log."""
        return "" if self.log is None else _tail(self.log, 12)


def stamp(job: Job) -> Path:
    """File beside a product that says which configuration made it, and in how many seconds."""
    return job.product.parent / STAMP


def stamped(job: Job) -> tuple[str, float] | None:
    """What the stamp says: fingerprint and seconds; None if there is no product or no stamp."""
    mark = stamp(job)
    if not job.product.is_file() or not mark.is_file():
        return None
    fingerprint, spent = mark.read_text().split()
    return fingerprint, float(spent)


def seconds(job: Job) -> float:
    """What a finished job took; 0 of one that was made otherwise."""
    found = stamped(job)
    return found[1] if found else 0.0


class Schedule:
    """All jobs of a study.

    A job that was asked for is run if its product is missing or was made by another configuration, its own or of a
    stage before it. One that is only needed is run if its product is missing.

    Args:
        made: In an order in which they could be run.
        logs: Folder of their configurations and logs.
        processes: How many at once. A single job speaks to the terminal and uses all threads.
        program: Takes a job's command, ``--config=FILE`` and its arguments.
        out: Takes the lines to be shown.
    """

    def __init__(
        self,
        made: list[Job],
        logs: Path,
        processes: int = 2,
        program: Sequence[str] = (sys.executable, "-m", "segcft"),
        out: Callable[[str], None] | None = None,
    ) -> None:
        self.program, self.jobs, self.logs, self.processes = program, {job.name: job for job in made}, logs, processes
        kept = {job.name: (stamped(job) or ("given",))[0] for job in made if not job.asked and job.product.is_file()}
        self.fingerprints = fingerprints(made, kept)
        self.out = out or (lambda line: print(line, file=sys.stderr, flush=True))
        self.why: dict[str, str] = {}  # of the jobs that have to be run
        for job in made:
            if reason := self._reason(job):
                self.why[job.name] = reason
        self.waiting = list(self.why)
        self.working: dict[str, Running] = {}
        self.took: dict[str, float] = {}
        self.expected = {job.name: self._expected(job) for job in made}
        self.interrupted, self.asked_to_stop = "", False
        self._first, self._reported = len(self.waiting), time.monotonic()

    def plan(self) -> str:
        """A line a job: done, kept or to run, what it needs, and why it is run again."""
        lines = []
        for name, job in self.jobs.items():
            state = "run " if name in self.waiting else "done" if job.asked else "kept"
            again = "" if self.why.get(name, NEW) == NEW else f"  ({self.why[name]})"
            lines.append(f"{state} {name}" + (f"  after {', '.join(job.needs)}" if job.needs else "") + again)
        return "\n".join(lines)

    def run(self, poll: float = 0.5) -> None:
        """Until all is done.

        Raises:
            ValueError: If a job failed; the others at work are finished first, and count.
            Interrupted: If it or a job was asked to stop and can go on; no process is left behind.
        """
        began = time.monotonic()
        with _heard(self._ask_to_stop):
            try:
                failed = self._drain(poll)
            finally:
                self._stop()
        if self.asked_to_stop:
            raise Interrupted("asked to stop: the stages at work have saved; give the command again to go on")
        if self.interrupted:
            raise Interrupted(f"{self.interrupted} was asked to stop and has saved; give the command again to go on")
        if failed:
            where = f": see {self.logs / failed[0]}.log" if self._first > 1 else ""
            raise ValueError(f"{failed[0]} failed{where}; give the command again to go on")
        self.out(f"==== all done after {minutes(time.monotonic() - began)}")

    def left(self) -> float:
        """Seconds until all is done, by what stages took before and how fast those at work are."""
        known = dict(self.took)
        for name, work in self.working.items():
            if (whole := self._whole(work)) is not None:
                known[name] = whole
        pace = sum(known.values()) / max(1e-9, sum(self.expected[name] for name in known)) if known else 1.0
        total = {name: known.get(name, pace * self.expected[name]) for name in (*self.working, *self.waiting)}
        begun = sum(min(work.spent, total[name]) for name, work in self.working.items())
        return (sum(total.values()) - begun) / self.processes

    def _drain(self, poll: float) -> list[str]:
        """Until all is done, or one has failed and the others at work have ended; the names of those that failed."""
        failed: list[str] = []
        while not self.asked_to_stop and (self.working or (self.waiting and not failed)):
            while not failed and len(self.working) < self.processes and (name := self._ready()):
                self._start(name)
            time.sleep(poll)
            for name in [name for name, work in self.working.items() if work.process.poll() is not None]:
                failed += [] if self._end(name, self.working.pop(name)) else [name]
            self._look()
        return failed

    def _ask_to_stop(self, *_: object) -> None:
        """At a signal, which may come in the middle of anything: the queue looks between two jobs."""
        self.asked_to_stop = True

    def _stop(self) -> None:
        """Ask what is still at work to save and end, and wait for it."""
        for work in self.working.values():
            work.process.terminate()
        for work in self.working.values():
            work.process.wait()

    def _reason(self, job: Job) -> str:
        """Why a job has to be run; nothing if it has not."""
        if not job.product.is_file():
            return NEW
        found = stamped(job)
        if not job.asked or (found and found[0] == self.fingerprints[job.name]):
            return ""
        if found is None:
            return "again: no study has finished it"
        before = [name for name in job.needs if name in self.why]
        return f"again: after {', '.join(before)}" if before else "again: made by another configuration"

    def _expected(self, job: Job) -> float:
        """Seconds: of this stage before, of the same stage of another seed, or of the chest phantom's."""
        alike = [seconds(other) for other in self.jobs.values() if other.stage == job.stage and seconds(other)]
        if alike:
            return sum(alike) / len(alike)
        try:
            return float(json.loads((job.product.parent / "run.json").read_text())["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return float(SECONDS.get(job.stage.removesuffix("_confounded"), 200))

    def _ready(self) -> str | None:
        busy = {*self.waiting, *self.working}
        return next((name for name in self.waiting if not busy.intersection(self.jobs[name].needs)), None)

    def _start(self, name: str) -> None:
        """Announce and start a job; no product has its stamp until it is whole."""
        job, alone = self.jobs[name], self._first == 1
        self.waiting.remove(name)
        config, log = self.logs / f"{name}.yaml", None if alone else self.logs / f"{name}.log"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(job.config, sort_keys=False))
        stamp(job).unlink(missing_ok=True)
        command = [*self.program, job.command, f"--config={config}", *job.arguments]
        environment = dict(os.environ) if alone else {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
        if log is None:
            process = subprocess.Popen(command, env=environment)
        else:
            with log.open("wb") as file:
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        self.working[name] = Running(process, log)
        place = self._first - len(self.waiting)
        does = DOES.get(job.stage.removesuffix("_confounded"), "")
        expected = f"about {minutes(self.expected[name])}; all: {minutes(self.left())} left"
        self.out(f"==== {place} of {self._first}: {name}{f' {does}' if does else ''}; {expected}")

    def _end(self, name: str, work: Running) -> bool:
        """Stamp the product, if there is one to stamp."""
        job, spent = self.jobs[name], work.spent
        if work.process.returncode == AGAIN:
            self.interrupted = name
            return False
        if work.process.returncode or not job.product.is_file():
            self.out(f"==== {name} failed after {minutes(spent)}\n{work.said}".rstrip())
            return False
        stamp(job).write_text(f"{self.fingerprints[name]} {spent:.1f}\n")
        self.took[name] = spent
        self.out(f"==== {name} done after {minutes(spent)}; all: {minutes(self.left())} left")
        return True

    def _look(self) -> None:
        """Now and then, say what is at work."""
        if self._first > 1 and self.working and time.monotonic() - self._reported > REPORT:
            self._reported = time.monotonic()
            every = ", ".join(f"{name} {_step(work)}".strip() for name, work in self.working.items())
            self.out(f"at work: {every}; all: {minutes(self.left())} left")

    def _whole(self, work: Running) -> float | None:
        """Seconds that a job will have taken by what it says itself."""
        found = STEP.findall(work.said)
        return work.spent + int(found[-1][1]) if found else None


@contextmanager
def _heard(handler: Callable[..., None]) -> Iterator[None]:
    """Signals that ask to stop call ``handler``; those that the caller ignores stay ignored."""
    heard = [number for number in STOP if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


def minutes(spent: float) -> str:
    """Seconds as people say them."""
    return f"{spent / 60:.0f} min" if spent >= 90 else f"{spent:.0f} s"


def _step(work: Running) -> str:
    found = STEP.findall(work.said)
    return str(found[-1][0]) if found else ""


def _tail(path: Path, lines: int) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
