"""``segcft fit | validate | test | predict``: Lightning's command line over the tasks and data modules."""

import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionYesNo, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from data_modules.common.data_module import DataModule
from segcft.callbacks.checkpointing import AtomicCheckpoints, IntervalCheckpoint
from segcft.callbacks.counterfactual_images import CounterfactualImages
from segcft.callbacks.prediction_files import PredictionFiles
from segcft.callbacks.progress import StepProgress
from segcft.callbacks.resume import Start, begin, facts
from segcft.callbacks.run_record import RunRecord, surroundings
from segcft.callbacks.stopped_processes import StoppedProcesses
from segcft.callbacks.tensorboard import Throughput
from segcft.callbacks.tensorboard_overview import TensorBoardOverview
from segcft.callbacks.training_health import (
    DataStall,
    InterventionResponse,
    PosteriorCollapse,
    PretrainingDivergence,
    StepGuard,
)
from segcft.callbacks.validation_metrics import ValidationMetrics
from segcft.cli.launch import settle, told
from segcft.core import checkpoints
from segcft.core.atomic_files import try_out
from segcft.core.folder_lock import Lock, alone
from segcft.core.formatting import one_line
from segcft.core.parsing import NOWHERE, Failing
from segcft.core.trusted_code import inside
from segcft.tasks import Task

# what does not decide what a run learns, or is told to the Trainer
UNTOLD = ("config", "ckpt_path", "weights_only", "save_every", "resume", "deterministic")

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of a process, as launchers tell it
LOCK = "running.json"
HEALTH = (PosteriorCollapse, InterventionResponse, PretrainingDivergence, DataStall)


class OneLineParser(Failing, LightningArgumentParser):  # type: ignore[misc]
    """Lightning's parser without a page of usage at every mistake."""


