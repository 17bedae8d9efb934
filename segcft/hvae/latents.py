"""Latents of the image mechanism: their distributions, their blocks, and what abduction finds out about them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segcft.hvae.likelihoods import Pixels


class Normal(NamedTuple):
    """Diagonal normal in fp32."""

    mean: Tensor
    log_std: Tensor

    def sample(self, temperature: float) -> Tensor:
        """Mean plus noise. Noise is drawn channels last, as the mean mostly lies, and the same however it lies."""
        if temperature == 0:
            return self.mean
        count, channels, *size = self.mean.shape
        noise = torch.randn(count, *size, channels, device=self.mean.device, dtype=self.mean.dtype)
        drawn: Tensor = _Draw.apply(*self, noise.movedim(-1, 1), temperature)  # type: ignore[no-untyped-call]
        return drawn

    def kl(self, other: "Normal") -> Tensor:
        """KL(self || other) summed over all but the batch, (B,) in nats."""
        divergence: Tensor = _Divergence.apply(*self, *other)  # type: ignore[no-untyped-call]
        return divergence

    def mixed(self, other: "Normal", share: float) -> "Normal":
        """Distribution of ``share * x + (1 - share) * y``, x drawn from self and y, independently, from other."""
        std = torch.hypot(share * self.log_std.exp(), (1 - share) * other.log_std.exp())
        return Normal(share * self.mean + (1 - share) * other.mean, std.log())

    def carry(self, value: Tensor, other: "Normal") -> Tensor:
        """The value of the same standardised noise under other, m' + s' (v - m) / s; v itself where nothing differs."""
        stretch = torch.expm1(other.log_std - self.log_std)
        return value + (other.mean - self.mean) + stretch * (value - self.mean)


def normal(statistics: Tensor) -> Normal:
    """Means and raw deviations (B, 2 * latent_channels, *S) as a distribution."""
    mean, log_std = statistics.float().chunk(2, dim=1)
    return Normal(mean, 5 * torch.tanh(log_std / 5))  # deviations between e^-5 and e^5, smoothly


class _Draw(torch.autograd.Function):
    """Mean plus noise by deviation; of these its gradient needs none but the mean and the draw, which others keep."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor, temperature: float) -> Tensor:
        std = log_std.clone().exp_()  # dense: of a part of the channels exp is eight times slower
        drawn = torch.add(mean, std.mul_(noise), alpha=temperature, out=std)
        ctx.save_for_backward(mean, drawn)
        return drawn

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, drawn = ctx.saved_tensors
        return grad, (drawn - mean).mul_(grad), None, None


class _Divergence(torch.autograd.Function):
    """KL of two normals, (B,), with its gradient written out: half the passes over the latents that autograd makes."""

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
    """One latent's place in the decoder: its prior, its posterior, and its way into the decoder and the next prior.

    Attributes:
        stochastic: Whether the latent is drawn; where it is not, it is its prior's mean and counts as no latent.
    """

    stochastic: bool = True

    @abstractmethod
    def prior_of(self, state: Tensor, memory: Tensor, parents: Tensor) -> tuple[Normal, Tensor]:
        """Prior of this latent, and the prior's own features.

        Args:
            state: Of the decoder, (B, width, *S).
            memory: Of the prior, which an exogenous latent keeps from the parents, (B, width, *S).
            parents: Embedded, (B, embedding).
        """

    @abstractmethod
    def posterior_of(self, state: Tensor, memory: Tensor, seen: Tensor, parents: Tensor) -> Normal:
        """Posterior of this latent, of the same and what it reads of the encoder, (B, width, *S) unless told."""

    @abstractmethod
    def absorb(self, state: Tensor, latent: Tensor, features: Tensor, parents: Tensor) -> Tensor:
        """Next decoder state, (B, width, *S) or as wide as the next block's."""

    @abstractmethod
    def recall(self, memory: Tensor, latent: Tensor, features: Tensor) -> Tensor:
        """Next prior memory, which never sees the parents of an exogenous latent."""

    def step(
        self,
        choose: Callable[[Normal, Normal | None], Tensor],
        state: Tensor,
        memory: Tensor,
        parents: Tensor,
        seen: Tensor | None,
        last: bool,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Normal, Normal | None]:
        """Next state and memory, the latent and the prior's features, its prior and its posterior.

        Args:
            choose: The latent, of its prior and its posterior; called again where activations are recomputed.
            state: Of the decoder, (B, width, *S).
            memory: Of the prior, (B, width, *S).
            parents: Embedded, (B, embedding).
            seen: What the posterior reads of the encoder; there is no posterior without.
            last: Whether no prior comes after it: the memory is left as it is.
        """
        prior, features = self.prior_of(state, memory, parents)
        posterior, latent = None, prior.mean
        if self.stochastic:
            posterior = None if seen is None else self.posterior_of(state, memory, seen, parents)
            latent = choose(prior, posterior)
        memory = memory if last else self.recall(memory, latent, features)
        return self.absorb(state, latent, features, parents), memory, (latent, features), prior, posterior


