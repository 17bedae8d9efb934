"""The last step of a counterfactual: from what the decoder says about both worlds to the counterfactual image.

Every form returns the factual image where both worlds agree, so a null intervention changes nothing.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from segcft.likelihoods import Pixels
from segcft.recipes import Recorded


class Prediction(nn.Module, Recorded, ABC):
    """(image, factual pixels, counterfactual pixels) -> counterfactual image, (B, C, *S) in [-1, 1]."""

    @abstractmethod
    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Tensor:
        """Draw the counterfactual image."""


class Standard(Prediction):
    """x* = mu* + sigma* u with the abducted noise u = (x - mu) / sigma (Pawlowski et al., 2020, arXiv:2006.06485)."""

    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Tensor:
        """Move the abducted pixel noise unchanged into the counterfactual world."""
        residual = image - factual.loc
        ratio = (counterfactual.log_scale - factual.log_scale).exp()
        return (counterfactual.loc + ratio * residual).clamp(-1, 1)


class Gated(Prediction):
    """x* = (1 - g) x + g mu*, with g = d^2 / (d^2 + threshold^2) and d = mu* - mu: change only what matters.

    Small differences between both worlds, which add up to a haze over the whole image, leave it untouched. The
    residual x - mu of a pixel that does change shows the structure that is no longer there, and is dropped.

    Args:
        threshold: Difference, in image units, at which half of a pixel is replaced.

    Raises:
        ValueError: If ``threshold`` is not positive.
    """

    def __init__(self, threshold: float = 0.1) -> None:
        super().__init__()
        if threshold <= 0:
            raise ValueError(f"threshold must be positive, got {threshold}")
        self.threshold = threshold

    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Tensor:
        """Blend the image towards the counterfactual mean where it differs materially from the factual one."""
        squared = (counterfactual.loc - factual.loc).square()
        gate = squared / (squared + self.threshold**2)
        return (image + gate * (counterfactual.loc - image)).clamp(-1, 1)
