"""The mechanism of one variable: value = f(exogenous noise, causes), with f invertible or sampled back exactly."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from zuko.transforms import ComposedTransform, MonotonicAffineTransform, MonotonicRQSTransform, Transform

from segcft.variables.variables import Variable

BOUND = 5.0  # training deviations; beyond it a spline goes on as a straight line


class Conditional(nn.Module, ABC):
    """p(value | causes). Values are (B,) in real units, the causes' vector is (B, C) and may be empty (C = 0)."""

    @abstractmethod
    def log_prob(self, value: Tensor, causes: Tensor) -> Tensor:
        """Log density (nats per real unit) or log probability (nats) of ``value``, (B,)."""

    @abstractmethod
    def prior(self, causes: Tensor) -> Tensor:
        """Exogenous noise of nobody in particular, (B, k); only the shape and device of ``causes`` matter."""

    @abstractmethod
    def abduct(self, value: Tensor, causes: Tensor) -> Tensor:
        """Exogenous noise given what was observed, (B, k)."""

    @abstractmethod
    def predict(self, noise: Tensor, causes: Tensor) -> Tensor:
        """The value that noise (B, k) and causes make, (B,)."""


class SplineFlow(Conditional):
    """A continuous variable: a standard normal, shifted, scaled and bent by the causes.

    The bend is a monotone rational-quadratic spline (Durkan et al., 2019, arXiv:1906.04032), whose inverse is exact;
    numbers are double where the device has them. An untrained flow is the normal or log-normal with the mean and
    deviation of the training split, whatever the causes.

    Args:
        variable: Its statistics.
        causes: Length C of the causes' vector.
        positive: Model the logarithm.
        hidden: Width of the network that reads the causes.
        bins: Pieces of the spline.
    """

    def __init__(self, variable: Variable, causes: int, positive: bool, hidden: int, bins: int) -> None:
        super().__init__()
        self.positive, self.sizes = positive, [1, 1, bins, bins, bins - 1]
        self.reader = _Reader(causes, sum(self.sizes), hidden)
        self.mean, self.std = variable.mean, variable.std
        if positive:  # of the logarithm, were it normal
            self.std = math.log1p((variable.std / variable.mean) ** 2) ** 0.5
            self.mean = math.log(variable.mean) - self.std**2 / 2

    def log_prob(self, value: Tensor, causes: Tensor) -> Tensor:
        """Log density of ``value``, (B,) in nats per real unit; -inf where a positive variable is not."""
        noise, steepness = self._flow(causes).call_and_ladj(self._standardised(value))
        density: Tensor = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi) + steepness - math.log(self.std)
        if not self.positive:
            return density
        return (density - _precise(value).log()).masked_fill(value <= 0, -math.inf)

    def prior(self, causes: Tensor) -> Tensor:
        """Standard normal, (B, 1)."""
        return torch.randn_like(_precise(causes.new_empty(len(causes), 1)))

    def abduct(self, value: Tensor, causes: Tensor) -> Tensor:
        """The one noise that makes ``value``, (B, 1)."""
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
        """Standardised value -> noise, of every subject its own."""
        shift, scale, *spline = torch.split(_precise(self.reader(causes)), self.sizes, dim=1)
        affine = MonotonicAffineTransform(shift[:, 0], scale[:, 0])
        return ComposedTransform(affine, MonotonicRQSTransform(*spline, bound=BOUND))


class GumbelMax(Conditional):
    """A binary or categorical variable: the largest of logits plus Gumbel noise (Oberst and Sontag, 2019, 1905.05824).

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
        """A draw of the noise given that ``value`` won, (B, K).

        The winner's sum is a standard Gumbel T, as the largest of all is; every other sum is a Gumbel of its logit,
        truncated at T (Maddison et al., 2014, arXiv:1411.0030).
        """
        logits, free, winner = self.logits(causes), self.prior(causes), value.long()[:, None]
        top = free.gather(1, winner)  # (B, 1); the log-sum-exp of log probabilities is 0
        sums = -torch.logaddexp(-top, -(free + logits))
        return sums.scatter(1, winner, top) - logits

    def predict(self, noise: Tensor, causes: Tensor) -> Tensor:
        """Index of the largest sum, (B,)."""
        sums = noise + self.logits(causes)
        return sums.argmax(1).to(sums)


class _Reader(nn.Module):
    """Causes (B, C) -> parameters of a mechanism (B, n), all zero at first; a table of n where there is no cause."""

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
        with torch.autocast(causes.device.type, enabled=False):  # half precision would move areas by a per cent
            read: Tensor = self.network(causes.to(self.base))
        return base + read


def _precise(value: Tensor) -> Tensor:
    """In double precision, which only Apple's devices lack."""
    return value if value.device.type == "mps" else value.double()
