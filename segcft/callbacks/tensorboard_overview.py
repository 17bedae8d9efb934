"""TensorBoard overview: scalar layout, configuration, data, causal graph, and hyperparameters with final metrics."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.tensorboard.summary import hparams

from data_modules.common.data_module import Rerenderable
from segcft.callbacks import run_record
from segcft.callbacks.judge_overfitting import evaluator, witness
from segcft.callbacks.tensorboard import writer
from segcft.core.formatting import number, printed_unit
from segcft.counterfactual.model import CounterfactualModel
from segcft.guidance.judges import Judge
from segcft.plots import figures

CHARTS = {  # category -> title -> tags, and the stages that have them, see ``kinds``
    "Are counterfactuals effective and specific?": {
        "effectiveness: error, %": ("^effectiveness/", "outlined"),
        "leakage: change of other variables, %": ("^leakage/", "outlined"),
        "locality: change outside the structure": ("^locality/", "outlined"),
        "error to the true counterfactual, relative to the unchanged image's": ("^truth/", "truth known"),
        "gap between evaluator and guide": ("^val/gap_", "watched"),
    },
    "Training and validation losses": {
        "training: error to the target": ("^train/(guidance|shape)$", "fine-tuning"),
        "validation: error to the target": ("^val/(guidance|shape)$", "fine-tuning"),
        "training: NELBO, nats per image dimension": ("^train/(nelbo|nll)$", "models"),
        "validation: NELBO, nats per image dimension": ("^val/(nelbo|nll)$", "models"),
        "training: loss": ("^train/loss$", "every stage"),
        "validation: loss": ("^val/loss$", "judges"),
        "KL by resolution, nats per image dimension": ("^train/kl_", "models"),
        "active latents, share": ("^latents/", "models"),
        "change of the image": ("^(train|val)/change$", "fine-tuning"),
        "Lagrange multiplier of the NELBO bound": ("^train/multiplier$", "fine-tuning"),
    },
    "Speed and health": {
        "images per second": ("^pace/images_per_second$", "every stage"),
        "share of time spent waiting for data": ("^health/waiting$", "every stage"),
        "memory, GiB": ("^pace/memory_gib$", "every stage"),
        "gradient norm": ("^health/gradient$", "every stage"),
        "learning rate": ("^lr-", "every stage"),
    },
}
SETTINGS = re.compile(
    r"seed_everything|(model|data)\..*|trainer\.(max_(steps|epochs)|precision|gradient_clip_val|accumulate_grad_batches)"
)
METRICS = ("val/", "effectiveness/", "leakage/", "locality/", "truth/")
LONGEST = 80  # longest hyperparameter, in characters


class TensorBoardOverview(Callback):
    """Writes configuration, data, causal graph, scalar layout, and hyperparameters with the final metrics.

    Args:
        text: Configuration as text.
        settings: Configuration as hyperparameters.
    """

    def __init__(self, text: str, settings: Mapping[str, Any]) -> None:
        self.text = text
        self.settings = {name: value for name, value in flat(settings).items() if SETTINGS.fullmatch(name)}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write text and layout before the first step."""
        board = writer(trainer)
        if board is not None:
            board.add_custom_scalars(layout(kinds(trainer, pl_module)))
            board.add_text("config", "```yaml\n" + self.text + "\n```")
            board.add_text("data", about(trainer.datamodule))  # type: ignore[attr-defined]
            drawn = figures.raster(figures.causal_graph(causes(pl_module)))
            board.add_image("variables/causal_graph", drawn, dataformats="HWC")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write hyperparameters with the final metrics."""
        board = writer(trainer)
        if board is not None:
            found = trainer.callback_metrics
            metrics = {name: float(value) for name, value in found.items() if name.startswith(METRICS)}
            parts, file = hparams(self.settings, metrics), board._get_file_writer()  # type: ignore[no-untyped-call]
            for part in parts:
                file.add_summary(part)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten settings to dotted names for TensorBoard; long lists and the level ``init_args`` are left out.

    >>> flat({"a": {"b": 1, "init_args": {"c": [1, 2], "d": None}}})
    {'a.b': 1, 'a.c': '[1, 2]'}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix.removesuffix(".") if key == "init_args" else f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, bool | int | float | str):
            found[name] = value
        elif value is not None and len(str(value)) <= LONGEST:
            found[name] = str(value)
    return found


def kinds(trainer: Trainer, module: LightningModule) -> set[str]:
    """The kinds of chart, as named in ``CHARTS``, that apply to a stage."""
    guidance, outlined = getattr(module, "guidance", None), witness(trainer, module) is not None
    data = trainer.datamodule.dataset("val")  # type: ignore[attr-defined]
    known = {
        "models": isinstance(getattr(module, "model", None), CounterfactualModel),
        "judges": isinstance(getattr(module, "judge", None), Judge),
        "fine-tuning": guidance is not None,
        "outlined": outlined,
        "truth known": outlined and isinstance(data, Rerenderable),
        "watched": bool(guidance and guidance.names) and evaluator(trainer) is not None,
    }
    return {"every stage", *(kind for kind, there in known.items() if there)}


def layout(shown: Collection[str]) -> dict[str, dict[str, list[Any]]]:
    """Layout of TensorBoard's custom scalars, without panels that would be empty.

    >>> list(layout({"every stage"}))
    ['Training and validation losses', 'Speed and health']
    """
    chosen = {
        category: {title: ["Multiline", [tags]] for title, (tags, kind) in charts.items() if kind in shown}
        for category, charts in CHARTS.items()
    }
    return {category: charts for category, charts in chosen.items() if charts}


def causes(module: LightningModule) -> dict[str, list[str]]:
    """The causal graph of a stage as effect -> causes, with the image as an effect of all variables."""
    mechanism = getattr(module, "mechanism", None) or getattr(getattr(module, "model", None), "mechanism", None)
    holder = getattr(module, "model", None) or getattr(module, "judge", None)
    known = mechanism.graph if mechanism is not None else {}
    names = holder.description.parents.names if holder is not None else list(known)
    return {**{name: list(known.get(name, [])) for name in names}, "image": list(names)}


def about(data: LightningDataModule) -> str:
    """The training data as Markdown: fingerprint, number of subjects, and statistics of the variables."""
    told, variables = run_record.about(data), data.description.parents.variables  # type: ignore[attr-defined]
    subjects = ", ".join(f"{split} {count}" for split, count in told["subjects"].items())
    rows = [
        f"| {name} | {each.kind} | {printed_unit(each.unit)} | "
        + " | ".join(number(value, each.decimals) for value in (each.low, each.mean, each.high))
        + " |"
        for name, each in variables.items()
    ]
    heads = ["| variable | kind | unit | lowest | mean | highest |", "|---|---|---|---|---|---|"]
    return "\n".join([f"fingerprint `{told['fingerprint']}`; subjects: {subjects}", "", *heads, *rows])
