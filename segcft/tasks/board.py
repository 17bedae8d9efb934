"""TensorBoard, the same tags for every stage: pace, pictures, and a first page that can be read."""

import math
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from segcft.mechanisms import StructuralCausalModel
from segcft.tasks.base import Batch, looked_at

LAYOUT = {
    "Does it learn?": {
        "training": ["Multiline", ["^train/(loss|nelbo|nll|guidance|shape)$"]],
        "validation": ["Multiline", ["^val/(loss|nelbo|nll|guidance|shape)$"]],
        "KL by resolution": ["Multiline", ["^train/kl_"]],
        "latents in use": ["Multiline", ["^latents/"]],
    },
    "Does it run well?": {
        "learning rate": ["Multiline", ["^lr-"]],
        "gradient norm": ["Multiline", ["^health/gradient$"]],
        "images a second": ["Multiline", ["^pace/images_per_second$"]],
        "share of waiting for data": ["Multiline", ["^health/waiting$"]],
        "memory, GiB": ["Multiline", ["^pace/memory_gib$"]],
    },
    "Does the rest stay?": {
        "change": ["Multiline", ["^(train|val)/change$"]],
        "multiplier of the bound": ["Multiline", ["^train/multiplier$"]],
        "is the guide being gamed?": ["Multiline", ["^val/gap_"]],
    },
}
LONGEST = 80  # characters of a setting among the hyperparameters


def writer(trainer: Trainer) -> SummaryWriter | None:
    """TensorBoard's, in the process that writes; None without one."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            board: SummaryWriter = logger.experiment
            return board
    return None


class Pace(Callback):
    """``pace/images_per_second`` since the last logged step, validation left out, and ``pace/memory_gib``."""

    def __init__(self) -> None:
        self._since, self._images, self._due = math.nan, 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since, self._images = time.monotonic(), 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._since -= time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        self._since += time.monotonic()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Gradients may be summed over several batches: only the last of them takes a step."""
        self._due = looked_at(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log."""
        self._images += len(batch["index"]) * trainer.world_size
        if self._due:
            now = time.monotonic()
            speed = self._images / max(now - self._since, 1e-9)
            numbers = {"pace/images_per_second": speed, "pace/memory_gib": memory(pl_module.device)}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, trainer.global_step)
            self._since, self._images, self._due = now, 0, False


def memory(device: torch.device) -> float:
    """GiB, at most so far: of the accelerator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class FrontPage(Callback):
    """Configuration and causal graph as text, a layout of the scalars, and hyperparameters with the final metrics.

    Args:
        text: Configuration to show.
        settings: The same to compare runs by.
    """

    def __init__(self, text: str, settings: Mapping[str, Any]) -> None:
        self.text, self.settings = text, flat(settings)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known before the first step."""
        board = writer(trainer)
        if board is not None:
            board.add_custom_scalars(LAYOUT)
            board.add_text("config", "```yaml\n" + self.text + "\n```")
            board.add_text("causal_graph", graph(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the run came to."""
        board = writer(trainer)
        if board is not None:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            parts, file = hparams(self.settings, metrics), board._get_file_writer()  # type: ignore[no-untyped-call]
            for part in parts:
                file.add_summary(part)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names, as TensorBoard takes them; long lists are left out.

    >>> flat({"a": {"b": 1, "c": [1, 2], "d": None}})
    {'a.b': 1, 'a.c': '[1, 2]'}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, bool | int | float | str):
            found[name] = value
        elif value is not None and len(str(value)) <= LONGEST:
            found[name] = str(value)
    return found


def graph(module: LightningModule) -> str:
    """Who causes whom, as Markdown: every parent causes the image."""
    mechanism = getattr(module, "mechanism", None) or getattr(getattr(module, "model", None), "mechanism", None)
    holder = getattr(module, "model", None) or getattr(module, "judge", None)
    arrows = mechanism.graph if isinstance(mechanism, StructuralCausalModel) else {}
    lines = [f"- {', '.join(causes)} → {effect}" for effect, causes in arrows.items() if causes]
    names = mechanism.parents.names if isinstance(mechanism, StructuralCausalModel) else []
    names = holder.description.parents.names if holder is not None else names
    independent = [] if lines else ["- no variable causes another"]
    return "\n".join([*lines, *independent, f"- {', '.join(names)} → image"])
