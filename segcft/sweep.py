"""``segcft sweep``: train one configuration with many settings, many seeds or both, and keep a table of what came out.

Optuna proposes the settings. Its journal is a file, so that any number of these commands, on one machine or as tasks
of a SLURM array, work on the same sweep: each takes a trial, trains it with ``segcft fit`` and writes down what the
validation split says. A trial belongs to whoever holds the lock of its file; its training holds it, too, so that nobody
takes up a trial whose training still runs. What was interrupted is taken up by the next command.
"""

import csv
import fcntl
import io
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from segcft.files import staged, write_text
from segcft.tasks.keeping import AGAIN, Interrupted
from segcft.tasks.record import RECORD
from segcft.tasks.resuming import differences, facts

FIT = f"{shlex.quote(sys.executable)} -m segcft"
HOPELESS = 3  # trials that all failed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Plan:
    """What is searched, as the YAML file says.

    Attributes:
        configs: Configuration files of ``segcft fit``, in order.
        objective: A number that the stage logs on the validation split, ``val/...``.
        direction: ``minimize`` or ``maximize``.
        trials: Settings to try.
        seeds: Each trial is trained with each; its objective is their mean.
        space: Option -> ``{low, high}``, with ``log: true`` or ``step`` if wished, or ``{choices}``; whole numbers if
            ``low`` and ``high`` are. Empty to train the configuration as it is.
    """

    configs: list[str]
    objective: str
    direction: str = "minimize"
    trials: int = 1
    seeds: list[int] = field(default_factory=lambda: [0])
    space: dict[str, dict[str, Any]] = field(default_factory=dict)


