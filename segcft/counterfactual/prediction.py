"""The last step of a counterfactual: from what the decoder says about both worlds to the counterfactual image.

Every form returns the factual image where both worlds agree, so a null intervention changes nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcft.core.recipes import Recorded
from segcft.counterfactual.native_resolution import Edit
from segcft.hvae.blocks import conv, scaled
from segcft.hvae.likelihoods import Pixels
from segcft.spatial.diffeomorphism import exponential, roughness, warp
from segcft.spatial.resize import grow
from segcft.variables.regions import averaged, largest


class Drawn(NamedTuple):
    """A counterfactual image, how it was made, and the price of that.

    Attributes:
        image: (B, C, *S) in [-1, 1].
        cost: Scalar to be added to the loss of training; 0 of forms that learn nothing.
        edit: The same as a change that an image of any size can be given.
    """

    image: Tensor
    cost: Tensor
    edit: Edit


def painted(image: Tensor, cf_image: Tensor) -> Drawn:
    """Of a form that knows what the counterfactual is, not where it comes from: all of the change is painted."""
    return Drawn(cf_image, image.new_zeros(()), Edit(cf_image - image))


def saturated(squared: Tensor, threshold: Tensor | float) -> Tensor:
    """d^2 / (d^2 + threshold^2) of squared differences: 0 of none, 1/2 at the threshold, then towards 1."""
    return squared / (squared + threshold**2)


def positive(name: str, value: float) -> float:
    """The value of a setting.

    Raises:
        ValueError: If it is not above 0.
    """
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


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
        for part in self.children():
            if isinstance(part, VelocityField):
                part.attach(widths, spatial_dims)

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
        return painted(image, (counterfactual.loc + ratio * residual).clamp(-1, 1))


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
        if reach < 0:
            raise ValueError(f"reach is a number of pixels, got {reach}")
        self.threshold, self.reach = positive("threshold", threshold), reach
        self.register_buffer("present", torch.tensor(float(threshold)), persistent=False)

    def anneal(self, share: float) -> None:
        """Let the gate open sooner than ``threshold`` says."""
        self.present.fill_(self.threshold * max(share, 0.2))

    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Drawn:
        """Blend the image towards the counterfactual mean where it differs materially from the factual one."""
        return painted(image, (image + self._gate(factual, counterfactual) * (counterfactual.loc - image)).clamp(-1, 1))

    def _gate(self, factual: Pixels, counterfactual: Pixels) -> Tensor:
        return saturated(largest((counterfactual.loc - factual.loc).square(), self.reach), self.present)


class VelocityField(nn.Module):
    """Velocity from one world to the other: the difference of one read-out W of the decoder's state, v = W(h*) - W(h).

    It vanishes where both worlds agree, so a null intervention moves nothing.

    Args:
        stage: Of the decoder, whose state W reads; 0 is the finest, 2 mostly a quarter of the resolution.
        gain: Factor on W's output: it learns that much faster than the rest.
    """

    def __init__(self, stage: int, gain: float) -> None:
        super().__init__()
        self.stage, self.gain = stage, gain
        self.squeeze: nn.Module | None = None
        self.expand: nn.Module | None = None

    def attach(self, widths: Sequence[int], spatial_dims: int) -> None:
        """Make W, once.

        Raises:
            ValueError: If the decoder has no such stage.
        """
        if self.squeeze is not None:
            return
        if not 0 <= self.stage < len(widths):
            raise ValueError(f"stage {self.stage} is none of the decoder's, which are 0 (finest) to {len(widths) - 1}")
        width = widths[self.stage]
        self.squeeze = conv(spatial_dims, width, width // 2)
        self.expand = scaled(conv(spatial_dims, width // 2, spatial_dims), 0.1 / self.gain)

    def forward(self, factual: Pixels, counterfactual: Pixels) -> Tensor:
        """(B, D, *S) in pixels."""
        return grow(self._read(counterfactual) - self._read(factual), factual.loc.shape[2:])

    def _read(self, pixels: Pixels) -> Tensor:
        assert self.squeeze is not None, "attach the decoder first"
        assert self.expand is not None
        features: Tensor = self.expand(F.silu(self.squeeze(F.silu(pixels.states[-1 - self.stage]))))
        return self.gain * features.float()


class Transported(Gated):
    """x* = (1 - g) x + g (mu* + (x - mu) o phi): the gate, and a residual that moves along with the anatomy.

    phi is the flow of a stationary velocity field, see ``VelocityField``. The residual is what the decoder could not
    explain, fine texture and ribs; left where it was, it would show the old border as a ghost.

    Two prices keep the flow honest: it is smooth, and it moves the factual mean to where the counterfactual one is.

    Args:
        stage: Of the decoder, see ``VelocityField``.
        threshold: Of the gate.
        smooth: Price of the velocity's squared differences, per pixel.
        agree: Price of |mu* - mu o phi|.
        gain: Of the velocity field.
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
        self.velocity, self.smooth, self.agree = VelocityField(stage, gain), smooth, agree

    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Drawn:
        """Gate towards the counterfactual mean plus the residual carried along."""
        velocity = self.velocity(factual, counterfactual)
        displacement = exponential(velocity)
        left = counterfactual.loc - warp(factual.loc, displacement)  # what the flow does not explain
        cost = self.smooth * roughness(velocity) + self.agree * left.abs().mean()
        gate = self._gate(factual, counterfactual)
        moved = warp(image, displacement) + left
        return Drawn((image + gate * (moved - image)).clamp(-1, 1), cost, Edit(left, velocity, gate, freely=True))


