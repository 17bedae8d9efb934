"""Mechanism of one variable: value = f(exogenous noise, causes), with exact inversion or exact posterior sampling."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from zuko.transforms import ComposedTransform, MonotonicAffineTransform, MonotonicRQSTransform, Transform

from segcft.variables.variables import Variable

BOUND = 5.0  # in training standard deviations; the spline is linear beyond it


class Conditional(nn.Module, ABC):
    """p(value | causes). Values are (B,) in real units; the vector of causes is (B, C); C may be 0."""

    @abstractmethod
    def log_prob(self, value: Tensor, causes: Tensor) -> Tensor:
        """Log density (nats per real unit) or log probability (nats) of ``value``, (B,)."""

    @abstractmethod
    def prior(self, causes: Tensor) -> Tensor:
        """Sample exogenous noise from its prior, (B, k); only the shape and device of ``causes`` matter."""

    @abstractmethod
    def abduct(self, value: Tensor, causes: Tensor) -> Tensor:
        """Abduction: exogenous noise given the observed value and causes, (B, k)."""

    @abstractmethod
    def predict(self, noise: Tensor, causes: Tensor) -> Tensor:
        """Prediction: the value determined by noise (B, k) and causes, (B,)."""


class SplineFlow(Conditional):
    """Conditional normalising flow of a continuous variable: a standard normal under a map shaped by the causes.

    The map is affine followed by a monotone rational-quadratic spline (Durkan et al., 2019, arXiv:1906.04032), whose
    inverse is exact. It is computed in double precision where the device supports it. Untrained, it is the normal or
    log-normal with the mean and standard deviation of the training split, for all causes.

    Args:
        variable: The variable with its training statistics.
        causes: Length C of the causes' vector.
        positive: Model the logarithm of the value.
        hidden: Width of the network that reads the causes.
        bins: Number of bins of the spline.
    """

    def __init__(self, variable: Variable, causes: int, positive: bool, hidden: int, bins: int) -> None:
        super().__init__()
        self.positive, self.sizes = positive, [1, 1, bins, bins, bins - 1]
        self.reader = _Reader(causes, sum(self.sizes), hidden)
        self.mean, self.std = variable.mean, variable.std
        if positive:  # moments of the logarithm, assuming a log-normal
            self.std = math.log1p((variable.std / variable.mean) ** 2) ** 0.5
            self.mean = math.log(variable.mean) - self.std**2 / 2

    def log_prob(self, value: Tensor, causes: Tensor) -> Tensor:
        """Log density of ``value``, (B,) in nats per real unit; -inf where a positive variable is 0 or negative."""
        noise, steepness = self._flow(causes).call_and_ladj(self._standardised(value))
        density: Tensor = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi) + steepness - math.log(self.std)
        if not self.positive:
            return density
        return (density - _precise(value).log()).masked_fill(value <= 0, -math.inf)

    def prior(self, causes: Tensor) -> Tensor:
        """Standard normal, (B, 1)."""
        return torch.randn_like(_precise(causes.new_empty(len(causes), 1)))

    def abduct(self, value: Tensor, causes: Tensor) -> Tensor:
        """The unique noise that yields ``value``, (B, 1)."""
        noise: Tensor = self._flow(causes)(self._standardised(value))
        return noise[:, None]

    def predict(self, noise: Tensor, causes: Tensor) -> Tensor:
        """The inverse of ``abduct``, (B,)."""
        value: Tensor = self._flow(causes).inv(noise[:, 0]) * self.std + self.mean
        return value.exp() if self.positive else value

    def _standardised(self, value: Tensor) -> Tensor:
        value = _precise(value)
        return ((value.clamp(min=0).log() if self.positive else value) - self.mean) / self.std

    def _flow(self, causes: Tensor) -> Transform:
        """The transform from standardised value to noise, one per subject."""
        shift, scale, *spline = torch.split(_precise(self.reader(causes)), self.sizes, dim=1)
        affine = MonotonicAffineTransform(shift[:, 0], scale[:, 0])
        return ComposedTransform(affine, MonotonicRQSTransform(*spline, bound=BOUND))


class GumbelMax(Conditional):
    """Gumbel-max mechanism of a binary or categorical variable (Oberst and Sontag, 2019, arXiv:1905.05824).

    Args:
        categories: Number of categories K; values are their indices.
        causes: Length C of the causes' vector.
        hidden: Width of the network that reads the causes.
    """

    def __init__(self, categories: int, causes: int, hidden: int) -> None:
        super().__init__()
        self.categories = categories
        self.reader = _Reader(causes, categories, hidden)

    def logits(self, causes: Tensor) -> Tensor:
        """Log probabilities, (B, K)."""
        return _precise(self.reader(causes)).log_softmax(1)

    def log_prob(self, value: Tensor, causes: Tensor) -> Tensor:
        """Log probability of the category, (B,) in nats."""
        return self.logits(causes).gather(1, value.long()[:, None])[:, 0]

    def prior(self, causes: Tensor) -> Tensor:
        """Standard Gumbel, (B, K)."""
        return -torch.empty_like(_precise(causes.new_empty(len(causes), self.categories))).exponential_().log()

    def abduct(self, value: Tensor, causes: Tensor) -> Tensor:
        """Sample the noise from its posterior given that category ``value`` was the largest, (B, K).

        The largest of logits plus noise is a standard Gumbel T; each other sum is a Gumbel located at its logit and
        truncated at T (Maddison et al., 2014, arXiv:1411.0030).
        """
        logits, free, winner = self.logits(causes), self.prior(causes), value.long()[:, None]
        top = free.gather(1, winner)  # (B, 1); the log-sum-exp of log probabilities is 0
        sums = -torch.logaddexp(-top, -(free + logits))
        return sums.scatter(1, winner, top) - logits

    def predict(self, noise: Tensor, causes: Tensor) -> Tensor:
        """Category with the largest logit plus noise, (B,)."""
        sums = noise + self.logits(causes)
        return sums.argmax(1).to(sums)


class _Reader(nn.Module):
    """Causes (B, C) -> parameters of a mechanism (B, n), initially 0; n free parameters if there is no cause."""

    def __init__(self, causes: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(outputs))
        self.network: nn.Module | None = None
        if causes:
            last = nn.Linear(hidden, outputs, bias=False)
            nn.init.zeros_(last.weight)
            self.network = nn.Sequential(nn.Linear(causes, hidden), nn.GELU(), last)

    def forward(self, causes: Tensor) -> Tensor:
        base = self.base.expand(len(causes), -1)
        if self.network is None:
            return base
        with torch.autocast(causes.device.type, enabled=False):  # half precision would change areas by a per cent
            read: Tensor = self.network(causes.to(self.base))
        return base + read


def _precise(value: Tensor) -> Tensor:
    """Convert to double precision, except on Apple's MPS device, which lacks it."""
    return value if value.device.type == "mps" else value.double()
