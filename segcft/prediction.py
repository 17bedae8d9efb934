"""The last step of a counterfactual: from what the decoder says about both worlds to the counterfactual image.

Every form returns the factual image where both worlds agree, so a null intervention changes nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcft.blocks import conv, grow, scaled
from segcft.likelihoods import Pixels
from segcft.recipes import Recorded
from segcft.regions import largest
from segcft.transport import exponential, roughness, warp


class Drawn(NamedTuple):
    """A counterfactual image and the price of drawing it that way.

    Attributes:
        image: (B, C, *S) in [-1, 1].
        cost: Scalar to be added to the loss of training; 0 of forms that learn nothing.
    """

    image: Tensor
    cost: Tensor


class Prediction(nn.Module, Recorded, ABC):
    """(image, factual pixels, counterfactual pixels) -> counterfactual image."""

    def attach(self, widths: Sequence[int], spatial_dims: int) -> None:
        """Learn the shape of the decoder whose states it may read; ``CounterfactualModel`` tells it.

        Args:
            widths: Channels of the decoder's stages, finest first.
            spatial_dims: 2 or 3.

        Raises:
            ValueError: If it needs a stage that is not there.
        """

    def anneal(self, share: float) -> None:
        """Be as strict as ``share`` of what it will be, in (0, 1]; fine-tuning says so before a step."""

    @abstractmethod
    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Drawn:
        """Draw the counterfactual of an image (B, C, *S) in [-1, 1]."""


class Standard(Prediction):
    """x* = mu* + sigma* u with the abducted noise u = (x - mu) / sigma (Pawlowski et al., 2020, arXiv:2006.06485)."""

    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Drawn:
        """Move the abducted pixel noise unchanged into the counterfactual world."""
        residual = image - factual.loc
        ratio = (counterfactual.log_scale - factual.log_scale).exp()
        return Drawn((counterfactual.loc + ratio * residual).clamp(-1, 1), image.new_zeros(()))


class Gated(Prediction):
    """x* = (1 - g) x + g mu*, with g = d^2 / (d^2 + threshold^2) and d = mu* - mu: change only what matters.

    Small differences between both worlds, which add up to a haze over the whole image, leave it untouched. The
    residual x - mu of a pixel that does change shows the structure that is no longer there, and is dropped.

    Where both worlds are nearly one the gate passes hardly any gradient, and a model that answers too little never
    learns to. ``anneal`` therefore begins with a fifth of the threshold.

    Args:
        threshold: Difference, in image units, at which half of a pixel is replaced.
        reach: Pixels around what changes that are replaced, too: of a border that has moved, both worlds differ on its
            inner side alone, and the outer half of its slope would stay.

    Raises:
        ValueError: If ``threshold`` is not positive or ``reach`` is negative.
    """

    present: Tensor  # the threshold of this step

    def __init__(self, threshold: float = 0.1, reach: int = 0) -> None:
        super().__init__()
        if threshold <= 0:
            raise ValueError(f"threshold must be positive, got {threshold}")
        if reach < 0:
            raise ValueError(f"reach is a number of pixels, got {reach}")
        self.threshold, self.reach = threshold, reach
        self.register_buffer("present", torch.tensor(float(threshold)), persistent=False)

    def anneal(self, share: float) -> None:
        """Let the gate open sooner than ``threshold`` says."""
        self.present.fill_(self.threshold * max(share, 0.2))

    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Drawn:
        """Blend the image towards the counterfactual mean where it differs materially from the factual one."""
        return Drawn(self._blend(image, counterfactual.loc, factual, counterfactual), image.new_zeros(()))

    def _blend(self, image: Tensor, other: Tensor, factual: Pixels, counterfactual: Pixels) -> Tensor:
        squared = largest((counterfactual.loc - factual.loc).square(), self.reach)
        gate = squared / (squared + self.present.square())
        return (image + gate * (other - image)).clamp(-1, 1)


class Transported(Gated):
    """x* = (1 - g) x + g (mu* + (x - mu) o phi): the gate, and a residual that moves along with the anatomy.

    phi is the flow of a stationary velocity field, the difference of one read-out W of the decoder's state in both
    worlds, v = W(h*) - W(h), so that it vanishes where they agree. The residual is what the decoder could not explain,
    fine texture and ribs; left where it was, it would show the old border as a ghost.

    Two prices keep the flow honest: it is smooth, and it moves the factual mean to where the counterfactual one is.

    Args:
        stage: Of the decoder, whose state W reads; 0 is the finest, 2 mostly a quarter of the resolution.
        threshold: Of the gate.
        smooth: Price of the velocity's squared differences, per pixel.
        agree: Price of |mu* - mu o phi|.
        gain: Factor on W's output: it learns that much faster than the rest.
        reach: Of the gate.

    Raises:
        ValueError: If ``threshold`` is not positive or ``reach`` is negative.
    """

    def __init__(
        self,
        stage: int = 2,
        threshold: float = 0.1,
        smooth: float = 0.02,
        agree: float = 4.0,
        gain: float = 3.0,
        reach: int = 0,
    ) -> None:
        super().__init__(threshold, reach)
        self.stage, self.smooth, self.agree, self.gain = stage, smooth, agree, gain
        self.squeeze: nn.Module | None = None
        self.expand: nn.Module | None = None

    def attach(self, widths: Sequence[int], spatial_dims: int) -> None:
        """Make W, once."""
        if self.squeeze is not None:
            return
        if not 0 <= self.stage < len(widths):
            raise ValueError(f"stage {self.stage} is none of the decoder's, which are 0 (finest) to {len(widths) - 1}")
        width = widths[self.stage]
        self.squeeze = conv(spatial_dims, width, width // 2)
        self.expand = scaled(conv(spatial_dims, width // 2, spatial_dims), 0.1 / self.gain)

    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Drawn:
        """Gate towards the counterfactual mean plus the residual carried along."""
        velocity = self.velocity(factual, counterfactual)
        displacement = exponential(velocity)
        carried = counterfactual.loc + warp(image - factual.loc, displacement)
        distance = (counterfactual.loc - warp(factual.loc, displacement)).abs().mean()
        cost = self.smooth * roughness(velocity) + self.agree * distance
        return Drawn(self._blend(image, carried, factual, counterfactual), cost)

    def velocity(self, factual: Pixels, counterfactual: Pixels) -> Tensor:
        """From one world to the other, (B, D, *S) in pixels."""
        return grow(self._read(counterfactual) - self._read(factual), factual.loc.shape[2:])

    def _read(self, pixels: Pixels) -> Tensor:
        assert self.squeeze is not None, "attach the decoder first"
        assert self.expand is not None
        features: Tensor = self.expand(F.silu(self.squeeze(F.silu(pixels.states[-1 - self.stage]))))
        return self.gain * features.float()
