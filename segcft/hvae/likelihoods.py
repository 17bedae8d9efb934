"""Pixel-wise likelihoods p(image | latents, parents), with exogenous noise u = (x - loc) / scale."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcft.core.recipes import Recorded


class Pixels(NamedTuple):
    """Independent location-scale distribution of every pixel, (B, C, *S) each.

    Attributes:
        loc: Mean.
        log_scale: Logarithm of the standard deviation.
        states: The decoder's state after every stage, coarsest first.
    """

    loc: Tensor
    log_scale: Tensor
    states: tuple[Tensor, ...] = ()


class Likelihood(nn.Module, Recorded, ABC):
    """Turns the decoder's two output maps into ``Pixels`` and scores an image under them.

    Args:
        scale: Standard deviation of every pixel; ``None`` learns one per pixel.
        min_scale: Lower bound of a learnt standard deviation, which bounds the density.
        initial_scale: Initial value of a learnt standard deviation.

    Raises:
        ValueError: If a scale is not positive.
    """

    def __init__(self, scale: float | None = None, min_scale: float = 0.02, initial_scale: float = 0.25) -> None:
        super().__init__()
        if min(min_scale, initial_scale, 1.0 if scale is None else scale) <= 0:
            raise ValueError(f"scales must be positive, got {scale}, {min_scale}, {initial_scale}")
        self.scale, self.min_scale, self.initial_scale = scale, min_scale, initial_scale

    def pixels(self, loc: Tensor, raw_scale: Tensor) -> Pixels:
        """Decoder outputs (B, C, *S) -> distribution in fp32 whatever the autocast dtype."""
        loc, raw_scale = loc.float(), raw_scale.float()
        if self.scale is not None:
            return Pixels(loc, torch.full_like(loc, math.log(self.scale)))
        floor = math.log(self.min_scale)
        log_scale = floor + F.softplus(raw_scale + math.log(self.initial_scale) - floor)
        return Pixels(loc, log_scale)

    @abstractmethod
    def nll(self, image: Tensor, pixels: Pixels) -> Tensor:
        """Negative log-likelihood of every pixel in nats, (B, C, *S)."""


class Gaussian(Likelihood):
    """Gaussian density of continuous grey levels; its NLL can be negative."""

    def nll(self, image: Tensor, pixels: Pixels) -> Tensor:
        """0.5 u^2 + log scale + 0.5 log 2 pi."""
        residual = (image.float() - pixels.loc) * torch.exp(-pixels.log_scale)
        return 0.5 * residual.square() + pixels.log_scale + 0.5 * math.log(2 * math.pi)


class DiscretisedGaussian(Likelihood):
    """Probability of an 8-bit grey level: the Gaussian's mass in a bin of width 2 / 255 around it.

    Uses the tanh approximation of the normal distribution function (de Sousa Ribeiro et al., 2023, as in VDVAE-style
    models), evaluated in log space so that pixels of very low probability keep a gradient.
    """

    levels = 256

    def nll(self, image: Tensor, pixels: Pixels) -> Tensor:
        """-log P(bin of the image); the first and the last bin include the tails."""
        half, inverse = 1 / (self.levels - 1), torch.exp(-pixels.log_scale)
        centred = image.float() - pixels.loc
        upper, lower = self._logit((centred + half) * inverse), self._logit((centred - half) * inverse)
        # log(sigmoid(upper) - sigmoid(lower)), stable in both tails
        gap = (lower - upper).clamp(max=-1e-6)
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(gap))
        edge = 1 - half
        log_mass = torch.where(image < -edge, F.logsigmoid(upper), inside)
        return -torch.where(image > edge, F.logsigmoid(-lower), log_mass)

    @staticmethod
    def _logit(value: Tensor) -> Tensor:
        """Logit of the standard normal's distribution function; linear beyond 6 standard deviations."""
        inner = value.clamp(-6, 6)
        slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * 36)
        return _normal_logit(inner) + slope * (value - inner)


class CappedDiscretisedGaussian(DiscretisedGaussian):
    """The discretised Gaussian of the public HVAEs: an unconstrained log-scale per pixel, and a cap on a pixel's NLL.

    Probabilities below ``floor`` are replaced by it; such a pixel has no gradient.

    Args:
        min_log_scale: Smallest log-scale.
        floor: Smallest probability.

    Raises:
        ValueError: If ``floor`` is not a probability above 0.
    """

    def __init__(self, min_log_scale: float = -9.0, floor: float = 1e-12) -> None:
        super().__init__()
        if not 0 < floor < 1:
            raise ValueError(f"floor must lie between 0 and 1, got {floor}")
        self.min_log_scale, self.cap = min_log_scale, -math.log(floor)

    def pixels(self, loc: Tensor, raw_scale: Tensor) -> Pixels:
        """Decoder outputs (B, C, *S) -> distribution in fp32; ``raw_scale`` is the log-scale."""
        return Pixels(loc.float(), raw_scale.float().clamp(min=self.min_log_scale))

    def nll(self, image: Tensor, pixels: Pixels) -> Tensor:
        """-log max(P(bin of the image), floor)."""
        return super().nll(image, pixels).clamp(max=self.cap)

    @staticmethod
    def _logit(value: Tensor) -> Tensor:
        return _normal_logit(value)


def _normal_logit(value: Tensor) -> Tensor:
    """A polynomial g for which sigmoid(g(y)) approximates the standard normal's distribution function."""
    return 2 * math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)