class Warped(Prediction):
    """x* = x o phi: anatomy moves, and nothing is painted.

    phi is the flow of a stationary velocity field, see ``VelocityField``, so tissue is neither torn nor folded: what
    lies beside a structure that grows gives way, and every detail of the image moves along, at any resolution.

    Args:
        stage: Of the decoder, see ``VelocityField``.
        smooth: Price of the velocity's squared differences, per pixel.
        still: Price of the velocity's square, per pixel: what need not move stays.
        agree: Price of |mu* - mu o phi|: the decoder says the same as the flow.
        gain: Of the velocity field.
        fade: Pixels over which the flow comes to rest at the film's border, where nothing could come in from.
    """

    def __init__(
        self,
        stage: int = 2,
        smooth: float = 0.02,
        still: float = 0.05,
        agree: float = 1.0,
        gain: float = 3.0,
        fade: int = 3,
    ) -> None:
        super().__init__()
        self.velocity, self.fade = VelocityField(stage, gain), fade
        self.smooth, self.still, self.agree, self.price = smooth, still, agree, 0.0

    def forward(self, image: Tensor, factual: Pixels, counterfactual: Pixels) -> Drawn:
        """Carry the image along."""
        velocity = self.velocity(factual, counterfactual) * film_window(image, self.fade)
        displacement = exponential(velocity)
        left = counterfactual.loc - warp(factual.loc, displacement)  # what the flow does not explain
        paint, gate = self.paint(left), self.gate(left, counterfactual.loc - factual.loc)
        moved = warp(image, displacement) + paint
        drawn = moved if gate is None else image + gate * (moved - image)
        cost = self.smooth * roughness(velocity) + self.still * velocity.square().mean()
        cost = cost + self.agree * left.abs().mean() + self.price * paint.abs().mean()
        return Drawn(drawn.clamp(-1, 1), cost, Edit(paint, velocity, gate))

    def paint(self, left: Tensor) -> Tensor:
        """What is added to the carried image, (B, C, *S).

        Args:
            left: Difference of the counterfactual mean and the carried factual one, (B, C, *S).
        """
        return torch.zeros_like(left)

    def gate(self, left: Tensor, difference: Tensor) -> Tensor | None:
        """Share of the change that is made, (B, C, *S) in [0, 1]; None for all of it.

        Args:
            left: See ``paint``.
            difference: Of the counterfactual and the factual mean, (B, C, *S).
        """
        return None


