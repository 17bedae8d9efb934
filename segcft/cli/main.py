"""Command line: ``segcft prepare | inspect | fit | validate | test | predict | evaluate | report | ...``."""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionYesNo, ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from data_modules.common.data_module import DataModule
from data_modules.preparation.inspect import inspect
from data_modules.preparation.prepare import prepare
from segcft.app.command import serve
from segcft.callbacks.checkpointing import AGAIN, Interrupted, Keep, WholeCheckpoints
from segcft.callbacks.counterfactual_images import CounterfactualImages
from segcft.callbacks.prediction_files import PredictionFiles
from segcft.callbacks.progress import StepProgress
from segcft.callbacks.resume import Start, begin, facts
from segcft.callbacks.run_record import Record
from segcft.callbacks.tensorboard import Pace
from segcft.callbacks.tensorboard_overview import FrontPage
from segcft.callbacks.training_health import DataStall, Latents, Response, Setback, StepGuard
from segcft.callbacks.validation_metrics import Watch
from segcft.cli import cpu
from segcft.cli.launch import processes, settle, told
from segcft.core.atomic_files import try_out
from segcft.core.trusted_code import admit
from segcft.evaluation import evaluate
from segcft.inference.command import counterfactual
from segcft.inference.export import export
from segcft.reporting import figure, report
from segcft.sweeping import sweep
from segcft.tasks import Task

SOURCES = {
    "chexpert": "data_modules.chexpert.CheXpert",
    "mimic_cxr": "data_modules.mimic_cxr.MimicCXR",
    "padchest": "data_modules.padchest.PadChest",
    "folder": "data_modules.folder.Folder",
    "coronary_cta": "data_modules.coronary_cta.CoronaryCTA",
}

# what does not decide what a run learns, or is told to the Trainer
UNTOLD = ("config", "ckpt_path", "weights_only", "save_every", "resume", "deterministic")

USAGE = """usage: segcft {prepare,inspect,fit,validate,test,predict,evaluate} [--config FILE.yaml ...] [--help]
       segcft counterfactual --checkpoint FILE --image FILE --do NAME=VALUE --out FOLDER
       segcft export --checkpoint FILE --out FOLDER
       segcft sweep PLAN.yaml --out FOLDER [--workers N]
       segcft serve BUNDLE
       segcft report RESULTS [RESULTS ...] --out FILE.html
       segcft figure RESULTS --out FILE.pdf

Structure-specific counterfactual medical images.

  prepare    read a data set once and keep it for fast reading; goes on where it was interrupted
  inspect    one page that shows what a prepared data set holds
  fit        train one stage: attributes, segmentor, regressor, pretrain, segcft, regcft, nocft
  validate   the stage's own measures on the validation split
  test       the same on the test split
  predict    measurements or counterfactuals of the test split, under predictions/
  evaluate   compare trained models on a fixed table of interventions: metrics, tables and a figure
  sweep      fit with many settings or seeds: a table and a picture of what the validation split says
  report     one page from results folders: which method is best, by how much, at what cost, and whether to trust it
  figure     a panel for a paper from a results folder: factual, counterfactuals, changes, measured values

  counterfactual   ask a trained model "what if" about your files: images, panels and numbers
  serve            a page on which images are pulled by sliders, on this computer alone unless told otherwise
  export           pack a trained model, its segmentor and a model card into one folder to hand on

A fit that was interrupted goes on when its command is given again; --resume=never starts anew.
Configuration files name code of segcft and its libraries alone; --trust PACKAGE lets them name yours.
Several --config files are read in order and later ones override; so do options: --trainer.max_steps=100.
`segcft COMMAND --help` lists the options of a command.
"""


