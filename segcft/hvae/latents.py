"""Latent variables of the HVAE: distributions, stochastic blocks, the ELBO's terms and the result of abduction."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segcft.hvae.likelihoods import Pixels

_own: list[torch.Generator] | None = None  # of the subjects of a batch, see ``noise_by_subject``


@contextmanager
def noise_by_subject(index: Tensor) -> Iterator[None]:
    """Within, every subject of a batch has noise of its own, (B,) seeds: whatever batch or process it is in."""
    global _own
    _own = [torch.Generator().manual_seed(seed) for seed in index.tolist()]
    try:
        yield
    finally:
        _own = None


class Normal(NamedTuple):
    """Diagonal normal distribution in fp32."""

    mean: Tensor
    log_std: Tensor

    def sample(self, temperature: float) -> Tensor:
        """Draw a sample; the noise is drawn in channels-last order, so it does not depend on the memory format."""
        if temperature == 0:
            return self.mean
        count, channels, *size = self.mean.shape
        if _own is None:
            noise = torch.randn(count, *size, channels, device=self.mean.device, dtype=self.mean.dtype)
        else:
            noise = torch.stack([torch.randn(*size, channels, generator=each) for each in _own]).to(self.mean)
        drawn: Tensor = _Draw.apply(*self, noise.movedim(-1, 1), temperature)  # type: ignore[no-untyped-call]
        return drawn

    def kl(self, other: "Normal") -> Tensor:
        """KL(self || other) summed over all but the batch, (B,) in nats."""
        divergence: Tensor = _Divergence.apply(*self, *other)  # type: ignore[no-untyped-call]
        return divergence

    def mixed(self, other: "Normal", share: float) -> "Normal":
        """Distribution of ``share * x + (1 - share) * y`` for independent x ~ self and y ~ other."""
        std = torch.hypot(share * self.log_std.exp(), (1 - share) * other.log_std.exp())
        return Normal(share * self.mean + (1 - share) * other.mean, std.log())

    def carry(self, value: Tensor, other: "Normal") -> Tensor:
        """Map a value to ``other`` with the same standardised noise, m' + s' (v - m) / s; exactly v if both agree."""
        stretch = torch.expm1(other.log_std - self.log_std)
        return value + (other.mean - self.mean) + stretch * (value - self.mean)


def normal(statistics: Tensor) -> Normal:
    """Network output (B, 2 * latent_channels, *S), means and raw log standard deviations, as a distribution."""
    mean, log_std = statistics.float().chunk(2, dim=1)
    return Normal(mean, 5 * torch.tanh(log_std / 5))  # standard deviation between e^-5 and e^5, smoothly


class _Draw(torch.autograd.Function):
    """Reparameterised sample; its backward pass needs only the mean and the sample, which are stored anyway."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor, temperature: float) -> Tensor:
        std = log_std.clone().exp_()  # contiguous: exp is eight times slower on a slice of channels
        drawn = torch.add(mean, std.mul_(noise), alpha=temperature, out=std)
        ctx.save_for_backward(mean, drawn)
        return drawn

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, drawn = ctx.saved_tensors
        return grad, (drawn - mean).mul_(grad), None, None


class _Divergence(torch.autograd.Function):
    """KL divergence of two normals, (B,), with a hand-written gradient that needs half of autograd's memory passes."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
        precision = torch.neg(other_log_std).exp_()
        distance = torch.sub(mean, other_mean).mul_(precision)
        apart, axes = log_std - other_log_std, tuple(range(1, mean.dim()))
        entropy, variance = apart.sum(axes), apart.mul_(2).exp_()
        ctx.save_for_backward(precision, distance, variance)
        squares: Tensor = torch.linalg.vector_norm(distance, dim=axes).square()
        return 0.5 * (variance.sum(axes) + squares - mean[0].numel()) - entropy

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        precision, distance, variance = ctx.saved_tensors
        grad = grad.view(-1, *[1] * (variance.dim() - 1))
        pull = distance * grad
        by_std = torch.sub(variance, 1).mul_(grad)
        by_other_std = torch.addcmul(by_std, pull, distance).neg_()
        by_mean = pull.mul_(precision)
        return by_mean, by_std, -by_mean, by_other_std


class LatentBlock(nn.Module, ABC):
    """One stochastic block of the decoder: a latent's prior and posterior, and how it updates the decoder's state.

    Attributes:
        stochastic: Whether the latent is sampled; otherwise the prior's mean is used and it does not count as a latent.
    """

    stochastic: bool = True

    @abstractmethod
    def prior_of(self, state: Tensor, memory: Tensor, parents: Tensor) -> tuple[Normal, Tensor]:
        """Prior of this latent, and the prior's features.

        Args:
            state: Decoder state, (B, width, *S).
            memory: Prior state, (B, width, *S); of an exogenous latent it does not depend on the parents.
            parents: Embedded parents, (B, embedding).
        """

    @abstractmethod
    def posterior_of(self, state: Tensor, memory: Tensor, seen: Tensor, parents: Tensor) -> Normal:
        """Posterior of this latent; ``seen`` are the encoder's features, by default (B, width, *S)."""

    @abstractmethod
    def absorb(self, state: Tensor, latent: Tensor, features: Tensor, parents: Tensor) -> Tensor:
        """The next decoder state, (B, width, *S) or with the next block's width."""

    @abstractmethod
    def recall(self, memory: Tensor, latent: Tensor, features: Tensor) -> Tensor:
        """The next prior state; for exogenous latents it does not depend on the parents."""

    def step(
        self,
        choose: Callable[[Normal, Normal | None], Tensor],
        state: Tensor,
        memory: Tensor,
        parents: Tensor,
        seen: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Normal, Normal | None]:
        """Run the block: next decoder and prior states, (latent, prior features), prior and posterior.

        Args:
            choose: Returns the latent from its prior and posterior; called again if activations are recomputed.
            state: Decoder state, (B, width, *S).
            memory: Prior state, (B, width, *S).
            parents: Embedded parents, (B, embedding).
            seen: Encoder features for the posterior; None for no posterior.
            last: Whether this is the last prior, so that its state need not be updated.
        """
        prior, features = self.prior_of(state, memory, parents)
        posterior, latent = None, prior.mean
        if self.stochastic:
            posterior = None if seen is None else self.posterior_of(state, memory, seen, parents)
            latent = choose(prior, posterior)
        memory = memory if last else self.recall(memory, latent, features)
        return self.absorb(state, latent, features, parents), memory, (latent, features), prior, posterior