class Deformed(Warped):
    """x* = x o phi + h (mu* - mu o phi): anatomy moves, and what a flow cannot explain is painted.

    Plaque that appears, or what comes in from beyond the film, is nowhere to be taken from. The gate
    h = d^2 / (d^2 + threshold^2), with d what is left, keeps small differences of both means from adding up to a haze.

    Args:
        threshold: Difference, in image units, at which half of it is painted.
        price: Of the mean absolute paint, so that what can move is moved.
        stage: See ``Warped``.
        smooth: See ``Warped``.
        still: See ``Warped``.
        agree: See ``Warped``.
        gain: See ``Warped``.
        fade: See ``Warped``.

    Raises:
        ValueError: If ``threshold`` is not positive.
    """

    def __init__(
        self,
        threshold: float = 0.1,
        price: float = 5.0,
        stage: int = 2,
        smooth: float = 0.02,
        still: float = 0.05,
        agree: float = 4.0,
        gain: float = 3.0,
        fade: int = 3,
    ) -> None:
        super().__init__(stage, smooth, still, agree, gain, fade)
        self.threshold, self.price = positive("threshold", threshold), price

    def paint(self, left: Tensor) -> Tensor:
        """What is left of the change, gated."""
        return saturated(left.square(), self.threshold) * left


class Sliding(Deformed):
    """x* = x + g (x o phi + h (mu* - mu o phi) - x): as ``Deformed``, but tissue stays where the decoder leaves it.

    A smooth flow drags the neighbours of a structure along. Where they slide past it they stay, and the decoder's means
    tell which: g = e^2 / (e^2 + evidence^2), with e^2 = (mu* - mu)^2 - (mu* - mu o phi)^2, averaged over 3 pixels along
    each axis and at least 0. It is near 1 where moving explains the counterfactual mean, and 0 where staying does.

    Args:
        evidence: Difference, in image units, at which half of the change is made.
        threshold: See ``Deformed``.
        price: See ``Deformed``.
        stage: See ``Warped``.
        smooth: See ``Warped``.
        still: See ``Warped``.
        agree: See ``Warped``.
        gain: See ``Warped``.
        fade: See ``Warped``.

    Raises:
        ValueError: If ``evidence`` or ``threshold`` is not positive.
    """

    def __init__(
        self,
        evidence: float = 0.03,
        threshold: float = 0.1,
        price: float = 5.0,
        stage: int = 2,
        smooth: float = 0.02,
        still: float = 0.02,
        agree: float = 10.0,
        gain: float = 3.0,
        fade: int = 3,
    ) -> None:
        super().__init__(threshold, price, stage, smooth, still, agree, gain, fade)
        self.evidence = positive("evidence", evidence)

    def gate(self, left: Tensor, difference: Tensor) -> Tensor:
        """How far moving explains the counterfactual mean better than staying."""
        return saturated(averaged(difference.square() - left.square(), 3).clamp(min=0), self.evidence)


def film_window(image: Tensor, pixels: int) -> Tensor:
    """0 at the border of the film, rising to 1 ``pixels`` within, (B, 1, *S), smooth.

    Black rows and columns along the border of the image (B, C, *S) are padding, and no film.
    """
    weight = torch.ones_like(image[:, :1])
    if not pixels:
        return weight
    shown = (image > -1 + 1e-3).any(1, keepdim=True)
    for axis in range(2, image.dim()):
        others = [other for other in range(2, image.dim()) if other != axis]
        line = shown.float().amax(others, keepdim=True)  # 1 where a row shows anything
        before, behind = (line.cummax(axis).values, line.flip(axis).cummax(axis).values.flip(axis))
        within = before * behind
        depth = torch.minimum((before.cumsum(axis)), behind.flip(axis).cumsum(axis).flip(axis)) * within - 0.5
        share = (depth.clamp(min=0) / pixels).clamp(max=1)
        weight = weight * share * share * (3 - 2 * share)
    return weight
