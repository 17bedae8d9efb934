"""Every stage of an experiment, two at a time, each announced, and how long all of them will take.

    python -m benchmarks.pipeline chest_phantom        # what `make all` and `make demo` run

A stage is a target of the Makefile. What a stage takes is guessed from its last run or, of a first one, from the chest
phantom's, corrected by what the stages at work have shown.
"""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.jobs import Queue, Work

STEP = re.compile(r" \d+/\d+ .* (\d+) s left")  # of the lines that a stage prints while it trains


class Stage(NamedTuple):
    """What a stage does, the seconds it takes of the chest phantom on one core, and what it waits for."""

    does: str
    seconds: float
    needs: tuple[str, ...] = ()


STAGES = {
    "pretrain": Stage("learns what the images look like: the HVAE", 350),
    "evaluator": Stage("learns to judge the results, and guides nobody", 225),
    "regressor": Stage("learns to read off sizes: the judge of Reg-CFT", 160),
    "segmentor": Stage("learns to outline structures: the judge of Seg-CFT", 135),
    "regcft": Stage("fine-tunes the HVAE under the regressor", 315, ("pretrain", "regressor")),
    "segcft": Stage("fine-tunes the HVAE under the segmentor", 235, ("pretrain", "segmentor")),
    "nocft": Stage("fine-tunes the HVAE without a judge: the baseline", 40, ("pretrain",)),
    "evaluate": Stage("compares the methods on test subjects", 60, ("evaluator", "regcft", "segcft", "nocft")),
}


@dataclass
class Running(Work):
    """A stage at work, and the seconds that it will have taken by what it says itself."""

    whole: float | None = None
    reader: threading.Thread | None = None


class Pipeline(Queue[Running]):
    """All stages, in an order that their needs allow.

    Args:
        stages: By name.
        command: Of a stage.
        expected: Seconds that stages took before; others are guessed.
        out: Takes the lines to be shown.
        processes: Stages at a time.
    """

    def __init__(
        self,
        stages: dict[str, Stage],
        command: Callable[[str], list[str]],
        expected: dict[str, float],
        out: Callable[[str], None],
        processes: int = 2,
    ) -> None:
        super().__init__({name: stage.needs for name, stage in stages.items()}, processes)
        self.stages, self.command, self.out, self.status = stages, command, out, 0
        self.expected = {name: expected.get(name, stage.seconds) for name, stage in stages.items()}
        self.took: dict[str, float] = {}

    def run(self, poll: float = 0.2) -> int:
        """Until all is done, or one has failed and the others at work have ended; the exit status."""
        began = time.monotonic()
        failed = self.drain(poll)
        self.out(f"==== {'stopped' if failed else 'all done'} after {_minutes(time.monotonic() - began)}")
        return self.status

    def left(self) -> float:
        """Seconds until all is done, by how fast the stages were so far."""
        known, working = dict(self.took), dict(self.working)  # copies: asked from several threads
        known |= {name: work.whole for name, work in working.items() if work.whole is not None}
        pace = sum(known.values()) / sum(self.expected[name] for name in known) if known else 1.0
        whole = {name: known.get(name, pace * self.expected[name]) for name in (*working, *self.waiting)}
        begun = sum(min(work.spent, whole[name]) for name, work in working.items())
        return (sum(whole.values()) - begun) / self.processes

    def start(self, name: str) -> Running:
        """Announce a stage, and start it."""
        place, took = len(self.stages) - len(self.waiting), self.expected[name]
        process = subprocess.Popen(self.command(name), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        work = self.working[name] = Running(process)
        expected = f"about {_minutes(took)}; all: {_minutes(self.left())} left"
        self.out(f"==== {place} of {len(self.stages)}: {name} {self.stages[name].does}; {expected}")
        work.reader = threading.Thread(target=self._follow, args=(work,), daemon=True)
        work.reader.start()
        return work

    def end(self, name: str, work: Running) -> bool:
        """Say how it ended."""
        if work.reader is not None:
            work.reader.join()
        self.took[name], status = work.spent, work.process.returncode
        self.status = status or self.status
        self.out(f"==== {name} {'failed' if status else 'done'} after {_minutes(work.spent)}")
        return not status

    def _follow(self, work: Running) -> None:
        """Show what a stage prints; behind its progress, that of all."""
        assert work.process.stdout is not None
        for line in work.process.stdout:
            text = line.rstrip()
            if found := STEP.search(text):
                work.whole = work.spent + int(found[1])
                text += f"  | all: {_minutes(self.left())} left"
            self.out(text)


def earlier(experiment: str) -> dict[str, float]:
    """Seconds that the stages took when they were last run to the end."""
    found = {}
    for name in STAGES:
        try:
            spent = json.loads(Path("checkpoints", experiment, name, "run.json").read_text())["seconds"]
        except (OSError, ValueError, KeyError):
            continue
        found[name] = float(spent)
    return found


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def main() -> int:
    experiment = sys.argv[1]
    make = ["make", "--no-print-directory", f"EXPERIMENT={experiment}"]

    def show(line: str) -> None:
        print(line, flush=True)

    status = Pipeline(STAGES, lambda name: [*make, name], earlier(experiment), show).run()
    if not status:
        show(f"==== results: results/{experiment}; one page of them: segcft report results/{experiment}")
        show(
            f"==== pull its images by sliders: make app EXPERIMENT={experiment}; curves and pictures: make tensorboard"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