def sweep(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ValueError: If the plan is wrong, differs from the one that OUT was begun with, or its first trials all fail.
        Interrupted: If asked to stop by a signal; the same command goes on.
    """
    options, passed = _parser().parse_known_args(arguments)
    for word in passed:
        if not word.startswith("--") or "=" not in word:
            raise ValueError(f"{word!r}: options of segcft fit are given in one word, --trainer.max_steps=100")
    Sweep(read(Path(options.plan)), Path(options.out), tuple(passed), shlex.split(options.program)).run(options.workers)
    print((Path(options.out) / "table.md").read_text(encoding="utf-8"))
    return 0


def read(path: Path) -> Plan:
    """The plan in a YAML file.

    Raises:
        ValueError: Naming file, field and value of what is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    known = {each.name for each in fields(Plan)}
    if not isinstance(content, dict) or not {"configs", "objective"} <= content.keys() <= known:
        raise ValueError(f"{path}: configs and objective are needed, {', '.join(sorted(known))} are known")
    plan = Plan(**content)
    for name, need in _lacking(plan):
        raise ValueError(f"{path}: {name} = {getattr(plan, name)!r}: {need}")
    for name, values in plan.space.items():
        try:
            distribution(values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: space: {name} = {values!r}: {error}") from error
    return plan


def _lacking(plan: Plan) -> Iterator[tuple[str, str]]:
    """Fields that are wrong, and what they need."""
    if not _listed(plan.configs, str) or not all(Path(name).is_file() for name in plan.configs):
        yield "configs", "a list of files that exist is needed"
    if not str(plan.objective).startswith("val/"):
        yield "objective", "a number of the validation split, val/..., is needed"
    if plan.direction not in ("minimize", "maximize"):
        yield "direction", "minimize or maximize is needed"
    if type(plan.trials) is not int or plan.trials < 1:
        yield "trials", "a number of at least 1 is needed"
    if not _listed(plan.seeds, int) or len(set(plan.seeds)) < len(plan.seeds):
        yield "seeds", "a list of different whole numbers is needed"
    if not isinstance(plan.space, dict):
        yield "space", "option -> {low, high} or {choices} is needed"


def distribution(values: Mapping[str, Any]) -> Any:
    """What Optuna calls one line of a space.

    Raises:
        ValueError: If it is none.
    """
    optuna = engine()
    choices = values.get("choices")
    if values.keys() == {"choices"} and isinstance(choices, list) and choices:
        plain = [each if isinstance(each, str | int | float | bool) else json.dumps(each) for each in choices]
        return optuna.distributions.CategoricalDistribution(plain)
    if not {"low", "high"} <= values.keys() <= {"low", "high", "log", "step"}:
        raise ValueError("{low, high}, with log or step, or {choices: [...]} is needed")
    whole = type(values["low"]) is int and type(values["high"]) is int
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return kind(**values)


def engine() -> Any:
    """Optuna, silent.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import optuna  # lazily: an optional extra
    except ImportError as error:
        raise ValueError("segcft sweep needs Optuna: pip install optuna, or segcft's extra 'sweep'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Sweep:
    """One sweep and the folder that holds all that is known of it.

    Args:
        plan: What is searched.
        out: The folder.
        passed: Options of every training.
        program: Words before ``fit``.

    Raises:
        ValueError: If the folder holds another sweep.
    """

    def __init__(self, plan: Plan, out: Path, passed: tuple[str, ...], program: list[str]) -> None:
        self.plan, self.out, self.passed, self.program = plan, out, passed, program
        self.work = out / "work"
        for folder in (self.work, out / "trials", out / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self.stop = threading.Event()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.space = {name: distribution(values) for name, values in plan.space.items()}
        storages = engine().storages
        with self._door():
            self.name = self._begun()
            journal = storages.JournalStorage(storages.journal.JournalFileBackend(str(self.work / "journal.log")))
            self.study = engine().create_study(
                storage=journal, study_name="sweep", direction=plan.direction, load_if_exists=True
            )

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
            raise Interrupted(f"asked to stop: the same command goes on with {self.out}")
        with self._door():
            rows = self.rows()
            write_tables(rows, self.plan, self.out)
            picture(rows, self.plan, self.out / "figure.png")
        if elsewhere := [row["trial"] for row in rows if row["state"] == "running"]:
            self._say(f"still at work elsewhere: trials {elsewhere}; give the command again when they have ended")

    def rows(self) -> list[dict[str, Any]]:
        """A row a trial: ``trial``, ``state``, ``objective``, ``std`` over the seeds, ``seconds``, and every option."""
        found = []
        for trial in self.study.get_trials(deepcopy=False):
            seeds = _results(self._file(trial.number))
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

    def _turns(self) -> None:
        """One worker: a trial after the other."""
        try:
            while not self.stop.is_set() and (taken := self._take()) is not None:
                number, params, lock = taken
                try:
                    self._train(number, params, lock)
                finally:
                    os.close(lock)
        except BaseException:
            self._hear()
            raise

    def _take(self) -> tuple[int, dict[str, Any], int] | None:
        """A trial that nobody works on, or a new one: number, options and lock; None if there is nothing to do."""
        with self._door():
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                lock = None if trial.state.is_finished() else _grabbed(self.work / f"{trial.number}.lock")
                if lock is None:
                    continue
                if trial.params.keys() == self.space.keys():
                    return trial.number, dict(trial.params), lock
                os.close(lock)  # killed before its options were all written down
                self.study.tell(trial.number, state=engine().trial.TrialState.FAIL)
            if len(trials) >= self.plan.trials:
                return None
            # what is proposed depends on what is known alone, whoever asks and however often it was interrupted
            self.study.sampler = engine().samplers.TPESampler(seed=len(trials), constant_liar=True)
            new = self.study.ask(self.space)
            lock = _grabbed(self.work / f"{new.number}.lock")
            assert lock is not None
            return new.number, dict(new.params), lock

    def _train(self, number: int, params: dict[str, Any], lock: int) -> None:
        """Every seed that is not done yet; then tell."""
        for seed in self.plan.seeds:
            if str(seed) not in _results(self._file(number)) and not self._fit(number, seed, params, lock):
                break
        else:
            values = [each["value"] for each in _results(self._file(number)).values()]
            self._tell(number, statistics.fmean(values))
            return
        if not self.stop.is_set():
            self._tell(number, None)

    def _fit(self, number: int, seed: int, params: dict[str, Any], lock: int) -> bool:
        """Train one seed and write down its objective; False if it failed or was stopped."""
        name = f"sweeps/{self.name}/trial-{number:04d}/seed-{seed}"
        record = next(iter(Path("checkpoints", name).glob(f"*/{RECORD}")), None)
        if record is None or not json.loads(record.read_text(encoding="utf-8"))["finished"]:
            command = [
                *(*self.program, "fit"),
                *(f"--config={config}" for config in self.plan.configs),
                *(f"--experiment={name}", f"--seed_everything={seed}"),
                *self.passed,
                *(f"--{option}={value}" for option, value in params.items()),
            ]
            code = self._call(command, self.out / "logs" / f"trial-{number:04d}-seed-{seed}.log", lock)
            if code == AGAIN:
                self._hear()
            if code:
                return False
            record = next(iter(Path("checkpoints", name).glob(f"*/{RECORD}")))
        content = json.loads(record.read_text(encoding="utf-8"))
        metrics = content["metrics"]
        if self.plan.objective not in metrics:
            raise ValueError(f"objective {self.plan.objective!r}: this stage logs {', '.join(metrics)}")
        value = metrics[self.plan.objective]  # None if it was not finite
        if value is None:
            return False
        results = _results(self._file(number)) | {str(seed): {"value": value, "seconds": content["seconds"]}}
        write_text(self._file(number), json.dumps({"options": params, "seeds": results}, indent=2) + "\n")
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
        """Write down how a trial ended, None being failure, and the table with it.

        Raises:
            ValueError: If as many trials as make it hopeless have ended, and all failed.
        """
        states = engine().trial.TrialState
        with self._door():
            self.study.tell(number, value, states.FAIL if value is None else states.COMPLETE)
            rows = self.rows()
            write_tables(rows, self.plan, self.out)
        ended = [row["state"] for row in rows if row["state"] in ("complete", "fail")]
        self._say(f"trial {number} " + ("failed" if value is None else f"has {self.plan.objective} {value:.6g}"))
        if len(ended) >= min(HOPELESS, self.plan.trials) and set(ended) == {"fail"}:
            logs = sorted((self.out / "logs").glob(f"trial-{number:04d}-*.log"))
            last = " ".join(logs[-1].read_text(errors="replace").splitlines()[-1:]) if logs else ""
            raise ValueError(f"all {len(ended)} trials failed, see {self.out / 'logs'}; the last one said: {last}")

    def _begun(self) -> str:
        """See that the folder was begun with this plan, but for more trials; the name of its folder of checkpoints."""
        flat = facts({**asdict(self.plan), "options": list(self.passed)})
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
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _file(self, number: int) -> Path:
        return self.out / "trials" / f"{number:04d}.json"

    def _hear(self, *_: Any) -> None:
        """Stop: trainings save and end."""
        self.stop.set()
        for process in list(self.running):
            process.terminate()

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def write_tables(rows: list[dict[str, Any]], plan: Plan, out: Path) -> None:
    """``table.csv`` by trial, ``table.md`` best first, and ``best.yaml``, a --config for ``segcft fit``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "table.csv", text.getvalue())
    ranked = sorted(rows, key=lambda row: _rank(row, plan))
    lines = [" | ".join(map(_cell, row.values())) for row in [dict(zip(rows[0], rows[0], strict=True)), *ranked]]
    lines.insert(1, " | ".join(["---"] * len(rows[0])))
    head = f"{plan.objective}, {plan.direction}, mean over seeds {', '.join(map(str, plan.seeds))}; best first.\n\n"
    write_text(out / "table.md", head + "".join(f"| {line} |\n" for line in lines))
    if ranked[0]["objective"] is not None:
        write_text(out / "best.yaml", yaml.safe_dump(_nested({name: ranked[0][name] for name in plan.space})))


def picture(rows: list[dict[str, Any]], plan: Plan, path: Path) -> None:
    """The objective by trial, and against every option; the best trial is filled."""
    from matplotlib.figure import Figure  # lazily: slow to import

    done = sorted((row for row in rows if row["objective"] is not None), key=lambda row: _rank(row, plan))
    names = ["trial", *plan.space]
    figure = Figure(figsize=(3.2 * len(names), 2.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        number = name == "trial" or "low" in plan.space[name]
        x = [row[name] if number else str(row[name]) for row in done]
        y, spread = [row["objective"] for row in done], [row["std"] or 0.0 for row in done]
        axis.errorbar(x, y, spread, fmt="o", color="#3d8be8", markerfacecolor="none", capsize=2)
        axis.plot(x[:1], y[:1], "o", color="#e8553d")
        axis.set_xlabel(name.removeprefix("model.init_args."), fontsize=8)
        if number and name != "trial" and plan.space[name].get("log"):
            axis.set_xscale("log")
    figure.axes[0].set_ylabel(plan.objective)
    with staged(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _rank(row: dict[str, Any], plan: Plan) -> tuple[bool, float]:
    value = row["objective"]
    return value is None, 0.0 if value is None else value if plan.direction == "minimize" else -value


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``a.b`` -> value as dicts; texts that stand for lists or dicts are read."""
    result: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split(".")
        inner = result
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = yaml.safe_load(value) if isinstance(value, str) else value
    return result


def _results(file: Path) -> dict[str, dict[str, float]]:
    """Seed -> ``value`` and ``seconds`` of a trial; nothing of one that has not trained yet."""
    found: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))["seeds"] if file.is_file() else {}
    return found


def _grabbed(file: Path) -> int | None:
    """The lock, as a file to be closed; None if another holds it."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _listed(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is kind for each in value)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="segcft sweep",
        description=f"{__doc__}\nOther options, each in one word (--trainer.max_steps=100), go to every training.",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("plan", help="YAML: configs, objective, direction, trials, seeds, space; see docs/reliability.md")
    add("--out", required=True, help="folder of tables, picture and journal; several commands may share it")
    add("--workers", type=int, default=1, help="trainings at a time")
    add("--program", default=FIT, help="words before `fit`, for instance 'torchrun --nproc_per_node=2 -m segcft'")
    return parser
