"""Guidance: the frozen judge that measures a counterfactual and passes the gradient on to the HVAE."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Self

from torch import Tensor, nn

from segcft import checkpoints
from segcft.judges import Judge, Regressor, Segmentor
from segcft.recipes import Recorded
from segcft.shape import ShapeModel


class Guidance(nn.Module, Recorded):
    """Measures the guided variables; a guidance without a judge measures nothing (No-CFT).

    Attributes:
        names: The variables it measures.
        seconds: Training seconds that the judge cost, by stage.
        shape: How the structures' shape follows the parents; None to leave it free.
    """

    names: Sequence[str] = ()
    seconds: Mapping[str, float] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.shape: ShapeModel | None = None

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Guided variables in real units, (B,) each, and the shape by its own names.

        Args:
            image: (B, C, *S).
            factual: Image whose anatomy regions are laid into; ``image`` itself unless given.
        """
        return {}


class NoGuidance(Guidance):
    """No-CFT: go on with the ELBO alone, the baseline."""


class JudgeGuidance(Guidance):
    """A frozen judge: always in eval mode, no gradient for itself, but gradient through it.

    Args:
        judge: The judge, or the checkpoint to read it from.
    """

    kind: type[Judge] = Judge

    def __init__(self, judge: Judge | str) -> None:
        super().__init__()
        if isinstance(judge, str):
            self.seconds = checkpoints.seconds(judge)
            judge = checkpoints.load(judge, self.kind)
        self.judge = judge
        self.judge.requires_grad_(False)
        self.names = list(self.judge.description.parents.structural)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever the trainer asks for."""
        return super().train(False)

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure all guided variables."""
        return self.judge.measure(image, factual)


class RegressorGuidance(JudgeGuidance):
    """Reg-CFT: a regressor reads the variables off the whole image."""

    kind = Regressor


class SegmentorGuidance(JudgeGuidance):
    """Seg-CFT: a segmentor outlines each structure and is measured softly (Xia et al., 2025, arXiv:2509.24913).

    Args:
        judge: The segmentor, or the checkpoint to read it from.
        shape: Measure the structures' shape as well, for fine-tuning to hold them to it.
    """

    kind = Segmentor

    def __init__(self, judge: Judge | str, shape: bool = False) -> None:
        super().__init__(judge)
        self.shape = ShapeModel(self.judge.description) if shape else None

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure all guided variables, and the shape by its own names."""
        if self.shape is None:
            return self.judge.measure(image, factual)
        assert isinstance(self.judge, Segmentor)
        masks = self.judge.probabilities(image)
        return self.judge.measure_outlines(masks, image, factual) | self.shape.measure(masks)
