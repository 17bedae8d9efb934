"""Guidance: the frozen judge that measures a counterfactual and passes the gradient on to the HVAE."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Self

from torch import Tensor, nn

from segcft import checkpoints
from segcft.judges import Judge, Regressor, Segmentor
from segcft.recipes import Recorded


class Guidance(nn.Module, Recorded):
    """Measures the guided variables; a guidance without a judge measures nothing (No-CFT).

    Attributes:
        names: The variables it measures.
        seconds: Training seconds that the judge cost, by stage.
    """

    names: Sequence[str] = ()
    seconds: Mapping[str, float] = MappingProxyType({})

    def forward(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Guided variables in real units, (B,) each.

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
    """Seg-CFT: a segmentor outlines each structure and is measured softly (Xia et al., 2025, arXiv:2509.24913)."""

    kind = Segmentor
