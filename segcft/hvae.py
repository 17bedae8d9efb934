"""The image mechanism: a top-down hierarchical VAE whose latents are the image's exogenous noise.

After Child (2021, arXiv:2011.10650) and de Sousa Ribeiro et al. (2023, arXiv:2306.15764): a bottom-up encoder, a
top-down chain of stochastic blocks, parents injected everywhere but in the prior. Resolutions without latents are
deterministic: there, shape has to follow the parents instead of hiding in fine latents.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segcft.blocks import Bottleneck, Residual, conv, grow, scaled, shrink
from segcft.likelihoods import DiscretisedGaussian, Likelihood, Pixels
from segcft.recipes import Recorded


@dataclass(frozen=True)
class Stage:
    """One resolution of the hierarchy, used by the encoder and the decoder.

    Attributes:
        resolution: Pixels along every axis, or one number per axis.
        width: Channels.
        blocks: Blocks of the encoder, and of the decoder, at this resolution.
        latent_channels: Channels of each block's latent; 0 makes the resolution deterministic.
    """

    resolution: int | tuple[int, ...]
    width: int
    blocks: int = 1
    latent_channels: int = 0

    def size(self, spatial_dims: int) -> tuple[int, ...]:
        """Resolution along every axis."""
        if isinstance(self.resolution, int):
            return (self.resolution,) * spatial_dims
        if len(self.resolution) != spatial_dims:
            raise ValueError(f"stage resolution {self.resolution} does not have {spatial_dims} axes")
        return tuple(self.resolution)


class Normal(NamedTuple):
    """Diagonal normal in fp32."""

    mean: Tensor
    log_std: Tensor

    def sample(self, temperature: float) -> Tensor:
        """Mean plus noise; noise is drawn contiguous, the fast path under channels_last."""
        if temperature == 0:
            return self.mean
        noise = torch.randn(self.mean.shape, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + temperature * self.log_std.exp() * noise

    def kl(self, other: "Normal") -> Tensor:
        """KL(self || other) summed over all but the batch, (B,) in nats."""
        ratio = 2 * (self.log_std - other.log_std)
        distance = ((self.mean - other.mean) * torch.exp(-other.log_std)).square()
        return 0.5 * (ratio.exp() + distance - 1 - ratio).flatten(1).sum(1)


def _normal(statistics: Tensor) -> Normal:
    mean, log_std = statistics.float().chunk(2, dim=1)
    return Normal(mean, 5 * torch.tanh(log_std / 5))  # deviations between e^-5 and e^5, smoothly


class Elbo(NamedTuple):
    """Terms of the negative evidence lower bound, in nats per image dimension, (B,) each.

    Attributes:
        nll: Negative log-likelihood of the image.
        kl: KL of every latent, top block first, (B, L).
    """

    nll: Tensor
    kl: Tensor

    def nelbo(self, beta: float = 1.0) -> Tensor:
        """``nll + beta * kl``, (B,)."""
        return self.nll + beta * self.kl.sum(1)


class Abduction(NamedTuple):
    """What the posterior pass finds out about an image.

    Attributes:
        latents: z, top block first, (B, latent_channels, *S) each.
        pixels: Distribution of the factual image under these latents, (B, C, *S).
        elbo: Terms of the bound.
    """

    latents: list[Tensor]
    pixels: Pixels
    elbo: Elbo


class TopDownBlock(nn.Module):
    """One stochastic block: prior, posterior, and the way of a latent into the decoder and the next prior.

    Args:
        spatial_dims: 2 or 3.
        stage: Widths and latent channels.
        embedding: Length of the embedded parents.
        conditional_prior: Let the prior see the decoder's state, and so the parents.
        gain: Factor on the initial weights that write into the decoder's state.
    """

    def __init__(self, spatial_dims: int, stage: Stage, embedding: int, conditional_prior: bool, gain: float) -> None:
        super().__init__()
        width, latent = stage.width, stage.latent_channels
        kernel = 1 if max(stage.size(spatial_dims)) <= 2 else 3
        self.conditional_prior = conditional_prior
        self.prior = Bottleneck(
            spatial_dims, width, 2 * latent + width, embedding if conditional_prior else 0, kernel, gain=0.0
        )
        self.posterior = Bottleneck(spatial_dims, 2 * width, 2 * latent, embedding, kernel)
        self.write = scaled(conv(spatial_dims, latent, width, 1), gain)
        self.remember = scaled(conv(spatial_dims, latent, width, 1), gain)
        self.residual = Residual(spatial_dims, width, embedding, kernel, gain)
        self.split = (2 * latent, width)

    def prior_of(self, state: Tensor, memory: Tensor, parents: Tensor) -> tuple[Normal, Tensor]:
        """Prior of this latent, and the prior's own features."""
        out = self.prior(state, parents) if self.conditional_prior else self.prior(memory)
        statistics, features = out.split(self.split, dim=1)
        return _normal(statistics), features

    def posterior_of(self, state: Tensor, encoded: Tensor, parents: Tensor) -> Normal:
        """Posterior of this latent given the encoder's activation."""
        return _normal(self.posterior(torch.cat([state, encoded], dim=1), parents))

    def absorb(
        self, state: Tensor, memory: Tensor, latent: Tensor, features: Tensor, parents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Next decoder state and next prior memory; the memory never sees the parents."""
        latent = latent.to(state.dtype)
        state = self.residual(state + features + self.write(latent), parents)
        return state, memory + features + self.remember(latent)


class HVAE(nn.Module, Recorded):
    """Hierarchical VAE with parents, in 2-D or 3-D.

    Args:
        spatial_dims: 2 or 3.
        channels: Image channels C.
        parents_dim: Length P of the parents' vector.
        stages: Resolutions, finest first; each an integer fraction of the one before.
        likelihood: Pixel-wise likelihood.
        conditional_prior: p(z | parents) instead of an exogenous p(z). Exogenous latents are the Markovian default.
        embedding: Length of the embedded parents.

    Raises:
        ValueError: If a resolution does not divide the one before it, or no stage has latents.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        parents_dim: int,
        stages: list[Stage],
        likelihood: Likelihood | None = None,
        conditional_prior: bool = False,
        embedding: int = 32,
    ) -> None:
        super().__init__()
        _check(stages, spatial_dims)
        self.spatial_dims, self.stages = spatial_dims, stages
        self.likelihood = likelihood or DiscretisedGaussian()
        self.embed = nn.Sequential(nn.Linear(parents_dim, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.stem = conv(spatial_dims, channels, stages[0].width)
        self.encoder = nn.ModuleList(_encoder_stages(spatial_dims, stages))
        self.narrow = nn.ModuleList(
            conv(spatial_dims, fine.width, coarse.width, 1) for fine, coarse in pairwise(stages)
        )
        self.decoder = nn.ModuleList(_decoder_stages(spatial_dims, stages, embedding, conditional_prior))
        self.widen = nn.ModuleList(conv(spatial_dims, coarse.width, fine.width, 1) for fine, coarse in pairwise(stages))
        self.finest = min(depth for depth, stage in enumerate(stages) if stage.latent_channels and stage.blocks)
        top = stages[-1]
        self.start = nn.Parameter(torch.zeros(1, top.width, *top.size(spatial_dims)))
        self.head = _head(spatial_dims, stages[0].width, channels)

    def abduct(self, image: Tensor, pa: Tensor, temperature: float = 1.0, samples: int = 1) -> Abduction:
        """Latents z ~ q(z | image, parents): one encoder and one decoder pass.

        Args:
            image: (B, C, *S) in [-1, 1], S the first stage's resolution.
            pa: Encoded parents, (B, P).
            temperature: Factor on the posterior's deviation; 0 takes its mean.
            samples: Particles drawn of every image, which is encoded once; those of an image follow each other.

        Returns:
            An abduction of B * samples rows.
        """
        encoded, kls = self._encode(image), []
        if samples > 1:
            encoded = [features.repeat_interleave(samples, 0) for features in encoded]
            image, pa = image.repeat_interleave(samples, 0), pa.repeat_interleave(samples, 0)

        def infer(block: TopDownBlock, depth: int, state: Tensor, prior: Normal, parents: Tensor) -> Tensor:
            posterior = block.posterior_of(state, encoded[depth], parents)
            kls.append(posterior.kl(prior))
            return posterior.sample(temperature)

        latents, pixels = self._top_down(pa, infer)
        nll = self.likelihood.nll(image, pixels).flatten(1).mean(1)
        return Abduction(latents, pixels, Elbo(nll, torch.stack(kls, dim=1) / image[0].numel()))

    def predict(self, latents: Sequence[Tensor], pa: Tensor) -> Pixels:
        """Push abducted latents through the decoder under other parents (B, P)."""
        given = iter(latents)
        return self._top_down(pa, lambda *_: next(given))[1]

    def sample(self, pa: Tensor, temperature: float = 1.0) -> Pixels:
        """Draw latents from the prior and decode them under ``pa`` (B, P)."""
        return self._top_down(pa, lambda block, depth, state, prior, parents: prior.sample(temperature))[1]

    def _encode(self, image: Tensor) -> list[Tensor]:
        """Activations of every stage, finest first."""
        if tuple(image.shape[2:]) != self.stages[0].size(self.spatial_dims):
            size = self.stages[0].size(self.spatial_dims)
            raise ValueError(f"this HVAE reads images of {size}, got {tuple(image.shape[2:])}")
        features, encoded = self.stem(image), []
        for depth, blocks in enumerate(self.encoder):
            if depth:
                size = self.stages[depth].size(self.spatial_dims)
                features = self.narrow[depth - 1](shrink(features, size))
            features = blocks(features)
            encoded.append(features)
        return encoded

    def _top_down(self, pa: Tensor, choose: Callable[..., Tensor]) -> tuple[list[Tensor], Pixels]:
        """Walk from the coarsest stage to the finest; ``choose`` says where each latent comes from."""
        parents = self.embed(pa)
        state = memory = self.start.expand(len(pa), *self.start.shape[1:])
        latents: list[Tensor] = []
        for depth in reversed(range(len(self.stages))):
            if depth + 1 < len(self.stages):
                state, memory = (
                    self._widen(state, depth),
                    self._widen(memory, depth) if depth >= self.finest else memory,
                )
            for block in self._blocks(depth):
                if isinstance(block, TopDownBlock):
                    prior, features = block.prior_of(state, memory, parents)
                    latents.append(choose(block, depth, state, prior, parents))
                    state, memory = block.absorb(state, memory, latents[-1], features, parents)
                else:
                    state = block(state, parents)
        loc, raw_scale = self.head(state).chunk(2, dim=1)
        return latents, self.likelihood.pixels(loc, raw_scale)

    def _blocks(self, depth: int) -> nn.ModuleList:
        blocks = self.decoder[depth]
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def _widen(self, flow: Tensor, depth: int) -> Tensor:
        """On to the next finer stage; a 1x1 convolution commutes with interpolation and is cheaper before it."""
        return grow(self.widen[depth](flow), self.stages[depth].size(self.spatial_dims))


def _check(stages: list[Stage], spatial_dims: int) -> None:
    if not any(stage.latent_channels and stage.blocks for stage in stages):
        raise ValueError("no stage has latents: give at least one stage latent_channels > 0 and blocks > 0")
    for fine, coarse in pairwise(stages):
        sizes = fine.size(spatial_dims), coarse.size(spatial_dims)
        if any(big % small for big, small in zip(*sizes, strict=True)):
            raise ValueError(f"stage resolution {sizes[1]} does not divide the finer {sizes[0]}")


def _encoder_stages(spatial_dims: int, stages: list[Stage]) -> list[nn.Module]:
    gain = math.sqrt(1 / max(1, sum(stage.blocks for stage in stages)))
    return [
        nn.Sequential(*(Residual(spatial_dims, stage.width, gain=gain) for _ in range(stage.blocks)))
        for stage in stages
    ]


def _decoder_stages(
    spatial_dims: int, stages: list[Stage], embedding: int, conditional_prior: bool
) -> list[nn.ModuleList]:
    gain = math.sqrt(1 / max(1, sum(stage.blocks for stage in stages)))

    def block(stage: Stage) -> nn.Module:
        if stage.latent_channels:
            return TopDownBlock(spatial_dims, stage, embedding, conditional_prior, gain)
        return Residual(spatial_dims, stage.width, embedding, gain=gain)

    return [nn.ModuleList(block(stage) for _ in range(stage.blocks)) for stage in stages]


def _head(spatial_dims: int, width: int, channels: int) -> nn.Sequential:
    """Two convolutions at full resolution; location and raw log-scale start at zero."""
    last = scaled(conv(spatial_dims, width, 2 * channels), 0.0)
    return nn.Sequential(nn.SiLU(), conv(spatial_dims, width, width), nn.SiLU(), last)
