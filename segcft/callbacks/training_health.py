"""Training health: skips harmful optimiser steps and warns about collapse, divergence, no response and data stalls.

In each step only the gradient's norm and the loss are read from the device, in one transfer.
"""

import logging
import math
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from segcft.core import distributed
from segcft.core.atomic_files import staged
from segcft.core.formatting import number
from segcft.counterfactual.model import CounterfactualModel
from segcft.hvae.latents import Belief, Normal
from segcft.tasks.base import Batch, FirstValidationBatch, asked_in_turn, looked_at
from segcft.tasks.finetune import CounterfactualFineTuning
from segcft.tasks.pretrain import PretrainHVAE

log = logging.getLogger(__name__)
UNMOVED = (
    "training has ended and its checkpoint is kept, but a structure does not change: by the guide's measurement less "
    "than {least:g} of the requested change happens ({shut}). Fine-tune with prediction: segcft.counterfactual.Deformed"
    " (its gradient does not vanish), pretrain for longer, or increase the variable's weight (weights, guidance_weight)"
)
SHUT = (
    "do(%s) changes it by only %d %% of the requested change, in the second half of training: the gate may have "
    "closed, or the penalty on changing other variables is too strong. Check whether pretraining diverged (its "
    "val/nelbo), and try --model.init_args.annealing=0.5, which lowers the penalties at first"
)
BURST = (
    "step %d: the validation NELBO is %.3g and has been %.3g: pretraining has diverged; "
    "use half of --model.init_args.optimisation.lr, and --model.init_args.optimisation.beta2=0.95"
)


class StepGuard(Callback):
    """Skips optimiser steps whose loss or gradient is not finite, or whose gradient norm is an outlier.

    A skipped step leaves weights, optimiser moments and step count unchanged; the learning-rate schedule continues. The
    batches of the first skipped steps are saved. Logs ``health/gradient`` and ``health/skipped``.

    Args:
        folder: Folder for saved batches, ``bad-STEP.pt``; None to save none.
        patience: Stop training after this many skipped steps in a row.
        spike: A norm above this multiple of the median of the last 100 is an outlier; 0 accepts all finite norms.
        warmup: Number of steps before outliers are detected.
        steady: After this many skipped steps in a row, accept finite gradients and estimate the median anew.
        keep: Number of batches to save.
    """

    def __init__(
        self,
        folder: str | None = None,
        patience: int = 20,
        spike: float = 100.0,
        warmup: int = 50,
        steady: int = 3,
        keep: int = 3,
    ) -> None:
        self.folder, self.patience, self.spike, self.warmup, self.keep = folder, patience, spike, warmup, keep
        self.steady = steady
        self.skipped = self.in_a_row = 0
        self.norms: deque[float] = deque(maxlen=100)
        self._batch: Batch = {}
        self._loss = torch.zeros(())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Keep the batch in case it must be saved."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss for the check."""
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients, which are equal in all processes, and remove them if the step must be skipped.

        Raises:
            ValueError: After ``patience`` skipped steps in a row.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm, loss = self._read(gradients)
        reason = self._reason(norm, loss)
        if reason or looked_at(trainer):
            pl_module.log("health/gradient", norm if math.isfinite(norm) else -1.0)
            pl_module.log("health/skipped", float(self.skipped + bool(reason)))
        if not reason:
            self.norms.append(norm)
            self.in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        where = self._save(trainer)
        log.warning("step %d was skipped: %s; %d so far%s", trainer.global_step, reason, self.skipped, where)
        if self.in_a_row >= self.patience:
            raise ValueError(f"{self.in_a_row} steps in a row were skipped, the last one because {reason}{where}")

    def state_dict(self) -> dict[str, Any]:
        """Counts of skipped steps, and the recent norms."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "norms": list(self.norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore counts and norms."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self.norms = deque(state_dict["norms"], maxlen=100)

    def _read(self, gradients: list[Tensor]) -> tuple[float, float]:
        """Norm of all gradients, and the loss over all processes, in one transfer from the device."""
        norms = torch._foreach_norm(gradients) if gradients else []
        norm = torch.linalg.vector_norm(torch.stack([each.float() for each in norms])) if norms else torch.zeros(())
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # of sharded weights
        found: list[float] = torch.stack([norm, distributed.mean(self._loss.float()).to(norm.device)]).tolist()
        return found[0], found[1]

    def _reason(self, norm: float, loss: float) -> str:
        """The reason for skipping the step; empty if it can be taken."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if self.in_a_row >= self.steady:
            self.norms.clear()
        usual = statistics.median(self.norms) if self.spike and len(self.norms) >= self.warmup else math.inf
        return f"the gradient norm is {number(norm)}, its median {number(usual)}" if norm > self.spike * usual else ""

    def _save(self, trainer: Trainer) -> str:
        if self.folder is None or self.skipped > self.keep:
            return ""
        path = Path(self.folder) / f"bad-{trainer.global_step}-{trainer.global_rank}.pt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with staged(path) as temporary:
                torch.save({name: value.cpu() for name, value in self._batch.items()}, temporary)
        except (OSError, RuntimeError) as error:  # RuntimeError comes from torch's writer
            return f"; its batch could not be saved: {error}".splitlines()[0]
        return f"; its batch is {path}"


