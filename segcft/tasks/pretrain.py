"""Pretraining of the image mechanism (HVAE) on factual images."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from segcft.causal.structural_causal_model import Mechanism, opened
from segcft.core import checkpoints
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.prediction import Prediction
from segcft.hvae.hvae import HVAE
from segcft.hvae.latents import noise_by_subject
from segcft.tasks.base import Batch, Optimisation, Task, elbo_terms, passed, predictions
from segcft.variables.plausibility import Profile, characteristics
from segcft.variables.variables import DataDescription

LOOKED_AT = 256  # training images, evenly spaced, that the profile is made of


class HVAEBuilder(Protocol):
    """Builds an HVAE for the data: one of its classes with the other arguments given, ``partial(HVAE, stages=...)``."""

    def __call__(  # noqa: D102
        self, spatial_dims: int, channels: int, parents_dim: int, frame: Sequence[int] | None
    ) -> HVAE: ...


class PretrainHVAE(Task):
    """Trains the HVAE by maximising the ELBO of images given their parents.

    Args:
        description: Structures and variables of the data; linked from the data module.
        hvae: Builds the HVAE from spatial_dims, channels, parents_dim and frame.
        prediction: Combines factual and counterfactual decoder outputs to the counterfactual image; default ``Gated``.
        mechanism: Causal model of the parents, or the checkpoint of ``TrainAttributes``; by default ``Independent``.
        beta: Final weight of the KL term.
        beta_start: Weight at the first step.
        beta_share: Fraction of all steps until ``beta`` is reached.
        stage: Name of the stage.
        optimisation: Optimiser and schedule.
        frame: Shape S of the images, linked from the data module; needed if the HVAE's first stage names no resolution.

    Raises:
        ValueError: If the HVAE's stages do not fit the images.
    """

    parts = ("model",)

    def __init__(
        self,
        description: DataDescription,
        hvae: HVAEBuilder,
        prediction: Prediction | None = None,
        mechanism: Mechanism | str | None = None,
        beta: float = 1.0,
        beta_start: float = 3.0,
        beta_share: float = 0.4,
        stage: str = "pretrain",
        optimisation: Optimisation = Optimisation(),  # noqa: B008 (frozen)
        frame: Sequence[int] | None = None,
    ) -> None:
        super().__init__(stage, optimisation)
        built = hvae(
            spatial_dims=description.spatial_dims,
            channels=description.channels,
            parents_dim=description.parents.dim,
            frame=frame,
        )
        self.model = CounterfactualModel(description, built, prediction, opened(mechanism))
        if isinstance(mechanism, str):
            self.earlier_seconds = checkpoints.seconds(mechanism)
        self.beta, self.beta_start, self.beta_share = beta, beta_start, beta_share

    def on_fit_start(self) -> None:
        """Note what training images look like, for the model to doubt others by."""
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        split = data.dataset("train")
        chosen = torch.linspace(0, len(split) - 1, min(LOOKED_AT, len(split))).long()
        batches = (split.read_unchanged(part) for part in torch.split(chosen, 32))
        found = [characteristics(batch["image"], batch["mask"], data.structures) for batch in batches]
        self.model.profile = Profile.of(found)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The NELBO with the current beta."""
        terms = self.terms(batch)
        beta = self.beta_at(self.global_step, int(self.trainer.estimated_stepping_batches))
        loss = terms["nll"] + beta * terms["kl"]
        self.show("train", {**terms, "loss": loss}, batch)
        return loss

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The NELBO and its terms."""
        return elbo_terms(self.model.abduct(batch["image"], batch))

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Log the NELBO at beta 1 and the reconstruction error."""
        with noise_by_subject(batch["index"]):
            found = self.model.abduct(batch["image"], batch)
        error = (found.pixels.loc - batch["image"]).abs().mean()
        self.show(stage, {**elbo_terms(found), "reconstruction": error}, batch)

    def predictions(self, batch: Batch) -> Batch:
        """Counterfactual images (B, C, *S), one do() per subject; ``do_NAME`` in real units, NaN where not set."""
        names = self.model.parents.askable
        return predictions(self.model, batch, names, self.neighbours(batch, "test", names))

    def beta_at(self, step: int, steps: int) -> float:
        """Weight of the KL term at ``step`` of ``steps``."""
        return self.beta_start + passed(step, steps, self.beta_share) * (self.beta - self.beta_start)
