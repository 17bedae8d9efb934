"""Train the judges: segmentor, regressor, and the independent evaluator, which is another segmentor."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segcft.judges import Judge, Regressor, Segmentor
from segcft.losses import segmentation_loss
from segcft.parents import DataDescription
from segcft.tasks.base import Batch, Optimisation, Task


class _TrainJudge(Task):
    parts = ("judge",)
    judge: Judge

    def predictions(self, batch: Batch) -> Batch:
        """Structural variables in real units, (B,) each."""
        return self.judge.measure(batch["image"])

    def area_errors(self, batch: Batch) -> dict[str, Tensor]:
        """Signed bias and absolute error of every structural variable in percent of the true value."""
        errors: dict[str, Tensor] = {}
        for name, value in self.judge.measure(batch["image"]).items():
            relative = 100 * (value - batch[name]) / batch[name].clamp(min=1e-6)
            errors |= {f"mape_{name}": relative.abs().mean(), f"bias_{name}": relative.mean()}
        return errors


class TrainSegmentor(_TrainJudge):
    """Learn to outline every structure; masks may overlap.

    Args:
        description: What the data measure; linked from the data module.
        network: ``monai.NAME`` or ``smp.NAME``.
        options: Further arguments of the network.
        temperature: Sharpening of soft areas, see ``Segmentor``.
        stage: ``segmentor``, or ``evaluator`` for the one that guides nothing.
        optimisation: Optimiser and schedule.
    """

    judge: Segmentor

    def __init__(
        self,
        description: DataDescription,
        network: str = "monai.BasicUNet",
        options: dict[str, Any] | None = None,
        temperature: float = 0.5,
        stage: str = "segmentor",
        optimisation: Optimisation = Optimisation(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(stage, optimisation)
        self.judge = Segmentor(description, network, options, temperature)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy and Dice."""
        loss = segmentation_loss(self.judge(batch["image"]), batch["mask"])
        self.show("train", {"loss": loss}, batch)
        return loss

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Dice of every structure and the error of the areas it is there to measure."""
        logits = self.judge(batch["image"])
        predicted, axes = (logits > 0).float(), tuple(range(2, logits.dim()))
        overlap = (2 * (predicted * batch["mask"]).sum(axes) + 1) / ((predicted + batch["mask"]).sum(axes) + 1)
        dice = {f"dice_{name}": overlap[:, k].mean() for k, name in enumerate(self.judge.description.structures)}
        self.show(stage, {"loss": segmentation_loss(logits, batch["mask"]), **dice, **self.area_errors(batch)}, batch)


class TrainRegressor(_TrainJudge):
    """Learn to read the structural variables off the whole image.

    Args:
        description: What the data measure; linked from the data module.
        widths: Channels of the residual stages.
        stage: Name of the stage.
        optimisation: Optimiser and schedule.
    """

    judge: Regressor

    def __init__(
        self,
        description: DataDescription,
        widths: tuple[int, ...] = (16, 32, 64),
        stage: str = "regressor",
        optimisation: Optimisation = Optimisation(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(stage, optimisation)
        self.judge = Regressor(description, widths)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Squared error in training deviations."""
        loss = self._loss(batch)
        self.show("train", {"loss": loss}, batch)
        return loss

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Loss, and errors in percent."""
        self.show(stage, {"loss": self._loss(batch), **self.area_errors(batch)}, batch)

    def _loss(self, batch: Batch) -> Tensor:
        target = self.judge.description.parents.standardise(batch, self.judge.names)
        return F.mse_loss(self.judge(batch["image"]).float(), target.to(torch.float32))
