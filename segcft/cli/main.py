"""Command line: a table of commands; the code of each is imported when it is asked for."""

import importlib
import logging
import os
import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from segcft.cli.launch import processes
from segcft.core.formatting import meant
from segcft.core.interruption import AGAIN, Interrupted
from segcft.core.parsing import simplified
from segcft.core.provenance import commit
from segcft.core.trusted_code import admit, guard


class Command(NamedTuple):
    """A command: where its function lies, and what it does in a line.

    Attributes:
        function: ``module:function``; takes the words after the command.
        help: In ``segcft --help``.
        heavy: Whether it computes with torch.
        verb: Whether the function wants the command's own name first.
    """

    function: str
    help: str
    heavy: bool = True
    verb: bool = False


TRAINING = "segcft.cli.training:train"
COMMANDS = {
    "init": Command("segcft.study.command:init", "begin an experiment of your own: one file to edit", heavy=False),
    "check": Command("segcft.study.check:check", "what is wrong or unwise about an experiment and its data"),
    "study": Command(
        "segcft.cli.study_options:study",
        "train and compare all of an experiment, or some stages, or seeds",
        heavy=False,
    ),
    "prepare": Command("segcft.cli.data_commands:prepare", "read a data set once and keep it for fast reading"),
    "inspect": Command(
        "segcft.cli.report_commands:inspect", "one page that shows what a prepared data set holds", heavy=False
    ),
    "fit": Command(
        TRAINING, "train one stage: attributes, segmentor, regressor, pretrain, segcft, regcft, nocft", verb=True
    ),
    "validate": Command(TRAINING, "the stage's own measures on the validation split", verb=True),
    "test": Command(TRAINING, "the same on the test split", verb=True),
    "predict": Command(TRAINING, "measurements or counterfactuals of the test split, under predictions/", verb=True),
    "evaluate": Command(
        "segcft.cli.data_commands:evaluate", "compare trained models on the same interventions: tables and a figure"
    ),
    "sweep": Command("segcft.sweeping.command:sweep", "fit with many settings or seeds: a table and a picture"),
    "report": Command(
        "segcft.cli.report_commands:report", "one page from results: which method is best, by how much", heavy=False
    ),
    "figure": Command("segcft.cli.report_commands:figure", "a panel for a paper from results", heavy=False),
    "counterfactual": Command(
        "segcft.inference.command:counterfactual", 'ask a trained model "what if" about your files'
    ),
    "serve": Command("segcft.app.command:serve", "a page on which images are changed by sliders"),
    "export": Command("segcft.inference.export:export", "pack a trained model and its segmentor into one folder"),
    "info": Command(
        "segcft.inference.info:info", "what a checkpoint, bundle or folder is, and what may be asked of it", heavy=False
    ),
    "launch": Command("segcft.cli.launch:launch", "start a script in one process per device", heavy=False),
    "completion": Command("segcft.cli.completion:completion", "completion for a shell: bash or zsh", heavy=False),
}
MORE = """
A fit that was interrupted goes on when its command is given again; --resume=never starts anew.
Configuration files name code of segcft and its libraries alone; --trust PACKAGE lets them name yours.
Several --config files are read in order and later ones override; so do options: --trainer.max_steps=100.
`segcft COMMAND --help` lists the options of a command. `segcft --version` says what is installed.
Completion by the Tab key: eval "$(segcft completion bash)" in ~/.bashrc, or zsh in ~/.zshrc.
"""


def usage() -> str:
    """What ``segcft --help`` prints."""
    lines = [f"  {name:<15}{command.help}" for name, command in COMMANDS.items()]
    intro = "usage: segcft COMMAND [options]\n\nStructure-specific counterfactual medical images.\n"
    return "\n".join([intro, *lines, MORE.rstrip()])


def versions() -> str:
    """What ``segcft --version`` prints."""
    found = [f"segcft {_version('segcft')}", f"Python {platform.python_version()}"]
    found += [f"{name} {_version(name)}" for name in ("torch", "lightning")]
    known = commit()
    return ", ".join([*found, f"commit {known}"] if known else found)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 if some files failed, 2 with one clear line on bad input (a traceback with SEGCFT_DEBUG=1), 75
        if training was asked to stop by a signal and can go on.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        print(versions() if "--version" in arguments[:1] else usage())
        return 0 if arguments else 2
    try:
        return _run(arguments)
    except Interrupted as stop:
        print(f"segcft: {stop}", file=sys.stderr)
        return AGAIN
    except ValueError as error:
        if os.environ.get("SEGCFT_DEBUG"):
            raise
        print(f"segcft: error: {simplified(str(error))}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    name = arguments[0]
    command = COMMANDS.get(name)
    if command is None:
        raise ValueError(f"unknown command {name!r}{meant(name, COMMANDS)} (segcft --help lists all commands)")
    if command.function != TRAINING and processes(os.environ) > 1:
        raise ValueError(f"{name} works in one process: run it without a launcher")
    _quiet()
    admitted = admit(arguments)
    if command.heavy:
        from segcft.cli import cpu  # lazily: it imports torch

        cpu.hasten()
        guard()
    module, _, function = command.function.partition(":")
    run = getattr(importlib.import_module(module), function)
    warnings.formatwarning = _told  # after Lightning, which sets its own when it is imported
    return run(admitted if command.verb else admitted[1:]) or 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _told(message: Any, *_: Any, **__: Any) -> str:
    """A warning as a user reads it, without the line of code that gave it."""
    return f"segcft: warning: {message}\n"


def _quiet() -> None:
    """Drop notes of libraries that a user can do nothing about."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's calls
    notes = (
        "LeafSpec",
        "does not have many workers",
        "exists and is not empty",
        r"module\(s\) in eval mode",
        "args parameter",
        "all_reduce is deprecated",  # what is named instead is private
    )
    for text in notes:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
