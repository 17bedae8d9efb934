"""Who works on a sweep: each worker takes a trial, trains it with ``segcft fit`` and writes down what came out.

A training holds the lock of its trial, too, so that nobody takes up a trial whose training still runs.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from segcft.callbacks.run_record import RECORD
from segcft.core.interruption import AGAIN, Interrupted
from segcft.sweeping.storage import Trial, TrialStorage

HOPELESS = 3  # trials that all failed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class TrialWorkers:
    """The trainings of this command.

    Args:
        storage: Trials of the sweep.
        passed: Options of every training.
        program: Words before ``fit``.
    """

    def __init__(self, storage: TrialStorage, passed: tuple[str, ...], program: list[str]) -> None:
        self.storage, self.plan, self.passed, self.program = storage, storage.plan, passed, program
        self.stop = threading.Event()
        self.running: set[subprocess.Popen[bytes]] = set()

    def run(self, workers: int) -> None:
        """Work until no trial is left to take; then draw the picture.

        Raises:
            ValueError: If the first trials all fail, or a training does not log the objective.
            Interrupted: If asked to stop.
        """
        former = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            with ThreadPoolExecutor(workers) as pool:
                for done in [pool.submit(self._turns) for _ in range(workers)]:
                    done.result()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        if self.stop.is_set():
            raise Interrupted(f"asked to stop: the same command goes on with {self.storage.out}")
        if elsewhere := [row["trial"] for row in self.storage.close() if row["state"] == "running"]:
            self._say(f"still at work elsewhere: trials {elsewhere}; give the command again when they have ended")

    def _turns(self) -> None:
        """One worker: a trial after the other."""
        try:
            while not self.stop.is_set() and (trial := self.storage.take()) is not None:
                try:
                    self._train(trial)
                finally:
                    os.close(trial.lock)
        except BaseException:
            self._hear()
            raise

    def _train(self, trial: Trial) -> None:
        """Every seed that is not done yet; then tell."""
        for seed in self.plan.seeds:
            if str(seed) not in self.storage.results(trial.number) and not self._fit(trial, seed):
                break
        else:
            values = [each["value"] for each in self.storage.results(trial.number).values()]
            self._tell(trial.number, statistics.fmean(values))
            return
        if not self.stop.is_set():
            self._tell(trial.number, None)

    def _fit(self, trial: Trial, seed: int) -> bool:
        """Train one seed and write down its objective; False if it failed or was stopped."""
        name = f"sweeps/{self.storage.name}/trial-{trial.number:04d}/seed-{seed}"
        record = _record(name)
        if record is None or not record["finished"]:
            command = [
                *(*self.program, "fit"),
                *(f"--config={config}" for config in self.storage.configs),
                *(f"--experiment={name}", f"--seed_everything={seed}"),
                *self.passed,
                *(f"--{option}={value}" for option, value in trial.options.items()),
            ]
            code = self._call(command, self.storage.log(trial.number, seed), trial.lock)
            if code == AGAIN:
                self._hear()
            if code:
                return False
            record = _record(name)
            assert record is not None
        metrics = record["metrics"]
        if self.plan.objective not in metrics:
            raise ValueError(f"objective {self.plan.objective!r}: this stage logs {', '.join(metrics)}")
        value = metrics[self.plan.objective]  # None if it was not finite
        if value is None:
            return False
        self.storage.note(trial, seed, value, record["seconds"])
        return True

    def _call(self, command: list[str], log: Path, lock: int) -> int:
        """Run a training that holds the trial's lock as long as it lives."""
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, pass_fds=(lock,))
        self.running.add(process)
        if self.stop.is_set():
            process.terminate()
        try:
            return process.wait()
        finally:
            self.running.discard(process)

    def _tell(self, number: int, value: float | None) -> None:
        """Write down how a trial ended, None being failure.

        Raises:
            ValueError: If as many trials as make it hopeless have ended, and all failed.
        """
        ended = [row["state"] for row in self.storage.tell(number, value) if row["state"] in ("complete", "fail")]
        self._say(f"trial {number} " + ("failed" if value is None else f"has {self.plan.objective} {value:.6g}"))
        if len(ended) >= min(HOPELESS, self.plan.trials) and set(ended) == {"fail"}:
            logs = sorted((self.storage.out / "logs").glob(f"trial-{number:04d}-*.log"))
            last = " ".join(logs[-1].read_text(errors="replace").splitlines()[-1:]) if logs else ""
            raise ValueError(
                f"all {len(ended)} trials failed, see {self.storage.out / 'logs'}; the last one said: {last}"
            )

    def _hear(self, *_: Any) -> None:
        """Stop: trainings save and end."""
        self.stop.set()
        for process in list(self.running):
            process.terminate()

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _record(experiment: str) -> dict[str, Any] | None:
    """What a training left; None if it has not begun."""
    file = next(iter(Path("checkpoints", experiment).glob(f"*/{RECORD}")), None)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))
