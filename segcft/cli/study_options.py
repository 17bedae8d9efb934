"""``segcft study``, with the options of every stage parsed before the first one is run."""

import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml

from segcft.study import command
from segcft.study.plan import Job


def study(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ValueError: If something given is wrong, before any stage, or if a stage failed.
    """
    return command.study(arguments, check)


def check(jobs: Sequence[Job]) -> None:
    """Parse every stage's configuration and options; those of other seeds of a stage are alike.

    Done in a process of its own, whose libraries are not kept while the stages are at work.

    Raises:
        ValueError: Naming the first stage that would refuse them.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(parse, list({job.stage: job for job in jobs}.values())).result()


def parse(jobs: Sequence[Job]) -> None:
    """As ``check``, in this process."""
    from segcft.cli import data_commands, training  # lazily: they import torch
    from segcft.core.trusted_code import guard

    guard()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stages give them again
        for job in jobs:
            file = Path(folder, f"{job.stage}.yaml")
            file.write_text(yaml.safe_dump(job.config, sort_keys=False))
            words = [f"--config={file}", *job.arguments]
            try:
                if job.command == "evaluate":
                    data_commands.evaluation_parser().parse_args(words)
                else:
                    training.train([job.command, *words], training.Options)
            except ValueError as error:
                raise ValueError(f"stage {job.stage}: {error}".replace(str(file), f"{job.stage}.yaml")) from error
