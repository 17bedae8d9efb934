"""What is known of a sweep, in one folder that any number of commands share: trials, results, and who works on what.

Optuna's journal is a file. A trial belongs to whoever holds the lock of its file.
"""

import json
import os
import statistics
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from segcft.callbacks.resume import differences, facts
from segcft.core.atomic_files import write_text
from segcft.core.file_locks import lock
from segcft.sweeping.search_space import Plan, distribution, engine
from segcft.sweeping.table import Row, picture, write_tables


@dataclass(frozen=True)
class Trial:
    """One setting, held by who was given it.

    Attributes:
        number: From 0.
        options: Option of ``segcft fit`` -> value.
        lock: A file to be closed when the work is over.
    """

    number: int
    options: dict[str, Any]
    lock: int


class TrialStorage:
    """The folder of a sweep.

    Args:
        plan: What is searched.
        out: The folder.
        passed: Options of every training.

    Raises:
        ValueError: If the folder holds another sweep.
    """

    def __init__(self, plan: Plan, out: Path, passed: tuple[str, ...]) -> None:
        self.plan, self.out, self.work = plan, out, out / "work"
        for folder in (self.work, out / "trials", out / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self.configs = [str(self.work / "configuration.yaml")] if plan.configuration else plan.configs
        self.space = {name: distribution(values) for name, values in plan.space.items()}
        storages = engine().storages
        with self._door():
            self.name = self._begun(passed)
            if plan.configuration:
                write_text(Path(self.configs[0]), yaml.safe_dump(plan.configuration, sort_keys=False))
            journal = storages.JournalStorage(storages.journal.JournalFileBackend(str(self.work / "journal.log")))
            self.study = engine().create_study(
                storage=journal, study_name="sweep", direction=plan.direction, load_if_exists=True
            )

    def take(self) -> Trial | None:
        """A trial that nobody works on, or a new one; None if there is nothing to do."""
        with self._door():
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                lock = None if trial.state.is_finished() else _grabbed(self.work / f"{trial.number}.lock")
                if lock is None:
                    continue
                if trial.params.keys() == self.space.keys():
                    return Trial(trial.number, dict(trial.params), lock)
                os.close(lock)  # killed before its options were all written down
                self.study.tell(trial.number, state=engine().trial.TrialState.FAIL)
            if len(trials) >= self.plan.trials:
                return None
            # what is proposed depends on what is known alone, whoever asks and however often it was interrupted
            self.study.sampler = engine().samplers.TPESampler(seed=len(trials), constant_liar=True)
            new = self.study.ask(self.space)
            lock = _grabbed(self.work / f"{new.number}.lock")
            assert lock is not None
            return Trial(new.number, dict(new.params), lock)

    def results(self, number: int) -> dict[str, dict[str, float]]:
        """Seed -> ``value`` and ``seconds`` of a trial; nothing of one that has not trained yet."""
        file, found = self._file(number), {}
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))["seeds"]
        return found

    def note(self, trial: Trial, seed: int, value: float, seconds: float) -> None:
        """Write down what one seed came to."""
        results = self.results(trial.number) | {str(seed): {"value": value, "seconds": seconds}}
        write_text(self._file(trial.number), json.dumps({"options": trial.options, "seeds": results}, indent=2) + "\n")

    def tell(self, number: int, value: float | None) -> list[Row]:
        """Write down how a trial ended, None being failure, and the table with it."""
        states = engine().trial.TrialState
        with self._door():
            self.study.tell(number, value, states.FAIL if value is None else states.COMPLETE)
            return self._tables()

    def close(self) -> list[Row]:
        """Write the table and draw the picture."""
        with self._door():
            rows = self._tables()
            picture(rows, self.plan, self.out / "figure.png")
            return rows

    def log(self, number: int, seed: int) -> Path:
        """What a training says."""
        return self.out / "logs" / f"trial-{number:04d}-seed-{seed}.log"

    def _tables(self) -> list[Row]:
        rows = self._rows()
        write_tables(rows, self.plan, self.out)
        return rows

    def _rows(self) -> list[Row]:
        """A row a trial: ``trial``, ``state``, ``objective``, ``std`` over the seeds, ``seconds``, and every option."""
        found = []
        for trial in self.study.get_trials(deepcopy=False):
            seeds = self.results(trial.number)
            values = [each["value"] for each in seeds.values()]
            complete = trial.state.name == "COMPLETE"
            found.append({
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "objective": trial.value if complete else None,
                "std": statistics.stdev(values) if complete and len(values) > 1 else None,
                "seconds": round(sum(each["seconds"] for each in seeds.values()), 1),
                **{name: trial.params.get(name) for name in self.plan.space},
            })  # fmt: skip
        return found

    def _begun(self, passed: tuple[str, ...]) -> str:
        """See that the folder was begun with this plan, but for more trials; the name of its folder of checkpoints."""
        given = {name: value for name, value in asdict(self.plan).items() if value != ""}
        flat = facts({**given, "options": list(passed)})
        now = {name: value for name, value in flat.items() if name != "trials"}
        file = self.work / "plan.json"
        if not file.is_file():  # a name of its own: nothing that another sweep left is taken for this one's
            name = f"{self.out.resolve().name}-{uuid.uuid4().hex[:8]}"
            write_text(file, json.dumps({"name": name, "plan": now}, indent=1) + "\n")
        begun = json.loads(file.read_text(encoding="utf-8"))
        if differing := differences(begun["plan"], now):
            raise ValueError(f"{self.out} holds another sweep: {'; '.join(differing[:3])}: choose another --out")
        return str(begun["name"])

    @contextmanager
    def _door(self) -> Iterator[None]:
        """One at a time, of all threads and processes."""
        with (self.work / "door.lock").open("w") as file:
            lock(file.fileno())
            yield

    def _file(self, number: int) -> Path:
        return self.out / "trials" / f"{number:04d}.json"


def _grabbed(file: Path) -> int | None:
    """The lock, as a file to be closed; None if another holds it."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT)
    if lock(handle, wait=False):
        return handle
    os.close(handle)
    return None
