"""Training of the judges: segmentor, regressor, and the evaluator, an independent second segmentor."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segcft.guidance.judges import Judge, Regressor, Segmentor
from segcft.guidance.losses import segmentation_loss, segmentation_losses
from segcft.tasks.base import Batch, Optimisation, Task
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.variables import DataDescription


class _TrainJudge(Task):
    parts = ("judge",)
    judge: Judge

    def predictions(self, batch: Batch) -> Batch:
        """The judge's measurements in real units, (B,) each."""
        return self.judge.measure(batch["image"])

    def area_errors(self, batch: Batch) -> dict[str, Tensor]:
        """Bias (signed) and absolute error of every measured variable in percent, see ``_percent``."""
        return self._errors(self.judge.measure(batch["image"]), batch)

    def _errors(self, measured: Batch, batch: Batch) -> dict[str, Tensor]:
        errors: dict[str, Tensor] = {}
        for name, value in measured.items():
            relative = self._percent(name, value, batch[name])
            errors |= {f"mape_{name}": relative.abs().mean(), f"bias_{name}": relative.mean()}
        return errors

    def _percent(self, name: str, value: Tensor, true: Tensor) -> Tensor:
        """Error in percent of the true value; for signed quantities (angles, grey levels), of the training range."""
        variable = self.judge.description.parents[name]
        scale = true.clamp(min=1e-6) if variable.low >= 0 else torch.full_like(true, variable.high - variable.low)
        return 100 * (value - true) / scale


class TrainSegmentor(_TrainJudge):
    """Trains a segmentor with one mask per structure; masks may overlap.

    Args:
        description: Structures and variables of the data; linked from the data module.
        network: ``monai.NAME`` or ``smp.NAME``.
        options: Further constructor arguments of the network.
        temperature: Temperature of soft masks, see ``SegmentationModel``.
        stage: ``segmentor``, or ``evaluator`` for the independent one that is not used as guidance.
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

    def on_fit_start(self) -> None:
        """Check that the network takes images of this size."""
        super().on_fit_start()
        split = self.trainer.datamodule.dataset("train")  # type: ignore[attr-defined]
        self.judge.check_sides(split.read_unchanged(torch.zeros(1, dtype=torch.int64))["image"].shape[2:])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy plus Dice loss."""
        loss = self.terms(batch)
        self.show("train", {"loss": loss}, batch)
        return loss

    def terms(self, batch: Batch) -> Tensor:
        """Cross-entropy plus Dice loss of the predicted masks."""
        return segmentation_loss(self.judge(batch["image"]), batch["mask"])

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Log the Dice of every structure and the measurement errors, with the part caused by soft masks.

        ``soft_bias_NAME`` is the difference in percent between measuring on soft masks, as guidance does, and on the
        same masks thresholded. This part of ``bias_NAME`` depends on ``temperature`` and not on the outlines.
        """
        logits, about = self.judge(batch["image"]), self.judge.description
        predicted, axes = (logits > 0).float(), tuple(range(2, logits.dim()))
        overlap = (2 * (predicted * batch["mask"]).sum(axes) + 1) / ((predicted + batch["mask"]).sum(axes) + 1)
        dice = {f"dice_{name}": overlap[:, k].mean() for k, name in enumerate(about.structures)}
        soft = measure_masks(self.judge.sharpened(logits), batch["image"], about)
        hard = measure_masks(predicted, batch["image"], about)
        softness = {f"soft_bias_{name}": self._percent(name, soft[name], hard[name]).mean() for name in soft}
        loss = segmentation_losses(logits, batch["mask"]).mean()
        self.show(stage, {"loss": loss, **dice, **self._errors(soft, batch), **softness}, batch)


class TrainRegressor(_TrainJudge):
    """Trains a regressor that predicts the visible variables from the whole image.

    Args:
        description: Structures and variables of the data; linked from the data module.
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
        """Mean squared error in training standard deviations."""
        loss = self.terms(batch)
        self.show("train", {"loss": loss}, batch)
        return loss

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Log the loss and the errors in percent."""
        self.show(stage, {"loss": self.terms(batch), **self.area_errors(batch)}, batch)

    def terms(self, batch: Batch) -> Tensor:
        """Mean squared error of the standardised predictions."""
        target = self.judge.description.parents.standardise(batch, self.judge.names)
        return F.mse_loss(self.judge(batch["image"]).float(), target.to(torch.float32))