class PosteriorCollapse(FirstValidationBatch):
    """Logs ``health/kl`` and ``health/dead_latents`` on the first validation batch, and warns of posterior collapse.

    A channel of a latent is dead if the KL divergence of its posterior from its prior is below ``least``; the posterior
    has collapsed if all are dead.

    Args:
        least: Threshold in nats per image.
    """

    def __init__(self, least: float = 0.01) -> None:
        self.least, self._warned = least, False

    def look(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Log the KL divergence under deterministic abduction."""
        model = getattr(module, "model", None)
        if not isinstance(model, CounterfactualModel):
            return
        beliefs = model.abduct(batch["image"], batch, temperature=0.0).beliefs
        if not beliefs:
            return
        channels = torch.cat([channel_kl(belief) for belief in beliefs])
        dead, size = int((channels < self.least).sum()), distributed.weight_of(len(batch["index"]))
        module.log("health/kl", channels.sum(), batch_size=size, sync_dist=True)
        module.log("health/dead_latents", float(dead), batch_size=size, sync_dist=True)
        if dead == len(channels) and not self._warned:
            self._warned = True
            log.warning("all %d latent channels are dead: the posterior has collapsed onto the prior", dead)


def channel_kl(belief: Belief) -> Tensor:
    """KL of posterior from prior for every channel, (latent_channels,) in nats per image, averaged over the batch."""
    posterior, prior = (
        Normal(one.mean.flatten(0, 1), one.log_std.flatten(0, 1)) for one in (belief.posterior, belief.prior)
    )
    return posterior.kl(prior).view(belief.prior.mean.shape[:2]).mean(0)


class InterventionResponse(FirstValidationBatch):
    """Logs ``health/response_NAME`` on the first validation batch of fine-tuning: the share of the requested change.

    It is the slope of the change measured by the guide over the requested change; 1 is perfect. Warns once per variable
    that hardly responds in the second half of training. A run that ends so fails; its checkpoint is kept.

    Args:
        least: Smallest acceptable slope.
        trial: Runs with fewer steps are trials, which do not fail.
    """

    def __init__(self, least: float = 0.1, trial: int = 100) -> None:
        self.least, self.trial, self._warned = least, trial, set[str]()
        self._found: dict[str, float] = {}

    def look(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Measure the response to the interventions of validation."""
        if not isinstance(module, CounterfactualFineTuning) or not module.guidance.names:
            return
        do, answer = asked_in_turn(module.model, batch, module.asked)
        before, after = module.guidance(batch["image"]), module.guidance(answer.image, batch["image"])
        fitting = trainer.state.fn == TrainerFn.FITTING
        late = fitting and 2 * trainer.global_step >= trainer.estimated_stepping_batches
        for name, target in do.items():
            wanted = (target - batch[name]).nan_to_num()  # 0 for subjects with another intervention
            sums = torch.stack([(wanted * (after[name] - before[name])).sum(), wanted.square().sum()])
            response = sums[0] / sums[1].clamp(min=1e-12)
            module.log(
                f"health/response_{name}", response, batch_size=distributed.weight_of(len(wanted)), sync_dist=True
            )
            happened, asked = distributed.mean(sums).tolist()  # over all processes
            if asked:
                self._found[name] = happened / asked
            if late and name not in self._warned and float(response) < self.least and wanted.any():
                self._warned.add(name)
                log.warning(SHUT, name, round(100 * float(response)))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every structure responds.

        Raises:
            ValueError: If one does not; the message suggests remedies.
        """
        shut = [f"do({name}): {share:.2f}" for name, share in self._found.items() if share < self.least]
        allowed = isinstance(pl_module, CounterfactualFineTuning) and pl_module.allow_unmoved
        if shut and trainer.global_step >= self.trial and not allowed:
            raise ValueError(UNMOVED.format(least=self.least, shut=", ".join(shut)))


class PretrainingDivergence(Callback):
    """Warns once if pretraining diverges: if the validation NELBO loses much of its improvement.

    A run that diverged can look healthy at its end, because the decay of the learning rate lowers the loss again. But
    it stays worse than an undisturbed run, and in fine-tuning some structure may not respond to do().

    Args:
        share: Warn if more than this share of the improvement since the first validation is lost.
        least: Do not warn below this increase, nats per dimension.
    """

    def __init__(self, share: float = 0.25, least: float = 0.1) -> None:
        self.share, self.least, self._warned = share, least, False
        self._first = self._best = math.nan

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the first and the best validation of this run."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or not isinstance(pl_module, PretrainHVAE):
            return
        now = float(trainer.callback_metrics["val/nelbo"])
        if math.isnan(self._first):
            self._first = self._best = now
        enough = max(self.least, self.share * (self._first - self._best))
        if now - self._best > enough and self._best < self._first and not self._warned:
            self._warned = True
            log.warning(BURST, trainer.global_step, now, self._best)
        self._best = min(self._best, now)

    def state_dict(self) -> dict[str, Any]:
        """The first and the best validation NELBO."""
        return {"first": self._first, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the first and the best validation NELBO."""
        self._first, self._best = state_dict["first"], state_dict["best"]


class DataStall(Callback):
    """Logs ``health/waiting``, the share of time that training waits for data, and warns once if it is large.

    Args:
        share: Warn above this share, measured over ``steps``.
        steps: Number of batches per measurement.
    """

    def __init__(self, share: float = 0.5, steps: int = 50) -> None:
        self.share, self.steps = share, steps
        self._waited = self._spent = 0.0
        self._count, self._mark, self._warned = 0, math.nan, False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock, so that validation, saving and the loader's start do not count as waiting."""
        self._mark = math.nan

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the time since the last step as waiting."""
        now = time.perf_counter()
        if not math.isnan(self._mark):
            self._waited += now - self._mark
            self._spent += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Restart the clock, and log every ``steps`` batches."""
        now = time.perf_counter()
        self._spent, self._count = self._spent + now - self._mark, self._count + 1
        self._mark = math.nan if trainer.validating else now
        waiting = self._waited / max(self._spent, 1e-9)
        if looked_at(trainer, taken=True):
            pl_module.log("health/waiting", waiting)
        if self._count < self.steps:
            return
        if waiting > self.share and not self._warned:
            self._warned = True
            log.warning("training waits for data %.0f %% of the time: raise --data.num_workers", 100 * waiting)
        self._waited, self._spent, self._count = 0.0, 0.0, 0
