"""Launchers: ``segcft launch`` (or ``lightning run``), and what torchrun, Fabric and SLURM tell the Trainer.

A launcher starts the processes and says in the environment how many there are; a Trainer that is not told would train
as often, alone each time. ``told`` reads the environment, ``refuse_lonely`` stops a Trainer that stayed alone.
"""

import atexit
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

SDK = "lightning-sdk"  # the package that owns the command's other verbs
FOREIGN = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")
INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which a user starts processes by hand

USAGE = f"""usage: segcft launch [model] [--devices=N] [--accelerator=A] [--strategy=S] [--precision=P]
                     [--num-nodes=N] [--node-rank=N] [--main-address=HOST] [--main-port=PORT] SCRIPT [arguments]

Start SCRIPT once a device. SCRIPT is a file, or the name of a package that runs by itself: segcft.
Options of the launcher stand before SCRIPT, those of the script behind it:

  segcft launch --devices=2 --accelerator=cpu segcft fit --config results/chest_phantom/logs/pretrain.yaml

`lightning run` does the same where the command `lightning` is segcft's. The package {SDK} has a command of that
name, too, and of two packages the one installed last keeps it.
"""


def launch(arguments: list[str]) -> int:
    """``segcft launch``: start a script in several processes.

    Raises:
        ValueError: If there is no script.
    """
    return run(arguments)


def main(arguments: list[str] | None = None) -> int:
    """``lightning run`` starts processes; anything else is lightning-sdk's.

    Returns:
        0 on success, 2 with one clear line on bad input.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    try:
        return run(arguments[1:]) if arguments[0] == "run" else _hand_on(arguments)
    except ValueError as error:
        print(f"lightning: error: {error}", file=sys.stderr)
        return 2


def run(arguments: list[str]) -> int:
    """Start a script in several processes by Fabric's launcher, which tells them how many they are.

    Args:
        arguments: ``[model] [options] SCRIPT [arguments of the script]``.

    Raises:
        ValueError: If there is no script.
    """
    if any(word in ("-h", "--help") for word in arguments[:1]):
        print(USAGE)
        return 0
    options, script, rest = split(arguments[1:] if arguments[:1] == ["model"] else arguments)
    from lightning.fabric.cli import _main

    # the package is found by the processes wherever it is found here
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([os.getcwd(), *_paths()]))
    # without --, Fabric's launcher would take options of the script for its own
    _main(args=["run", *options, located(script), "--", *rest], prog_name="lightning", standalone_mode=False)
    return 0


def split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """Options of the launcher, the script, and the script's own arguments.

    Raises:
        ValueError: If there is no script.
    """
    place = 0
    while place < len(arguments) and arguments[place].startswith("-"):
        if arguments[place] == "--":
            arguments = arguments[:place] + arguments[place + 1 :]
            break
        place += 1 if "=" in arguments[place] else 2
    if place >= len(arguments):
        raise ValueError("a script to run is missing, see segcft launch --help")
    rest = arguments[place + 1 :]
    return arguments[:place], arguments[place], rest[1:] if rest[:1] == ["--"] else rest


def located(script: str) -> str:
    """The file to run: the script itself, or the ``__main__`` of the package of that name.

    Raises:
        ValueError: If there is neither.
    """
    if Path(script).is_file():
        return script
    found = importlib.util.find_spec(script) if script.isidentifier() else None
    for folder in (found.submodule_search_locations or []) if found else []:
        if (file := Path(folder) / "__main__.py").is_file():
            return str(file)
    raise ValueError(f"{script} is neither a file nor a package that runs by itself")


def told(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the launcher asks of the Trainer: any of devices, num_nodes, accelerator, strategy, precision.

    Args:
        environment: Variables of the process, as ``os.environ``.
    """
    settings: dict[str, Any] = {}
    if "LT_CLI_USED" in environment:
        names = {name: environment.get(f"LT_{name.upper()}") for name in ("accelerator", "strategy", "precision")}
        settings = {name: value for name, value in names.items() if value}
    if "TORCHELASTIC_RUN_ID" in environment:
        here = int(environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]))
        settings |= {"devices": here, "num_nodes": int(environment["WORLD_SIZE"]) // here}
    elif "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in INTERACTIVE:
        tasks, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", "1"))
        settings |= {"devices": int(environment.get("SLURM_NTASKS_PER_NODE", tasks // nodes)), "num_nodes": nodes}
    chosen = environment.get("LT_DEVICES", "")
    if "," in chosen and settings.get("accelerator") != "cpu":
        settings["devices"] = chosen  # these very GPUs
    return settings


def processes(environment: Mapping[str, str]) -> int:
    """How many processes the launcher says it started; 1 without a launcher."""
    return int(environment.get("WORLD_SIZE") or 1)


def refuse_lonely(world_size: int, environment: Mapping[str, str]) -> None:
    """Stop a Trainer that is alone though the launcher started several.

    Args:
        world_size: Processes that the Trainer knows of.
        environment: Variables of the process, as ``os.environ``.

    Raises:
        ValueError: If the launcher started another number of processes.
    """
    started = processes(environment)
    if started not in (1, world_size):
        raise ValueError(
            f"the launcher started {started} processes (WORLD_SIZE), but the Trainer knows of {world_size}: each would "
            "train alone and write the same files; drop --trainer.devices and --trainer.num_nodes, or let them agree"
        )


def settle(trainer: Any, environment: Mapping[str, str]) -> None:
    """See that a Trainer fits its launcher and these tasks: not every stage uses every parameter of its parts.

    The process leaves its group when it ends, whatever the backend.

    Args:
        trainer: Lightning's, before it begins.
        environment: Variables of the process, as ``os.environ``.

    Raises:
        ValueError: If it is alone though several processes were started, or shares out parameters in a foreign way.
    """
    refuse_lonely(trainer.world_size, environment)
    if type(trainer.strategy).__name__ in FOREIGN:
        raise ValueError(
            f"averaged weights (EMA) do not work under {type(trainer.strategy).__name__}: "
            "use --trainer.strategy=sharded, which shares out parameters, too, or ddp"
        )
    options = getattr(trainer.strategy, "_ddp_kwargs", None)
    if options is not None:
        options.setdefault("find_unused_parameters", True)
    atexit.unregister(_leave)  # once, though a process may train several times
    atexit.register(_leave)


def _leave() -> None:
    """Leave the process group while the interpreter stands: threads of gloo that outlive it abort the process."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        gc.collect()  # averages and wrapped models in cycles hold the group, too
        distributed.destroy_process_group()


def _paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _hand_on(arguments: list[str]) -> int:
    """Let lightning-sdk answer, if it is installed."""
    try:
        commands = distribution(SDK).entry_points.select(group="console_scripts", name="lightning")
    except PackageNotFoundError:
        raise ValueError(
            f"unknown command {arguments[0]!r}: segcft's `lightning` knows only `run`; "
            f"the others belong to the package {SDK}, which is not installed"
        ) from None
    for command in commands:
        return command.load()() or 0  # it reads sys.argv
    raise ValueError(f"the installed {SDK} has no command `lightning` to hand {arguments[0]!r} on to")


if __name__ == "__main__":
    sys.exit(main())
