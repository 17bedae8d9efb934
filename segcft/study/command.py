"""``segcft study`` and ``segcft init``."""

import shlex
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import yaml

from segcft.core.atomic_files import write_text
from segcft.core.parsing import PlainParser
from segcft.study import plan, schedule
from segcft.study.experiment import located, read

ABOUT = """Train and evaluate an experiment: every stage that is not done yet, two at a time, and what each needs.

Without --seeds and --declaration each stage is trained once, into checkpoints/EXPERIMENT/STAGE, and the methods are
compared in results/EXPERIMENT. With them every method is trained with several seeds, into checkpoints/EXPERIMENT/seedN,
and one table, figure and page docs/results/EXPERIMENT.md are made of all (on --split val that page is left alone).

A stage is trained again only if its configuration, or that of a stage before it, has changed. Other options, each in
one word such as --trainer.max_steps=100, go to every stage that is asked for; those of --data, and its own such as
--native=512, to the evaluation. All are checked before the first stage begins. The configuration of every stage is
written to results/.../logs, for segcft fit --config."""


def study(arguments: list[str], check: Callable[[list[plan.Job]], None]) -> int:
    """Run the command.

    Args:
        arguments: The words after it.
        check: Raises an error if a stage would refuse its configuration or options.

    Raises:
        ValueError: If something given is wrong, before any stage, or if a stage failed.
    """
    parser = PlainParser("study", ABOUT)
    parser.add_argument("experiment", help="folder under experiments/, or an experiment that segcft brings along")
    parser.add_argument(
        "--stages", nargs="+", default=[], help="some stages alone; what they need is trained if missing"
    )
    parser.add_argument("--seeds", type=int, nargs="*", help="of several trainings; without numbers those declared")
    parser.add_argument(
        "--declaration", help="experiments/EXPERIMENT/DECLARATION.yaml is compared, else benchmark.yaml"
    )
    parser.add_argument("--methods", nargs="+", default=[], help="some of those that a declaration compares")
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--processes", type=int, default=2, help="stages at a time")
    parser.add_argument("--launcher", default="", help='in front of every command, such as "srun --wait=45"')
    parser.add_argument("--out", type=Path, help="by default results/EXPERIMENT, with /DECLARATION for several seeds")
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="folder of the experiments")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of results/ and figures/")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options, words = parser.parse_except(arguments, plan.OPTIONS)
    passed = tuple(words)
    several = options.seeds is not None or options.declaration is not None or bool(options.methods)
    if several and options.stages:
        raise ValueError("--stages trains stages once; --seeds, --declaration and --methods compare: one of both")
    declaration = options.declaration or "benchmark"
    out = options.out or Path("results") / options.experiment / (_folder(options, declaration) if several else "")
    folder = located(options.experiment, options.experiments)
    if several:
        seeds, methods = tuple(options.seeds or ()), tuple(options.methods)
        chosen = plan.study(folder, seeds, passed, options.split, out, methods, declaration)
    else:
        chosen = plan.single(folder, tuple(options.stages), passed, options.split, out)
    return _run(options, chosen, f"segcft study {shlex.join(arguments)}", check)


def init(arguments: list[str]) -> None:
    """Begin an experiment of one's own: one file to edit.

    Raises:
        ValueError: If there is one of that name, or none that it could be like.
    """
    parser = PlainParser("init", "Begin an experiment of your own: writes experiments/NAME, whose data.yaml you edit.")
    parser.add_argument("name", help="of the folder under experiments/")
    parser.add_argument(
        "--like", default="folder", help="experiment to begin from: folder, chexpert, chest_phantom, ..."
    )
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="folder of the experiments")
    options = parser.parse_args(arguments)
    if not options.name.isidentifier():
        raise ValueError(f"{options.name!r} is no name of an experiment: letters, digits and _ are needed")
    source, target = located(options.like, options.experiments), options.experiments / options.name
    if target.exists():
        raise ValueError(f"{target} exists already")
    text = (source / "data.yaml").read_text(encoding="utf-8")
    if "recipe" not in read(source / "data.yaml"):
        text = text.replace("data:\n", f"recipe: {options.like}\ndata:\n", 1)
    from segcft.study.template import choices  # lazily: it imports data sets

    explained = f"{text.rstrip()}\n\n{choices(yaml.safe_load(text))}"
    target.mkdir(parents=True)
    write_text(target / "data.yaml", explained)
    print(f"{target / 'data.yaml'}: edit it, then: segcft study {options.name}")


def _folder(options: Namespace, declaration: str) -> str:
    return declaration if options.split == "test" else f"{declaration}_val"


def _run(options: Namespace, chosen: plan.Study, command: str, check: Callable[[list[plan.Job]], None]) -> int:
    """Plan, run, pool."""
    jobs, out = plan.jobs(chosen), chosen.out
    work = schedule.Schedule(jobs, out / "logs", options.processes)
    work.program = [*shlex.split(options.launcher), *work.program]
    print(work.plan(), flush=True)
    if options.dry_run:
        return 0
    if work.waiting:
        check([work.jobs[name] for name in work.waiting])
        work.run()
    if chosen.seeds == (None,):
        if any(job.command == "evaluate" for job in jobs):
            print(f"results: {out}; one page of them: segcft report {out}")
        return 0
    from segcft.study import report  # lazily: it reads tables

    spent = sum(schedule.seconds(job) for job in jobs) / options.processes
    with tempfile.TemporaryDirectory() as nowhere:
        report.conclude(chosen, command, spent, options.docs if options.split == "test" else Path(nowhere))
    print((out / "table.md").read_text())
    print(f"tables and figure: {out}")
    return 0