class SegCFTCLI(LightningCLI):
    """LightningCLI that tells the task what the data measure, and where a run keeps its files.

    Args:
        command: The one that is asked for; options of the others are not put together.
        settings: Of ``LightningCLI``.
    """

    def __init__(self, command: str, **settings: Any) -> None:
        self.command = command
        super().__init__(Task, DataModule, **settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """All of them only if an unknown one is asked for."""
        every = LightningCLI.subcommands()
        return {name: skipped for name, skipped in every.items() if name == self.command} or every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One link, the experiment's name, and when to save and go on."""
        parser.add_argument("--experiment", type=str, default="default", help="folder under checkpoints/ and logs/")
        parser.add_argument("--resume", type=str, default="auto", help="fit: auto, never or a checkpoint")
        parser.add_argument("--save_every", type=float, default=10.0, help="fit: minutes between two checkpoints")
        parser.add_argument("--deterministic", action=ActionYesNo, default=False, help="the same bits on a GPU, too")
        parser.link_arguments("data.description", "model.init_args.description", apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Keep checkpoints under checkpoints/EXPERIMENT/STAGE and TensorBoard logs under logs/EXPERIMENT/STAGE."""
        config = self.config[self.subcommand]
        assert isinstance(self.model, Task)
        for name, value in told(os.environ).items():
            if config.trainer[name] in (None, "auto", 1 if name == "num_nodes" else "auto"):  # the user left it open
                kwargs[name] = value
        if config.deterministic:
            kwargs["deterministic"] = True
        callbacks: list[Callback] = [StepProgress()]
        if not config.trainer.fast_dev_run:
            folder = os.path.join(config.experiment, self.model.stage)
            callbacks.append(PredictionFiles(os.path.join("predictions", folder)))
            self.start = self._start(os.path.join("checkpoints", folder), kwargs)
            callbacks += [StepGuard(os.path.join("checkpoints", folder)), Latents(), Response(), Setback(), DataStall()]
            callbacks.append(Keep(os.path.join("checkpoints", folder), config.save_every, self.start.run))
            kwargs["plugins"] = [*_listed(self._get(self.config_init, "trainer").plugins), WholeCheckpoints()]
            if config.trainer.logger is None:
                place: dict[str, Any] = {"name": self.model.stage, "version": self.start.run.version}
                if self.start.run.version is not None:  # the same folder, without what was logged after the checkpoint
                    place["purge_step"] = self.start.step
                kwargs["logger"] = TensorBoardLogger(os.path.join("logs", config.experiment), **place)
            text = self._parser(self.subcommand).dump(config, skip_none=True)
            callbacks.append(Record(os.path.join("checkpoints", folder), yaml.safe_load(text)))
            if config.trainer.logger is False:
                self.save_config_callback = None  # it would write where the command was typed; run.json has it all
            else:
                callbacks += [LearningRateMonitor("step"), Pace(), CounterfactualImages(), Watch()]
                callbacks.append(FrontPage(text, yaml.safe_load(text)))
        self.trainer_defaults = {"callbacks": callbacks}
        trainer = super().instantiate_trainer(**kwargs)
        settle(trainer, os.environ)
        return trainer

    def _start(self, folder: str, told: dict[str, Any]) -> Start:
        """Where the run begins; of a configuration, all counts but how it is started and when it is saved."""
        config = self.config[self.subcommand]
        text = self._parser(self.subcommand).dump(config, skip_none=False)
        plain = yaml.safe_load(text)
        plain["trainer"] |= told
        configuration = facts({key: value for key, value in plain.items() if key not in UNTOLD})
        fresh = self.subcommand != "fit" or config.get("ckpt_path") is not None
        return begin(Path(folder), configuration, "never" if fresh else config.resume)

    def before_fit(self) -> None:
        """See that the run can be kept, and go on by hand: given to the parser, a checkpoint would override the rest.

        Raises:
            ValueError: If checkpoints or logs cannot be written.
        """
        start = getattr(self, "start", None)
        if start is not None and self.trainer.is_global_zero:
            assert isinstance(self.model, Task)
            try_out(Path("checkpoints", self.config[self.subcommand].experiment, self.model.stage))
            if isinstance(self.trainer.logger, TensorBoardLogger):
                try_out(Path(self.trainer.logger.root_dir))
        if start is not None and start.checkpoint is not None:
            self.config_init[self.subcommand].ckpt_path = str(start.checkpoint)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 if some files failed, 2 with one clear line on bad input (a traceback with SEGCFT_DEBUG=1), 75
        if training was asked to stop by a signal and can go on.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    _quiet()
    cpu.hasten()
    try:
        arguments = admit(arguments)
        command = COMMANDS.get(arguments[0])
        if command:
            if processes(os.environ) > 1:
                raise ValueError(f"{arguments[0]} works in one process: run it without a launcher")
            return command(arguments[1:]) or 0
        _train(arguments)
    except Interrupted as stop:
        print(f"segcft: {stop}", file=sys.stderr)
        return AGAIN
    except ValueError as error:
        if os.environ.get("SEGCFT_DEBUG"):
            raise
        print(f"segcft: error: {error}", file=sys.stderr)
        return 2
    return 0


def _train(arguments: list[str]) -> None:
    SegCFTCLI(
        arguments[0],
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


def _evaluate(arguments: list[str]) -> None:
    parser = ArgumentParser(prog="segcft evaluate", description=evaluate.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; later ones override")
    parser.add_argument("--seed_everything", type=int, default=0, help="as in fit; unused")
    parser.add_subclass_arguments(DataModule, "data", required=True)
    parser.add_function_arguments(evaluate, skip={"data"})
    config = parser.instantiate_classes(parser.parse_args(arguments))
    config.pop("config", None)
    config.pop("seed_everything", None)
    evaluate(**config.as_dict())


def _prepare(arguments: list[str]) -> None:
    name = arguments[0] if arguments else ""
    if name not in SOURCES:
        print(f"usage: segcft prepare {{{','.join(SOURCES)}}} --out FOLDER [options], see segcft prepare NAME --help")
        if name in ("-h", "--help"):
            return
        raise ValueError(f"unknown data set {name!r}; one of {', '.join(SOURCES)} is needed")
    module, _, kind = SOURCES[name].rpartition(".")
    source = getattr(importlib.import_module(module), kind)
    parser = ArgumentParser(prog=f"segcft prepare {name}", description=prepare.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; later ones override")
    options = set(parser.add_class_arguments(source))
    parser.add_argument("--out", type=str, required=True, help="folder of the cache")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read")
    parser.add_argument(
        "--on-error", "--on_error", type=Literal["fail", "skip"], default="fail", help="at a subject that can't be read"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="replace a cache made of something else")
    config = parser.instantiate_classes(parser.parse_args(arguments[1:]))
    cache = prepare(
        source(**{key: config[key] for key in options}), config.out, config.workers, config.on_error, config.overwrite
    )
    counts = ", ".join(f"{name} {count}" for name, count in cache.facts["counts"].items())
    print(f"{cache.folder}: {counts}; {cache.facts['quarantined']} left out; see segcft inspect {cache.folder}")


def _inspect(arguments: list[str]) -> None:
    parser = ArgumentParser(prog="segcft inspect", description=inspect.__doc__)
    parser.add_function_arguments(inspect, as_positional=True)
    inspect(**parser.parse_args(arguments).as_dict())


def _report(arguments: list[str]) -> None:
    parser = ArgumentParser(prog="segcft report", description=report.__doc__)
    parser.add_argument("results", nargs="+", type=str, help="folders that segcft evaluate or make benchmark wrote")
    parser.add_argument("--out", type=str, default="report.html", help="file to write: .html or .md")
    print(f"report: {report(**parser.parse_args(arguments).as_dict())}")


def _figure(arguments: list[str]) -> None:
    parser = ArgumentParser(prog="segcft figure", description=figure.__doc__)
    parser.add_function_arguments(figure, as_positional=True)
    print(f"figure: {figure(**parser.parse_args(arguments).as_dict())}")


def _listed(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "evaluate": _evaluate,
    "report": _report,
    "figure": _figure,
    "prepare": _prepare,
    "inspect": _inspect,
    "counterfactual": counterfactual,
    "export": export,
    "sweep": sweep,
    "serve": serve,
}


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