class Belief(NamedTuple):
    """Prior and posterior of one latent given those above it and the factual parents, (B, latent_channels, *S) each.

    Attributes:
        prior: p(z_i | z_<i), or p(z_i | z_<i, parents) with a conditional prior.
        posterior: q(z_i | z_<i, image, parents).
    """

    prior: Normal
    posterior: Normal

    def moved(self, latent: Tensor, prior: Normal, mixing: float) -> Tensor:
        """The latent under its counterfactual prior.

        The mediator's distribution is r = a q + (1 - a) p, a mixture of the posterior with the prior of the factual or
        the counterfactual world (de Sousa Ribeiro et al., 2023, arXiv:2306.15764): mean a mu_q + (1 - a) mu_p, variance
        (a sigma_q)^2 + ((1 - a) sigma_p)^2. Its noise e = (z - mu_r) / sigma_r is inferred with the factual prior
        p(z | pa) and reused with the counterfactual one p(z | pa*): z* = mu_r* + sigma_r* e. Both worlds use the same
        mechanism, so z* = z where the priors agree.

        Args:
            latent: Abducted z_i, (B, latent_channels, *S).
            prior: p(z_i | z*_<i, pa*).
            mixing: a in [0, 1]; 0 transfers the prior's noise, 1 keeps the latent.
        """
        factual, counterfactual = (self.posterior.mixed(world, mixing) for world in (self.prior, prior))
        return factual.carry(latent, counterfactual)


class Elbo(NamedTuple):
    """Terms of the negative evidence lower bound, in nats per image dimension, (B,) each.

    Attributes:
        nll: Negative log-likelihood of the image.
        kl: KL divergence of every latent, top block first, (B, L).
        places: Resolution of every latent, such as ``8x8``.
    """

    nll: Tensor
    kl: Tensor
    places: list[str]

    def nelbo(self, beta: float = 1.0) -> Tensor:
        """``nll + beta * kl``, (B,)."""
        return self.nll + beta * self.kl.sum(1)

    @property
    def kl_by_resolution(self) -> dict[str, Tensor]:
        """Mean KL summed per resolution, keys such as ``kl_8x8``, scalars in nats per image dimension."""
        found: dict[str, Tensor] = {}
        for place, kl in zip(self.places, self.kl.mean(0), strict=True):
            found[f"kl_{place}"] = found.get(f"kl_{place}", 0) + kl
        return found


class Abduction(NamedTuple):
    """The inferred exogenous noise of a batch of images, with the terms needed for the ELBO.

    Attributes:
        latents: z, top block first, (B, latent_channels, *S) each.
        pixels: Distribution of the factual image under these latents, (B, C, *S).
        nll: Negative log-likelihood of the image under ``pixels``, (B,) in nats per image dimension.
        beliefs: Prior and posterior of each latent, top block first.
        pa: Encoded factual parents, (B, P).
        added: Latent and prior features that every ``LatentBlock`` added to the decoder's state, top block first. With
            an exogenous prior the features are the same under other parents and can be reused.
    """

    latents: list[Tensor]
    pixels: Pixels
    nll: Tensor
    beliefs: list[Belief]
    pa: Tensor
    added: list[tuple[Tensor, Tensor]]

    @property
    def elbo(self) -> Elbo:
        """Terms of the ELBO; computed on demand, since counterfactuals do not need them."""
        kl = torch.stack([belief.posterior.kl(belief.prior) for belief in self.beliefs], dim=1)
        places = ["x".join(map(str, latent.shape[2:])) for latent in self.latents]
        return Elbo(self.nll, kl / self.pixels.loc[0].numel(), places)