class Belief(NamedTuple):
    """About one latent, given those above it and the factual parents, (B, latent_channels, *S) each.

    Attributes:
        prior: p(z_i | z_<i), and of the parents if they condition it.
        posterior: q(z_i | z_<i, image, parents).
    """

    prior: Normal
    posterior: Normal

    def moved(self, latent: Tensor, prior: Normal, mixing: float) -> Tensor:
        """The latent under its counterfactual prior.

        The mediator's distribution is r = a q + (1 - a) p, the posterior mixed with the prior of its own world (de
        Sousa Ribeiro et al., 2023, arXiv:2306.15764): mean a mu_q + (1 - a) mu_p, variance (a sigma_q)^2 +
        ((1 - a) sigma_p)^2. Its noise e = (z - mu_r) / sigma_r is abducted under p(z | pa) and spent under p(z | pa*):
        z* = mu_r* + sigma_r* e. One mechanism in both worlds: z* = z where the priors agree.

        Args:
            latent: Abducted z_i, (B, latent_channels, *S).
            prior: p(z_i | z*_<i, pa*).
            mixing: a in [0, 1]; 0 carries the prior's own noise, 1 keeps the latent.
        """
        factual, counterfactual = (self.posterior.mixed(world, mixing) for world in (self.prior, prior))
        return factual.carry(latent, counterfactual)


class Elbo(NamedTuple):
    """Terms of the negative evidence lower bound, in nats per image dimension, (B,) each.

    Attributes:
        nll: Negative log-likelihood of the image.
        kl: KL of every latent, top block first, (B, L).
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
        """``kl_8x8`` -> mean KL of the latents there, scalars in nats per image dimension."""
        found: dict[str, Tensor] = {}
        for place, kl in zip(self.places, self.kl.mean(0), strict=True):
            found[f"kl_{place}"] = found.get(f"kl_{place}", 0) + kl
        return found


class Abduction(NamedTuple):
    """What the posterior pass finds out about an image.

    Attributes:
        latents: z, top block first, (B, latent_channels, *S) each.
        pixels: Distribution of the factual image under these latents, (B, C, *S).
        nll: Of the image under it, (B,) in nats per image dimension.
        beliefs: Prior and posterior that each latent was drawn between, top block first.
        pa: Encoded factual parents, (B, P).
        added: What every ``LatentBlock`` adds to the decoder's state, top block first: its latent, and its prior's
            features, which an exogenous prior finds again under other parents.
    """

    latents: list[Tensor]
    pixels: Pixels
    nll: Tensor
    beliefs: list[Belief]
    pa: Tensor
    added: list[tuple[Tensor, Tensor]]

    @property
    def elbo(self) -> Elbo:
        """Terms of the bound; computed whenever they are asked for, which who wants an answer does not."""
        kl = torch.stack([belief.posterior.kl(belief.prior) for belief in self.beliefs], dim=1)
        places = ["x".join(map(str, latent.shape[2:])) for latent in self.latents]
        return Elbo(self.nll, kl / self.pixels.loc[0].numel(), places)
