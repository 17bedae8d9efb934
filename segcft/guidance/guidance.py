"""Guidance: the judge that measures a counterfactual and passes the gradient on to the HVAE."""

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
    """Measures the guided variables; a guidance without a judge measures nothing (No-CFT).

    Attributes:
        names: The variables it measures; known once it is attached.
        seconds: Training seconds that the judge cost, by stage.
        shape: How the structures' shape follows the parents; None to leave it free.
    """

    names: Sequence[str] = ()
    seconds: Mapping[str, float] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.shape: ShapeModel | None = None

    def attach(self, description: DataDescription) -> None:
        """Tell judges that were made elsewhere what the data measure; the task does it before it begins.

        Raises:
            ValueError: If such a judge does not fit the data.
        """

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Guided variables in real units, (B,) each, and the shape by its own names.

        Args:
            image: Counterfactual images, (B, C, *S) in [-1, 1].
            factual: Images whose anatomy regions are laid into, (B, C, *S); ``image`` itself unless given.
        """
        return {}

    def learn(self, batch: Mapping[str, Tensor], cf_image: Tensor) -> dict[str, Tensor]:
        """Losses by which the judge itself goes on learning, scalars to be added up; none of a frozen one.

        Args:
            batch: Factual ``image`` (B, C, *S) and ``mask`` (B, K, *S).
            cf_image: Their counterfactuals, (B, C, *S); no gradient reaches them.
        """
        return {}


class NoGuidance(Guidance):
    """No-CFT: go on with the ELBO alone, the baseline."""


class JudgeGuidance(Guidance):
    """A frozen judge: always in eval mode, no gradient for itself, but gradient through it.

    Args:
        judge: The judge, or the checkpoint to read it from.

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
        """Tell the judge; a segmentor of ours measures whatever these data declare of its structures."""
        self.judge.attach(description)
        self._name()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever the trainer asks for."""
        return super().train(False)

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure all guided variables."""
        return self.judge.measure(image, factual)

    def _name(self) -> None:
        self.names = self.judge.names if self.judge.attached else []


class RegressorGuidance(JudgeGuidance):
    """Reg-CFT: a regressor reads the variables off the whole image."""

    kind = Regressor


class SegmentorGuidance(JudgeGuidance):
    """Seg-CFT: a segmentor outlines each structure and is measured softly (Xia et al., 2025, arXiv:2509.24913).

    Args:
        judge: The segmentor, or the checkpoint to read it from.
        shape: Measure the structures' shape as well, for fine-tuning to hold them to it.
    """

    judge: SegmentationModel
    kind = SegmentationModel

    def __init__(self, judge: Judge | str, shape: bool = False) -> None:
        super().__init__(judge)
        self.wants_shape = shape
        self._outline()

    def attach(self, description: DataDescription) -> None:
        """Tell the judge."""
        super().attach(description)
        self._outline()

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure all guided variables, and the shape by its own names."""
        if self.shape is None:
            return self.judge.measure(image, factual)
        masks = self.judge.probabilities(image)
        return self.judge.measure_outlines(masks, image, factual) | self.shape.measure(masks)

    def _outline(self) -> None:
        if self.wants_shape and self.judge.attached and (self.shape is None or not self.shape.fitted):
            self.shape = ShapeModel(self.judge.description)


class CoTrainedGuidance(SegmentorGuidance):
    """A segmentor that goes on learning while it guides, so that it keeps up with the images it has to judge.

    A frozen segmentor never saw a counterfactual, and an HVAE that is trained against it may find changes that move
    its outlines and nothing else. This one learns from factual images and their masks, as it was trained, and to give
    the same outlines of a counterfactual whose contrast, brightness and noise are slightly changed: the target is its
    own answer to the unchanged image (Laine and Aila, 2017, arXiv:1610.02242), for nobody has outlined that.

    Both learn in one step and neither cheats for the other: a counterfactual is measured with detached weights, and
    the judge's losses see detached counterfactuals. Normalisation statistics and dropout stay frozen.

    Args:
        judge: The segmentor to begin with, or its checkpoint.
        shape: See ``SegmentorGuidance``.
        consistency: Weight of the agreement on counterfactuals, relative to the loss on factual images.
        perturbation: Standard deviation of the change of contrast (factor), brightness and noise (image units).
    """

    def __init__(
        self, judge: Judge | str, shape: bool = False, consistency: float = 1.0, perturbation: float = 0.1
    ) -> None:
        super().__init__(judge, shape)
        self.judge.requires_grad_(True)
        self.consistency, self.perturbation = consistency, perturbation

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure with weights that no gradient reaches."""
        weights = {f"guidance.judge.{name}": weight.detach() for name, weight in self.judge.named_parameters()}
        measured: dict[str, Tensor] = functional_call(_Measurement(self), weights, (image, factual))
        return measured

    def learn(self, batch: Mapping[str, Tensor], cf_image: Tensor) -> dict[str, Tensor]:
        """``judge_mask``: cross-entropy and Dice on factual images; ``judge_consistency``: on counterfactual ones."""
        image = cf_image.detach()
        with torch.no_grad():
            steady = torch.sigmoid(self.judge(image).float())  # (B, K, *S)
        found = torch.sigmoid(self.judge(self._perturbed(image)).float())
        return {
            "judge_mask": segmentation_loss(self.judge(batch["image"]), batch["mask"]),
            "judge_consistency": self.consistency * (found - steady).square().mean(),
        }

    def _perturbed(self, image: Tensor) -> Tensor:
        """Another contrast and brightness for each image, and noise, (B, C, *S)."""
        each = (len(image), *[1] * (image.dim() - 1))
        contrast, brightness = self.perturbation * torch.randn(2, *each, device=image.device)
        noise = self.perturbation * torch.randn_like(image)
        changed: Tensor = (1 + contrast) * image + brightness + noise
        return changed.clamp(-1, 1)


class EnsembleGuidance(Guidance):
    """Several judges whose errors differ: what fools one of them does not fool their mean.

    It leaves the shape free, whatever its members measure.

    Args:
        members: What each measures is averaged over those that measure it.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, members: list[Guidance]) -> None:
        super().__init__()
        if not members:
            raise ValueError("members: an ensemble needs at least one guidance")
        self.members = nn.ModuleList(members)
        self.seconds = dict(sum((Counter(member.seconds) for member in members), Counter()))
        self._name()

    def attach(self, description: DataDescription) -> None:
        """Tell every member."""
        for member in self._each():
            member.attach(description)
        self._name()

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Mean of the members' measurements."""
        return {name: torch.stack(each).mean(0) for name, each in self._measured(image, factual).items()}

    def disagreement(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Standard deviation over the members in real units, (B,) each; 0 where one alone measures."""
        measured = self._measured(image, factual)
        return {name: torch.stack(each).std(0, correction=0) for name, each in measured.items()}

    def learn(self, batch: Mapping[str, Tensor], cf_image: Tensor) -> dict[str, Tensor]:
        """Losses of the members that learn, each under its own number."""
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
    """Measuring as a module's forward pass, for ``functional_call``."""

    def __init__(self, guidance: SegmentorGuidance) -> None:
        super().__init__()
        self.guidance = guidance

    def forward(self, image: Tensor, factual: Tensor | None) -> dict[str, Tensor]:
        return SegmentorGuidance.forward(self.guidance, image, factual)
