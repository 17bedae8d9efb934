"""Base class of all training stages: optimiser, learning-rate schedule, memory format and checkpoint content."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch._inductor import list_mode_options
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_map_only

from segcft.causal.interventions import fixed_do
from segcft.core import checkpoints, distributed, random_state
from segcft.counterfactual.model import Counterfactual, CounterfactualModel
from segcft.hvae.convolutions import CHANNELS_LAST
from segcft.hvae.latents import Abduction

Batch = dict[str, Tensor]
MODES = ("default", "reduce-overhead")  # of torch.compile


@dataclass(frozen=True)
class Optimisation:
    """AdamW with linear warm-up, a constant phase and cosine decay to zero.

    Attributes:
        lr: Learning rate of the constant phase.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps until ``lr`` is reached; the rate is above 0 from the first step.
        flat: Fraction of all steps before the cosine decay begins.
        channels_last: Use the channels-last memory format (1.4 times as fast on CPU in 2-D); results do not change.
        beta2: Adam's decay of the mean squared gradient. At 0.95 the size of a step follows a gradient that grows at
            once; with half the rate this keeps a training from diverging, see docs/performance.md.
        compile: Mode of ``torch.compile`` for a step: ``default``, or ``reduce-overhead`` (CUDA graphs, for small
            shapes); empty for none. Compiling takes minutes before the first step; see docs/performance.md.

    Raises:
        ValueError: If ``compile`` is none of these, or ``beta2`` is not in [0, 1).
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 20
    flat: float = 0.5
    channels_last: bool = True
    beta2: float = 0.999
    compile: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must be in [0, 1), got {self.beta2:g}")
        if self.compile not in ("", *MODES):
            raise ValueError(f"compile must be {' or '.join(MODES)}, or empty, got {self.compile!r}")

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at ``step`` of ``steps``, as a fraction of ``lr``."""
        descent = max(0.0, (step / max(1, steps) - self.flat) / max(1e-9, 1 - self.flat))
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, descent)))

    def optimiser(self, learning: Iterable[nn.Parameter], fused: bool = True) -> AdamW:
        """AdamW that updates all weights in one fused call, since a loop over small tensors is slow.

        Args:
            learning: The weights to train.
            fused: Use the fused kernel; Lightning cannot clip gradients with it in mixed precision.
        """
        betas, decay = (0.9, self.beta2), self.weight_decay
        return AdamW(learning, self.lr, betas, weight_decay=decay, fused=fused, foreach=not fused)


class Task(LightningModule):
    """A training stage.

    Attributes:
        parts: Names of the attributes that a later stage may load; checkpoints store their recipes.
        reads_images: Whether training looks at images.

    Args:
        stage: Name of the stage in results, for instance ``pretrain``.
        optimisation: Optimiser and schedule.
    """

    parts: ClassVar[tuple[str, ...]]
    reads_images: ClassVar[bool] = True

    def __init__(self, stage: str, optimisation: Optimisation) -> None:
        super().__init__()
        self.stage, self.optimisation = stage, optimisation
        self.earlier_seconds: dict[str, float] = {}  # of this stage and earlier ones, before this process
        self._started = math.nan

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over all trainable weights, with the learning-rate schedule."""
        choice, steps = self.optimisation, max(1, int(self.trainer.estimated_stepping_batches))
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimiser = choice.optimiser(learning, fused="mixed" not in str(self.trainer.precision))
        schedule = LambdaLR(optimiser, lambda step: choice.factor(step, steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Set the memory format (before DDP builds its buckets), seed each process differently, and compile."""
        random_state.separate(self.global_rank)
        if stage == "fit" and self.optimisation.channels_last:
            for weight in self.parameters():
                if weight.dim() in CHANNELS_LAST:
                    weight.data = weight.data.to(memory_format=CHANNELS_LAST[weight.dim()])
                    if weight.requires_grad and self.trainer.world_size > 1:
                        distributed.align(weight)
        if stage == "fit":
            self.terms = compiled(self.terms, self.optimisation.compile)  # type: ignore[method-assign]

    def terms(self, batch: Batch, *given: Any) -> Any:
        """The computation of a training step without sampling, counters and logging; this is what is compiled."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_start(self) -> None:
        """Align the memory format of optimiser state loaded from a checkpoint with that of the weights."""
        for optimiser in self.trainer.optimizers:
            lay_out(optimiser)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipes and the training time."""
        parts = {name: getattr(self, name) for name in self.parts}
        checkpoint["segcft"] = checkpoints.describe(parts, self.seconds)

    def check_checkpoint(self, path: str) -> None:
        """Check that a checkpoint holds the parts of this stage, of this shape.

        Raises:
            ValueError: If it does not exist, holds weights that are not finite, or is one of another stage or
                architecture, naming both.
        """
        found = checkpoints.read(path)
        checkpoints.refuse_not_finite(found["state_dict"], path)
        about, state = found["segcft"], found["state_dict"]
        held = {name: recipe["class_path"] for name, recipe in about["parts"].items()}
        wanted = {name: getattr(self, name).recipe["class_path"] for name in self.parts}
        stage = next(reversed(about["seconds"]), "unknown")
        if held != wanted:
            ours, theirs = (", ".join(f"{name} = {path}" for name, path in each.items()) for each in (wanted, held))
            raise ValueError(f"{path} is of the stage {stage!r} and holds {theirs}; {self.stage!r} needs {ours}")
        for name, weight in self.named_parameters():
            if name.partition(".")[0] in self.parts and (name not in state or state[name].shape != weight.shape):
                shape = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"{path} has other weights than this {self.stage!r}: {name} is {shape} there, "
                                 f"{tuple(weight.shape)} here")  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the training time of the interrupted run."""
        self.earlier_seconds = dict(checkpoint["segcft"]["seconds"])

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by stage, including this one."""
        here = 0.0 if math.isnan(self._started) else time.monotonic() - self._started
        return {**self.earlier_seconds, self.stage: round(self.earlier_seconds.get(self.stage, 0.0) + here, 2)}

    def show(self, stage: str, values: dict[str, Tensor], batch: Batch) -> None:
        """Log means under ``stage/name``; the first one is also shown in the progress bar.

        At training steps that are not logged, only the first value is passed to Lightning, to save time.
        """
        size, evaluating = len(batch["index"]), stage != "train"
        if not evaluating and not looked_at(self.trainer):
            values = dict(list(values.items())[:1])
        if not evaluating and self.trainer.world_size > 1:  # in evaluation Lightning accumulates over batches first
            means = distributed.mean(torch.stack([value.detach().float() for value in values.values()]))
            values = dict(zip(values, means, strict=True))
        for place, (name, value) in enumerate(values.items()):
            weight = distributed.weight_of(size)
            self.log(f"{stage}/{name}", value, batch_size=weight, prog_bar=place == 0, sync_dist=evaluating)

    def neighbours(self, batch: Batch, split: str, names: list[str]) -> Batch:
        """Values of the subject before each in its split, (B,) each, whoever shares a batch or process with it."""
        columns = self.trainer.datamodule.dataset(split).attributes  # type: ignore[attr-defined]
        index = batch["index"].cpu() - 1
        return {name: columns[name][index].to(batch["index"].device) for name in names}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same metrics as in validation, on the test split."""
        self.evaluate(batch, "test")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the stage's metrics on the validation split."""
        self.evaluate(batch, "val")

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Log the metrics of the stage under ``stage/``."""
        raise NotImplementedError

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Predictions for a batch: a judge's measurements or a model's counterfactuals."""
        return {"index": batch["index"], **self.predictions(batch)}

    def predictions(self, batch: Batch) -> Batch:
        """Tensors by name, one row per subject."""
        raise NotImplementedError


class FirstValidationBatch(Callback, ABC):
    """Base class of callbacks that look at the first batches of every validation, without gradients.

    Attributes:
        batches: Number of batches.
        checked: Whether to run also in Lightning's sanity check.
    """

    batches: int = 1
    checked: bool = False

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Call ``look``; the averaged (EMA) weights are still active here."""
        if batch_idx < self.batches and (self.checked or not trainer.sanity_checking):
            self.look(trainer, pl_module, batch)

    @abstractmethod
    def look(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Log metrics or images of one batch."""


def compiled(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """``function`` under ``torch.compile`` with static shapes; ``mode`` is one of ``MODES``, or empty for no compiling.

    Random numbers are drawn by eager kernels, so they are the same as without compiling (and faster on a CPU).
    """
    if not mode:
        return function
    options = {**list_mode_options(mode), "fallback_random": True}
    fast = torch.compile(function, dynamic=False, options=options)
    if mode == "default":
        return fast
    return lambda *given: tree_map_only(Tensor, torch.clone, fast(*given))  # CUDA graphs reuse the output memory


def lay_out(optimiser: Optimizer) -> None:
    """Give the optimiser's moments the memory format of their weights, which the fused step requires."""
    for weight, averages in optimiser.state.items():
        for name, value in averages.items():
            if value.shape == weight.shape:
                averages[name] = torch.empty_like(weight).copy_(value)


def looked_at(trainer: Trainer, taken: bool = False) -> bool:
    """Whether the current step is logged, or the one that was just ``taken``."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + (not taken)) % every == 0


def passed(step: int, steps: int, share: float) -> float:
    """Progress through the first ``share`` of all steps at ``step``, from 0 to 1; 1 if ``share`` is 0."""
    end = share * max(1, steps)
    return min(1.0, step / end) if end else 1.0


def asked_in_turn(
    model: CounterfactualModel, batch: Batch, names: list[str], others: Batch | None = None
) -> tuple[Batch, Counterfactual]:
    """The interventions of validation, see ``fixed_do``, and their counterfactuals, with deterministic abduction."""
    do = fixed_do(batch, names, others)
    return do, model(batch["image"], batch, do, temperature=0.0)


def predictions(model: CounterfactualModel, batch: Batch, names: list[str], others: Batch) -> Batch:
    """Counterfactual images (B, C, *S) under the interventions of validation, and these as ``do_NAME``."""
    do, answer = asked_in_turn(model, batch, names, others)
    return {"image": answer.image, **{f"do_{name}": values for name, values in do.items()}}


def elbo_terms(found: Abduction) -> dict[str, Tensor]:
    """Terms of the ELBO in nats per image dimension: the NELBO at beta 1, NLL, KL, and the KL of every resolution."""
    elbo = found.elbo
    terms = {"nelbo": elbo.nelbo().mean(), "nll": elbo.nll.mean(), "kl": elbo.kl.sum(1).mean()}
    return {**terms, **elbo.kl_by_resolution}
