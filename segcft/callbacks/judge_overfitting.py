"""Detects overfitting to the guiding judge: an independent evaluator measures the same counterfactuals."""

import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from segcft.core import checkpoints, distributed
from segcft.guidance.judges import SegmentationModel
from segcft.tasks.base import Batch, FirstValidationBatch, asked_in_turn
from segcft.tasks.finetune import CounterfactualFineTuning


def evaluator(trainer: Trainer) -> SegmentationModel | None:
    """The evaluator of the ``GuideGap`` callback, if there is one."""
    listed = (each for each in trainer.callbacks if isinstance(each, GuideGap))  # type: ignore[attr-defined]
    return next((each.judge for each in listed), None)


def witness(trainer: Trainer, pl_module: LightningModule) -> SegmentationModel | None:
    """The segmentor that measures a stage's counterfactuals: the evaluator, otherwise the guiding segmentor."""
    judge = evaluator(trainer)
    if judge is not None:
        return judge
    guide = getattr(pl_module, "guidance", None)
    parts = guide.modules() if guide is not None else ()
    return next((part for part in parts if isinstance(part, SegmentationModel)), None)


class GuideGap(FirstValidationBatch):
    """Logs ``val/gap_NAME``: the evaluator's mean error minus the guide's, in training standard deviations.

    A growing gap means that counterfactuals exploit errors of the guide. Add it to ``trainer.callbacks``; it does
    nothing for No-CFT, which has no guide.

    Args:
        evaluator: Checkpoint of a segmentor that is not used as guidance.
        tolerance: Warn if a gap exceeds the smallest one so far by more, in training standard deviations.
        batches: Number of validation batches.
    """

    checked = True

    def __init__(self, evaluator: str, tolerance: float = 0.15, batches: int = 4) -> None:
        self.judge = checkpoints.load(evaluator, SegmentationModel).eval().requires_grad_(False)
        self.tolerance, self.batches = tolerance, batches
        self.smallest: dict[str, float] = {}
        self._gaps: dict[str, list[Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The smallest gap of every variable so far."""
        return {"smallest": self.smallest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the smallest gaps."""
        self.smallest = dict(state_dict["smallest"])

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the sums of this validation."""
        self._gaps = {}
        self.judge.to(pl_module.device)

    def look(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Predict the counterfactuals of validation and measure them with both judges."""
        if not isinstance(module, CounterfactualFineTuning) or not module.guidance.names:
            return
        others = module.neighbours(batch, "val", module.asked)
        do, answer = asked_in_turn(module.model, batch, module.asked, others)
        guided, judged = (ask(answer.image, batch["image"]) for ask in (module.guidance, self.judge.measure))
        for name in set(guided) & set(judged) & set(do):
            asked, scale = ~do[name].isnan(), module.model.parents[name].std
            wrong = (judged[name] - do[name]).abs() - (guided[name] - do[name]).abs()
            self._gaps.setdefault(name, []).append(wrong[asked] / scale)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the gaps, and warn if one has grown."""
        for name in sorted(self._gaps):
            found = torch.cat(self._gaps[name])
            total, count = distributed.mean(torch.stack([found.sum(), found.new_tensor(len(found))]))
            gap = total / count  # of all processes: how many were asked differs
            pl_module.log(f"val/gap_{name}", gap)
            if trainer.sanity_checking or gap.isnan():
                continue
            best = self.smallest[name] = min(self.smallest.get(name, float(gap)), float(gap))
            if float(gap) > best + self.tolerance:
                warnings.warn(
                    f"the gap between evaluator and guide grew to {float(gap):.2f} standard deviations of {name} from "
                    f"{best:.2f}: counterfactuals exploit errors of the guide",
                    stacklevel=2,
                )
