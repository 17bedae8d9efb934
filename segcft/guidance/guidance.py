"""Guidance of fine-tuning: a judge measures counterfactual images and passes gradients to the HVAE."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from segcft.core import checkpoints
from segcft.core.recipes import Recorded
from segcft.guidance.judges import Judge, Regressor, SegmentationModel
from segcft.guidance.losses import segmentation_loss
from segcft.guidance.shape_model import ShapeModel
from segcft.variables.variables import DataDescription


class Guidance(nn.Module, Recorded):
    """Base class: measures the guided variables of an image; without a judge it measures nothing (No-CFT).

    Attributes:
        names: The variables it measures; set by ``attach``.
        seconds: Training seconds of the judge, by stage.
        shape: Model of how the structures' shape depends on the parents; None for no constraint on shape.
    """

    names: Sequence[str] = ()
    seconds: Mapping[str, float] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.shape: ShapeModel | None = None

    def attach(self, description: DataDescription) -> None:
        """Pass the description of the data to external judges; called by the task before training.

        Raises:
            ValueError: If a judge does not fit the data.
        """

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure the guided variables in real units, (B,) each, and the shape descriptors if there is a shape model.

        Args:
            image: Counterfactual images, (B, C, *S) in [-1, 1].
            factual: Factual images, whose anatomy defines the regions, (B, C, *S); by default ``image``.
        """
        return {}

    def learn(self, batch: Mapping[str, Tensor], cf_image: Tensor) -> dict[str, Tensor]:
        """Losses that train the judge itself, scalars to be summed; empty for a frozen judge.

        Args:
            batch: Factual ``image`` (B, C, *S) and ``mask`` (B, K, *S).
            cf_image: Their counterfactuals, (B, C, *S); no gradient reaches them.
        """
        return {}


class NoGuidance(Guidance):
    """No-CFT, the baseline: continue training on the ELBO only."""


class JudgeGuidance(Guidance):
    """Guidance by a frozen judge: always in eval mode; gradients flow through it, but its weights are not trained.

    Args:
        judge: The judge, or the path of its checkpoint.

    Raises:
        ValueError: If the checkpoint cannot be read, or the judge is of the wrong kind.
    """

    kind: type[Judge] = Judge

    def __init__(self, judge: Judge | str) -> None:
        super().__init__()
        if isinstance(judge, str):
            self.seconds = checkpoints.seconds(judge)
            judge = checkpoints.load(judge, self.kind)
        if not isinstance(judge, self.kind):
            raise ValueError(f"{type(self).__name__} needs a {self.kind.__name__}, got a {type(judge).__name__}")
        self.judge = judge
        self.judge.requires_grad_(False)
        self._name()
        self.eval()

    def attach(self, description: DataDescription) -> None:
        """Pass the description to the judge; a ``Segmentor`` then measures all variables of its structures."""
        self.judge.attach(description)
        self._name()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure all guided variables."""
        return self.judge.measure(image, factual)

    def _name(self) -> None:
        self.names = self.judge.names if self.judge.attached else []


class RegressorGuidance(JudgeGuidance):
    """Reg-CFT: a regressor predicts the variables from the whole image."""

    kind = Regressor


class SegmentorGuidance(JudgeGuidance):
    """Seg-CFT: variables are measured on a segmentor's soft masks (Xia et al., 2025, arXiv:2509.24913).

    Args:
        judge: The segmentor, or the path of its checkpoint.
        shape: Also measure centroid and spread of the structures, as targets of fine-tuning, see ``ShapeModel``.
    """

    judge: SegmentationModel
    kind = SegmentationModel

    def __init__(self, judge: Judge | str, shape: bool = False) -> None:
        super().__init__(judge)
        self.wants_shape = shape
        self._outline()

    def attach(self, description: DataDescription) -> None:
        """Pass the description to the judge and build the shape model."""
        super().attach(description)
        self._outline()

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure all guided variables and, with ``shape``, the shape descriptors."""
        if self.shape is None:
            return self.judge.measure(image, factual)
        masks = self.judge.probabilities(image)
        return self.judge.measure_outlines(masks, image, factual) | self.shape.measure(masks)

    def _outline(self) -> None:
        if self.wants_shape and self.judge.attached and (self.shape is None or not self.shape.fitted):
            self.shape = ShapeModel(self.judge.description)