class SegCFTCLI(LightningCLI):
    """LightningCLI that tells the task what the data measure, and where a run keeps its files.

    Args:
        command: The one that is asked for; options of the others are not put together.
        settings: Of ``LightningCLI``.
    """

    def __init__(self, command: str, **settings: Any) -> None:
        self.command = command
        with ExitStack() as self.held:
            super().__init__(Task, DataModule, **settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """All of them only if an unknown one is asked for."""
        every = LightningCLI.subcommands()
        return {name: skipped for name, skipped in every.items() if name == self.command} or every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links, the experiment's name, and when to save and go on."""
        parser.add_argument("--experiment", type=str, default="default", help="folder under checkpoints/ and logs/")
        parser.add_argument("--resume", type=str, default="auto", help="fit: auto, force, never or a checkpoint")
        parser.add_argument("--save_every", type=float, default=10.0, help="fit: minutes between two checkpoints")
        parser.add_argument("--deterministic", action=ActionYesNo, default=False, help="the same bits on a GPU, too")
        parser.link_arguments("data.description", "model.init_args.description", apply_on="instantiate")
        parser.link_arguments("data.frame", "model.init_args.frame", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Ignore the hyper-parameters of a checkpoint, which would override the configuration and may name classes."""

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Open checkpoints without running code from them, whatever libraries do by default."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Keep checkpoints under checkpoints/EXPERIMENT/STAGE and TensorBoard logs under logs/EXPERIMENT/STAGE."""
        config = self.config[self.subcommand]
        _check_places(config)
        assert isinstance(self.model, Task)
        inside(self.model.stage, "stage")
        _check_supported(config, self.model)
        for name, value in told(os.environ).items():
            if config.trainer[name] in (None, "auto", 1 if name == "num_nodes" else "auto"):  # the user left it open
                kwargs[name] = value
        if config.deterministic:
            kwargs["deterministic"] = True
        callbacks: list[Callback] = [StepProgress(), StoppedProcesses()]
        if not config.trainer.fast_dev_run:
            folder = os.path.join(config.experiment, self.model.stage)
            callbacks.append(PredictionFiles(os.path.join("predictions", folder)))
            lock = self._lock(Path("checkpoints", folder))
            self.start = self._start(os.path.join("checkpoints", folder), kwargs)
            callbacks += [StepGuard(os.path.join("checkpoints", folder)), *(kind() for kind in HEALTH)]
            callbacks.append(IntervalCheckpoint(os.path.join("checkpoints", folder), config.save_every, self.start.run))
            kwargs["plugins"] = [*_listed(self._get(self.config_init, "trainer").plugins), AtomicCheckpoints(lock)]
            if config.trainer.logger is None:
                place: dict[str, Any] = {"name": self.model.stage, "version": self.start.run.version}
                if self.start.run.version is not None:  # the same folder, without what was logged after the checkpoint
                    place["purge_step"] = self.start.step
                kwargs["logger"] = TensorBoardLogger(os.path.join("logs", config.experiment), **place)
            text = self._parser(self.subcommand).dump(config, skip_none=True)
            callbacks.append(RunRecord(os.path.join("checkpoints", folder), yaml.safe_load(text)))
            if config.trainer.logger is False:
                self.save_config_callback = None  # it would write where the command was typed; run.json has it all
            else:
                callbacks += [LearningRateMonitor("step"), Throughput(), CounterfactualImages(), ValidationMetrics()]
                callbacks.append(TensorBoardOverview(text, yaml.safe_load(text)))
        self.trainer_defaults = {"callbacks": callbacks}
        trainer = super().instantiate_trainer(**kwargs)
        settle(trainer, os.environ)
        return trainer

    def _lock(self, folder: Path) -> Lock | None:
        """Keep other trainings out of the folder until this one ends; for all its processes the first one does so.

        Raises:
            ValueError: If another one is at work there, or the folder cannot be written.
        """
        if self.subcommand != "fit" or any(os.environ.get(name, "0") != "0" for name in RANKS):
            return None
        try_out(folder)
        self.held.callback(_remove_if_empty, folder)
        return self.held.enter_context(alone(folder / LOCK))

    def _start(self, folder: str, told: dict[str, Any]) -> Start:
        """Where the run begins; of a configuration, all counts but how it is started and when it is saved."""
        config = self.config[self.subcommand]
        text = self._parser(self.subcommand).dump(config, skip_none=False)
        plain = yaml.safe_load(text)
        plain["trainer"] |= told
        configuration = facts({key: value for key, value in plain.items() if key not in UNTOLD})
        if self.subcommand == "fit":
            configuration |= surroundings(self.datamodule, self.model.reads_images)
        fresh = self.subcommand != "fit" or config.get("ckpt_path") is not None
        return begin(Path(folder), configuration, "never" if fresh else config.resume)

    def before_fit(self) -> None:
        """See that the run can be logged, and go on by hand: given to the parser, a checkpoint would override the rest.

        Raises:
            ValueError: If logs cannot be written.
        """
        start = getattr(self, "start", None)
        logger = self.trainer.logger
        if start is not None and isinstance(logger, TensorBoardLogger) and self.trainer.is_global_zero:
            try_out(Path(logger.root_dir))
        if start is not None and start.checkpoint is not None:
            self.config_init[self.subcommand].ckpt_path = str(start.checkpoint)


class Options(SegCFTCLI):
    """Parses the options of a command, and makes nothing of them."""

    def _set_seed(self) -> None:
        """Leave random numbers alone."""

    def instantiate_classes(self) -> None:
        """See that what is read and written lies where it may."""
        _check_places(self.config[self.subcommand])

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def train(arguments: list[str], interface: type[SegCFTCLI] = SegCFTCLI) -> None:
    """Run one of Lightning's commands.

    Args:
        arguments: The command first.
        interface: ``Options`` only parses.

    Raises:
        Interrupted: If training was asked to stop by a signal; it has saved.
        ValueError: If something given is wrong.
    """
    # Lightning has configurations read from anywhere that fsspec knows
    set_parsing_settings(config_read_mode_fsspec_enabled=False, config_read_mode_urls_enabled=False)
    try:
        _run(arguments, interface)
    except MisconfigurationException as error:  # what Lightning says of settings of its Trainer
        raise ValueError(one_line(error)) from error
    except ValueError as error:
        words = zip(["", *arguments], arguments, strict=False)
        files = [w.removeprefix("--config=") for last, w in words if last == "--config" or w.startswith("--config=")]
        nowhere = f"neither {', '.join(files)} nor an option"
        raise ValueError(str(error).replace(NOWHERE, nowhere) if files else str(error)) from error


def _run(arguments: list[str], interface: type[SegCFTCLI]) -> None:
    interface(
        arguments[0],
        parser_class=OneLineParser,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 10,
            "use_distributed_sampler": False,  # data modules share subjects out themselves
        },
        args=arguments if arguments != sys.argv[1:] else None,  # Lightning warns when both are there
    )


def _remove_if_empty(folder: Path) -> None:
    """A training that was refused leaves no folders behind."""
    with suppress(OSError):  # of the first one that is not
        for each in (folder, *list(folder.parents)[:-1]):
            each.rmdir()


def _check_places(config: Any) -> None:
    """See that what is read is a file of this machine that runs no code, and what is written stays in its folder.

    Raises:
        ValueError: If not.
    """
    inside(config.experiment)
    if config.get("ckpt_path"):
        checkpoints.read(str(config.ckpt_path))
    if config.get("weights_only") is False:
        raise ValueError("weights_only = false would run code from a checkpoint: those of segcft open without")


def _check_supported(config: Any, task: Task) -> None:
    """See that a given checkpoint is of the stage, and that the Trainer does not take over the order of subjects.

    Raises:
        ValueError: If not.
    """
    if config.get("ckpt_path"):
        task.check_checkpoint(str(config.ckpt_path))
    if overfit := config.trainer.overfit_batches:
        raise ValueError(
            f"trainer.overfit_batches = {overfit:g} is not supported: segcft's loaders divide and order subjects "
            "themselves; give fewer subjects, or --trainer.limit_train_batches"
        )


def _listed(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
