"""Train and evaluate every method of an experiment with several seeds, and write one table, figure and page.

    make benchmark EXPERIMENT=chest_phantom SEEDS="0 1 2"
    .venv/bin/python -m benchmarks.study chest_phantom --seeds 0 1 --dry-run
    .venv/bin/python -m benchmarks.study chexpert --data.source.root=... --trainer.max_steps=100

Runs two stages at a time, one thread each, and goes on where it was stopped: a stage is run again only if its
configuration, or that of a stage before it, has changed. Other options, each in one word (``--data.batch_size=8``), go
to every stage; those of ``--data`` to the evaluation, too. Tune on ``--split val``; ``docs/results.md`` is for the test
split and is left alone otherwise.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from benchmarks import plan, report, schedule


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("experiment", help="folder under experiments/")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="by default those declared")
    parser.add_argument(
        "--declaration", default="benchmark", help="experiments/EXPERIMENT/DECLARATION.yaml is compared"
    )
    parser.add_argument("--methods", nargs="*", default=[], help="some of those declared")
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--processes", type=int, default=2, help="stages at a time")
    parser.add_argument("--out", type=Path, help="by default results/EXPERIMENT/DECLARATION")
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="folder of the experiments")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of results.md")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options, passed = parser.parse_known_args(given)
    try:
        return run(options, tuple(passed), f"python -m benchmarks.study {shlex.join(given)}")
    except ValueError as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, passed: tuple[str, ...], command: str) -> int:
    """Plan, run, pool."""
    folder = options.experiments / options.experiment
    out = options.out or Path("results") / options.experiment / (
        options.declaration if options.split == "test" else f"{options.declaration}_val"
    )
    study = plan.study(
        folder, tuple(options.seeds), passed, options.split, out, tuple(options.methods), options.declaration
    )
    jobs = plan.jobs(study)
    work = schedule.Schedule(jobs, out / "logs", options.processes)
    print(work.plan())
    if options.dry_run:
        return 0
    work.run()
    spent = sum(schedule.seconds(job) for job in jobs) / options.processes
    if options.split == "test":
        report.conclude(study, command, spent, options.docs)
    else:
        with tempfile.TemporaryDirectory() as nowhere:
            report.conclude(study, command, spent, Path(nowhere))
    print((out / "table.md").read_text())
    print(f"tables and figure: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