class CoTrainedGuidance(SegmentorGuidance):
    """A segmentor that continues to train during fine-tuning, so that it adapts to counterfactual images.

    A frozen segmentor has never seen counterfactuals, and an HVAE trained against it may learn adversarial changes that
    alter its masks only. This segmentor keeps learning from factual images and their masks. In addition, since
    counterfactuals have no ground-truth masks, it is trained to be consistent: a counterfactual with slightly changed
    contrast, brightness and noise must get the masks of the unperturbed one (Laine and Aila, 2017, arXiv:1610.02242).

    HVAE and judge are updated in the same step without sharing gradients: counterfactuals are measured with detached
    judge weights, and the judge's losses use detached counterfactuals. Batch normalisation statistics and dropout stay
    frozen.

    Args:
        judge: The initial segmentor, or the path of its checkpoint.
        shape: See ``SegmentorGuidance``.
        consistency: Weight of the consistency loss, relative to the loss on factual images.
        perturbation: Standard deviation of the perturbation of contrast (factor), brightness and noise (image units).
    """

    def __init__(
        self, judge: Judge | str, shape: bool = False, consistency: float = 1.0, perturbation: float = 0.1
    ) -> None:
        super().__init__(judge, shape)
        self.judge.requires_grad_(True)
        self.consistency, self.perturbation = consistency, perturbation

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure with detached weights of the judge."""
        weights = {f"guidance.judge.{name}": weight.detach() for name, weight in self.judge.named_parameters()}
        measured: dict[str, Tensor] = functional_call(_Measurement(self), weights, (image, factual))
        return measured

    def learn(self, batch: Mapping[str, Tensor], cf_image: Tensor) -> dict[str, Tensor]:
        """``judge_mask``: cross-entropy and Dice on factual images; ``judge_consistency``: on counterfactuals."""
        image = cf_image.detach()
        with torch.no_grad():
            steady = torch.sigmoid(self.judge(image).float())  # (B, K, *S)
        found = torch.sigmoid(self.judge(self._perturbed(image)).float())
        return {
            "judge_mask": segmentation_loss(self.judge(batch["image"]), batch["mask"]),
            "judge_consistency": self.consistency * (found - steady).square().mean(),
        }

    def _perturbed(self, image: Tensor) -> Tensor:
        """Images with random contrast, brightness and noise, (B, C, *S)."""
        each = (len(image), *[1] * (image.dim() - 1))
        contrast, brightness = self.perturbation * torch.randn(2, *each, device=image.device)
        noise = self.perturbation * torch.randn_like(image)
        changed: Tensor = (1 + contrast) * image + brightness + noise
        return changed.clamp(-1, 1)


class EnsembleGuidance(Guidance):
    """The mean of several judges, which is harder to exploit than one of them.

    It puts no constraint on shape, even if its members do.

    Args:
        members: The judges; each variable is averaged over the members that measure it.

    Raises:
        ValueError: If the list is empty.
    """

    def __init__(self, members: list[Guidance]) -> None:
        super().__init__()
        if not members:
            raise ValueError("members: an ensemble needs at least one guidance")
        self.members = nn.ModuleList(members)
        self.seconds = dict(sum((Counter(member.seconds) for member in members), Counter()))
        self._name()

    def attach(self, description: DataDescription) -> None:
        """Attach every member."""
        for member in self._each():
            member.attach(description)
        self._name()

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Mean of the members' measurements."""
        return {name: torch.stack(each).mean(0) for name, each in self._measured(image, factual).items()}

    def disagreement(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Standard deviation over the members in real units, (B,) each; 0 if only one measures the variable."""
        measured = self._measured(image, factual)
        return {name: torch.stack(each).std(0, correction=0) for name, each in measured.items()}

    def learn(self, batch: Mapping[str, Tensor], cf_image: Tensor) -> dict[str, Tensor]:
        """Losses of the trainable members, their names prefixed with the member's index."""
        learning = [member.learn(batch, cf_image) for member in self._each()]
        return {f"{name}_{k}": loss for k, losses in enumerate(learning) for name, loss in losses.items()}

    def _each(self) -> list[Guidance]:
        return cast(list[Guidance], list(self.members))

    def _measured(self, image: Tensor, factual: Tensor | None) -> dict[str, list[Tensor]]:
        each = [member(image, factual) for member in self._each()]
        return {name: [measured[name] for measured in each if name in measured] for name in self.names}

    def _name(self) -> None:
        self.names = list(dict.fromkeys(name for member in self._each() for name in member.names))


class _Measurement(nn.Module):
    """Wraps measuring as a forward pass, as ``functional_call`` requires."""

    def __init__(self, guidance: SegmentorGuidance) -> None:
        super().__init__()
        self.guidance = guidance

    def forward(self, image: Tensor, factual: Tensor | None) -> dict[str, Tensor]:
        return SegmentorGuidance.forward(self.guidance, image, factual)
