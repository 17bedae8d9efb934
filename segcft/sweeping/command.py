"""``segcft sweep``: train one configuration with many settings, many seeds or both, and keep a table of what came out.

Optuna proposes the settings. Its journal is a file, so that any number of these commands, on one machine or as tasks
of a SLURM array, work on the same sweep: each takes a trial, trains it with ``segcft fit`` and writes down what the
validation split says. What was interrupted is taken up by the next command.
"""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from segcft.core.parsing import PlainParser
from segcft.study.experiment import located
from segcft.study.plan import jobs, single
from segcft.sweeping.search_space import Plan, read
from segcft.sweeping.storage import TrialStorage
from segcft.sweeping.workers import TrialWorkers

FIT = f"{shlex.quote(sys.executable)} -m segcft"


def sweep(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ValueError: If the plan is wrong, differs from the one that OUT was begun with, or its first trials all fail.
        Interrupted: If asked to stop by a signal; the same command goes on.
    """
    options, words = _parser().parse_known_args(arguments)
    for word in words:
        if not word.startswith("--") or "=" not in word:
            raise ValueError(f"{word!r}: options of segcft fit are given in one word, --trainer.max_steps=100")
    passed, out = tuple(words), Path(options.out)
    storage = TrialStorage(configured(read(Path(options.plan))), out, passed)
    TrialWorkers(storage, passed, shlex.split(options.program)).run(options.workers)
    print((out / "table.md").read_text(encoding="utf-8"))
    return 0


def configured(plan: Plan) -> Plan:
    """The plan with all of the configuration of the stage that it names; as it is, if it names files.

    Raises:
        ValueError: If there is no such experiment or stage, or a checkpoint that the stage starts from is missing.
    """
    if not plan.experiment:
        return plan
    if plan.stage == "evaluate":
        raise ValueError("stage = 'evaluate': nothing is trained there")
    made = {job.name: job for job in jobs(single(located(plan.experiment), (plan.stage,), (), "val", Path("results")))}
    for name in made[plan.stage].needs:
        if not made[name].product.is_file():
            raise ValueError(f"{made[name].product} is missing: segcft study {plan.experiment} --stages {name}")
    return replace(plan, configuration=made[plan.stage].config)


def _parser() -> PlainParser:
    more = "Other options, each in one word (--trainer.max_steps=100), go to every training."
    parser = PlainParser("sweep", f"{__doc__}\n{more}")
    add = parser.add_argument
    add(
        "plan",
        help="YAML: experiment and stage, objective, trials, seeds, space, ...; see docs/reliability.md",
    )
    add("--out", required=True, help="folder of tables, picture and journal; several commands may share it")
    add("--workers", type=int, default=1, help="trainings at a time")
    add("--program", default=FIT, help="words before `fit`, for instance 'torchrun --nproc_per_node=2 -m segcft'")
    return parser
