"""The image mechanism: a hierarchical VAE (HVAE) whose latents are exogenous noise or mediators.

After Child (2021, arXiv:2011.10650) and de Sousa Ribeiro et al. (2023, arXiv:2306.15764): a bottom-up encoder, a
top-down decoder of stochastic blocks, conditioned on the parents everywhere but in the prior. Resolutions without
latents are deterministic; this keeps shape information out of fine latents, so that it has to follow the parents.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segcft.core.recipes import Recorded
from segcft.hvae.blocks import Block, Bottleneck, Residual, conv, scaled
from segcft.hvae.latents import Abduction, Belief, LatentBlock, Normal, normal
from segcft.hvae.likelihoods import DiscretisedGaussian, Likelihood, Pixels
from segcft.hvae.stages import Stage, resolved
from segcft.spatial.resize import grow, shrink, standardise

Recompute = int | Literal["activations"]
Mediation = Literal["total", "direct", "indirect"]
Choice = Callable[[int, Normal, Normal | None], Tensor]  # (index of the latent, prior, posterior) -> latent


class Descent(NamedTuple):
    """Results of one decoder pass; see ``Abduction``."""

    latents: list[Tensor]
    pixels: Pixels
    beliefs: list[Belief]
    added: list[tuple[Tensor, Tensor]]


class TopDownBlock(LatentBlock):
    """One stochastic block of the decoder, made of SiLU bottlenecks.

    Args:
        spatial_dims: 2 or 3.
        stage: Widths and latent channels.
        embedding: Length of the embedded parents.
        conditional_prior: Condition the prior on the decoder's state, and so on the parents.
        blind: Condition the posterior on the prior's features only, not on the decoder's state.
        gain: Factor on the initial weights of the layers that add to the decoder's state.
    """

    def __init__(
        self, spatial_dims: int, stage: Stage, embedding: int, conditional_prior: bool, blind: bool, gain: float
    ) -> None:
        super().__init__()
        width, latent = stage.width, stage.latent_channels
        kernel = 1 if max(stage.size(spatial_dims)) <= 2 else 3
        self.conditional_prior, self.blind = conditional_prior, blind
        self.prior = Bottleneck(
            spatial_dims, width, 2 * latent + width, embedding if conditional_prior else 0, kernel, gain=0.0
        )
        self.posterior = Bottleneck(spatial_dims, 2 * width, 2 * latent, 0 if blind else embedding, kernel)
        self.write = scaled(conv(spatial_dims, latent, width, 1), gain)
        self.remember = scaled(conv(spatial_dims, latent, width, 1), gain)
        self.residual = Residual(spatial_dims, width, embedding, kernel, gain)
        self.split = (2 * latent, width)

    def prior_of(self, state: Tensor, memory: Tensor, parents: Tensor) -> tuple[Normal, Tensor]:
        """See ``LatentBlock.prior_of``."""
        out = self.prior(state, parents) if self.conditional_prior else self.prior(memory)
        statistics, features = out.split(self.split, dim=1)
        return normal(statistics), features

    def posterior_of(self, state: Tensor, memory: Tensor, seen: Tensor, parents: Tensor) -> Normal:
        """See ``LatentBlock.posterior_of``."""
        return normal(self.posterior(torch.cat([memory if self.blind else state, seen], dim=1), parents))

    def absorb(self, state: Tensor, latent: Tensor, features: Tensor, parents: Tensor) -> Tensor:
        """See ``LatentBlock.absorb``."""
        out: Tensor = self.residual(state + features + self.write(latent.to(state.dtype)), parents)
        return out

    def recall(self, memory: Tensor, latent: Tensor, features: Tensor) -> Tensor:
        """See ``LatentBlock.recall``."""
        out: Tensor = memory + features + self.remember(latent.to(features.dtype))
        return out


class HVAE(nn.Module, Recorded):
    """Hierarchical VAE conditioned on the image's parents, in 2-D or 3-D.

    Args:
        spatial_dims: 2 or 3.
        channels: Image channels C.
        parents_dim: Length P of the parents' vector.
        stages: Resolutions, finest first, see ``Stage``.
        likelihood: Pixel-wise likelihood.
        conditional_prior: Use a prior p(z | parents): latents are mediators, which change with the parents. By default
            the prior is p(z) and latents are exogenous noise (a Markovian model).
        blind: Use a posterior q(z | image) without parents that reads the image standardised to mean 0 and standard
            deviation 1. Then the latents cannot encode brightness and contrast. For data whose parents determine both;
            otherwise that information would be lost.
        embedding: Length of the embedded parents.
        mixing: Weight a in [0, 1] of the posterior in a mediator's distribution; in a counterfactual, 1 keeps the
            latent and 0 lets it follow the prior. See ``Belief.moved``.
        recompute: Activation checkpointing: less memory, more time, the same gradient. ``activations`` recomputes the
            outputs of activation functions; a number recomputes all blocks at that many pixels or more along the
            longest axis; 0 recomputes nothing.
        frame: Shape S of the images; needed if the first stage does not name its resolution.

    Raises:
        ValueError: If the stages do not fit the frame, see ``stages.resolved``, no stage has latents, ``mixing`` is not
            in [0, 1], ``recompute`` is invalid, or ``blind`` is combined with ``conditional_prior``.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        parents_dim: int,
        stages: list[Stage],
        likelihood: Likelihood | None = None,
        conditional_prior: bool = False,
        blind: bool = False,
        embedding: int = 32,
        mixing: float = 0.5,
        recompute: Recompute = 0,
        frame: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        stages = resolved(stages, spatial_dims, frame)
        if not any(stage.latent_channels and stage.blocks for stage in stages):
            raise ValueError("no stage has latents: give at least one stage latent_channels > 0 and blocks > 0")
        if not 0 <= mixing <= 1:
            raise ValueError(f"mixing must lie between 0 and 1, got {mixing}")
        if isinstance(recompute, str) and recompute != "activations":
            raise ValueError(f"recompute must be a number of pixels or 'activations', got {recompute!r}")
        if blind and conditional_prior:
            raise ValueError("blind needs exogenous latents: it cannot be combined with conditional_prior")
        self.conditional_prior, self.blind = conditional_prior, blind
        self.mixing, self.recompute = mixing, recompute
        self.spatial_dims, self.stages = spatial_dims, stages
        self.likelihood = likelihood or DiscretisedGaussian()
        self.finest = min(depth for depth, stage in enumerate(stages) if stage.latent_channels and stage.blocks)
        top = stages[-1]
        self.start = nn.Parameter(torch.zeros(1, top.width, *top.size(spatial_dims)))
        self._build(channels, parents_dim, embedding)
        for part in self.modules():
            if isinstance(part, Block):
                part.lean = recompute == "activations"

    @property
    def widths(self) -> list[int]:
        """Channels of the decoder's state after every stage, finest first."""
        return [stage.width for stage in self.stages]

    @property
    def gain(self) -> float:
        """Factor on the initial weights of every block's last layer, which bounds the sum over a deep decoder."""
        return math.sqrt(1 / max(1, sum(stage.blocks for stage in self.stages)))

    def _build(self, channels: int, parents_dim: int, embedding: int) -> None:
        """Create the networks; a subclass with other blocks overrides it."""
        dims, stages = self.spatial_dims, self.stages
        self.embed: nn.Module = nn.Sequential(
            nn.Linear(parents_dim, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.stem = conv(dims, channels, stages[0].width)
        self.encoder = nn.ModuleList(self._encoder_stages())
        self.narrow = nn.ModuleList(conv(dims, fine.width, coarse.width, 1) for fine, coarse in pairwise(stages))
        self.decoder = nn.ModuleList(self._decoder_stages(embedding))
        self.widen = nn.ModuleList(conv(dims, coarse.width, fine.width, 1) for fine, coarse in pairwise(stages))
        self.head: nn.Module = _head(dims, stages[0].width, channels)

    def _encoder_stages(self) -> list[nn.Module]:
        return [
            nn.Sequential(*(Residual(self.spatial_dims, stage.width, gain=self.gain) for _ in range(stage.blocks)))
            for stage in self.stages
        ]

    def _decoder_stages(self, embedding: int) -> list[nn.ModuleList]:
        dims, gain = self.spatial_dims, self.gain

        def block(stage: Stage) -> nn.Module:
            if stage.latent_channels:
                return TopDownBlock(dims, stage, embedding, self.conditional_prior, self.blind, gain)
            return Residual(dims, stage.width, embedding, gain=gain)

        return [nn.ModuleList(block(stage) for _ in range(stage.blocks)) for stage in self.stages]

    def abduct(self, image: Tensor, pa: Tensor, temperature: float = 1.0, samples: int = 1) -> Abduction:
        """Abduction: infer latents z ~ q(z | image, parents) in one encoder and one decoder pass.

        Args:
            image: (B, C, *S) in [-1, 1], S the first stage's resolution.
            pa: Encoded parents, (B, P).
            temperature: Factor on the posterior's standard deviation; 0 takes its mean.
            samples: Posterior samples per image, consecutive in the batch; each image is encoded once.

        Returns:
            An abduction with B * samples rows.
        """
        encoded = self._encode(image)
        if samples > 1:
            encoded = [features.repeat_interleave(samples, 0) for features in encoded]
            image, pa = image.repeat_interleave(samples, 0), pa.repeat_interleave(samples, 0)

        def infer(place: int, prior: Normal, posterior: Normal | None) -> Tensor:
            assert posterior is not None
            return posterior.sample(temperature)

        latents, pixels, beliefs, added = self._top_down(pa, infer, encoded)
        nll = self.likelihood.nll(image, pixels).flatten(1).mean(1)
        return Abduction(latents, pixels, nll, beliefs, pa, added)

    def predict(self, abduction: Abduction, pa: Tensor, mediation: Mediation = "total") -> Pixels:
        """Prediction: decode the abducted latents under counterfactual parents, g(z*, pa*), in one decoder pass.

        Exogenous latents are kept, z* = z; mediators follow the parents, see ``mediate``.

        Args:
            abduction: Abduction of the factual images; its temperature is already part of the latents.
            pa: Encoded counterfactual parents pa*, (B, P).
            mediation: Which causal paths from the parents to the image are active. ``total``: all, g(z*, pa*).
                ``direct``: not through the latents, g(z, pa*). ``indirect``: only through the latents, g(z*, pa), with
                two decoder passes.

        Raises:
            ValueError: If ``mediation`` is unknown.
        """
        if mediation not in get_args(Mediation):
            raise ValueError(f"mediation must be one of {', '.join(get_args(Mediation))}, got {mediation!r}")
        if not self.conditional_prior:
            return self._again(abduction, abduction.pa if mediation == "indirect" else pa)
        if mediation == "direct":
            return self._decode(abduction.latents, pa)
        latents, pixels = self.mediate(abduction, pa)
        return pixels if mediation == "total" else self._decode(latents, abduction.pa)

    def mediate(self, abduction: Abduction, pa: Tensor) -> tuple[list[Tensor], Pixels]:
        """Counterfactual latents z* under parents pa* (B, P), and the decoded g(z*, pa*).

        From the top down: the prior of block i is conditioned on pa* and, through the decoder's state, on z*_<i.
        """
        if not self.conditional_prior:
            return abduction.latents, self._again(abduction, pa)
        given, beliefs = abduction.latents, abduction.beliefs

        def move(place: int, prior: Normal, posterior: Normal | None) -> Tensor:
            return beliefs[place].moved(given[place], prior, self.mixing)

        latents, pixels, *_ = self._top_down(pa, move)
        return latents, pixels

    def sample(self, pa: Tensor, temperature: float = 1.0) -> Pixels:
        """Sample latents from the prior and decode them under ``pa`` (B, P)."""
        return self._top_down(pa, lambda place, prior, posterior: prior.sample(temperature)).pixels

    def _decode(self, latents: list[Tensor], pa: Tensor) -> Pixels:
        return self._top_down(pa, lambda place, prior, posterior: latents[place]).pixels

    def _again(self, abduction: Abduction, pa: Tensor) -> Pixels:
        """Decode abducted latents under other parents (B, P), skipping the prior, which does not depend on them."""
        parents, added, states = self.embed(pa), iter(abduction.added), []
        state = self.start.expand(len(pa), *self.start.shape[1:])
        for depth in reversed(range(len(self.stages))):
            state = self._widen(state, depth) if depth + 1 < len(self.stages) else state
            for block in self._blocks(depth):
                if isinstance(block, LatentBlock):
                    state = self._run(depth, block.absorb, state, *next(added), parents)
                else:
                    state = self._run(depth, block, state, parents)
            states.append(state)
        return self._pixels(states)

    def _encode(self, image: Tensor) -> list[Tensor]:
        """Encoder activations of every stage, finest first."""
        if tuple(image.shape[2:]) != self.stages[0].size(self.spatial_dims):
            size = self.stages[0].size(self.spatial_dims)
            raise ValueError(f"this HVAE reads images of {size}, got {tuple(image.shape[2:])}")
        features, encoded = self.stem(standardise(image) if self.blind else image), []
        for depth, blocks in enumerate(self.encoder):
            features = self._run(depth - 1, self._narrow, features, depth) if depth else features
            for block in blocks.children():
                features = self._run(depth, block, features)
            encoded.append(features)
        return encoded

    def _top_down(self, pa: Tensor, choose: Choice, encoded: list[Tensor] | None = None) -> Descent:
        """Run the decoder from the coarsest stage to the finest.

        Args:
            pa: Encoded parents, (B, P).
            choose: Returns each latent, given its index, prior and posterior.
            encoded: The encoder's activations, finest first, for the posteriors; without them there are none.
        """
        parents = self.embed(pa)
        state = memory = self.start.expand(len(pa), *self.start.shape[1:])
        latents: list[Tensor] = []
        beliefs: list[Belief] = []
        added: list[tuple[Tensor, Tensor]] = []
        states: list[Tensor] = []
        for depth in reversed(range(len(self.stages))):
            if depth + 1 < len(self.stages):
                state = self._widen(state, depth)
                memory = self._widen(memory, depth) if depth >= self.finest else memory
            seen = self._look(encoded[depth], depth) if encoded is not None else None
            for number, block in enumerate(self._blocks(depth)):
                if isinstance(block, LatentBlock):
                    choice = partial(choose, len(latents))
                    last = depth == self.finest and number + 1 == len(self._blocks(depth))
                    given = (choice, state, memory, parents, seen[number] if seen else None, last)
                    state, memory, (latent, features), prior, posterior = self._run(depth, block.step, *given)
                    added.append((latent, features))
                    latents += [latent] * block.stochastic
                    beliefs += [Belief(prior, posterior)] if posterior is not None else []
                else:
                    state = self._run(depth, block, state, parents)
            states.append(state)
        return Descent(latents, self._pixels(states), beliefs, added)

    def _pixels(self, states: list[Tensor]) -> Pixels:
        loc, raw_scale = self.head(states[-1]).chunk(2, dim=1)
        return self.likelihood.pixels(loc, raw_scale)._replace(states=tuple(states))

    def _run(self, depth: int, part: Callable[..., Any], *given: Any) -> Any:
        """Call a module at a stage, with activation checkpointing if ``recompute`` asks for it."""
        pixels = 0 if isinstance(self.recompute, str) else self.recompute
        if max(self.stages[depth].size(self.spatial_dims)) >= pixels > 0 and torch.is_grad_enabled():
            return checkpoint(part, *given, use_reentrant=False)
        return part(*given)

    def _look(self, features: Tensor, depth: int) -> list[Tensor]:
        """Encoder features for the posterior of every block of a stage."""
        return [features] * len(self._blocks(depth))

    def _blocks(self, depth: int) -> nn.ModuleList:
        blocks = self.decoder[depth]
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def _narrow(self, features: Tensor, depth: int) -> Tensor:
        """Downsample to the next coarser stage."""
        narrowed: Tensor = self.narrow[depth - 1](shrink(features, self.stages[depth].size(self.spatial_dims)))
        return narrowed

    def _widen(self, flow: Tensor, depth: int) -> Tensor:
        """Upsample to the next finer stage; the 1x1 convolution is done before interpolation, where it is cheaper."""
        return grow(self.widen[depth](flow), self.stages[depth].size(self.spatial_dims))


def _head(spatial_dims: int, width: int, channels: int) -> nn.Sequential:
    """Output layers, two convolutions at full resolution; mean and raw log-scale are initially zero."""
    last = scaled(conv(spatial_dims, width, 2 * channels), 0.0)
    return nn.Sequential(nn.SiLU(), conv(spatial_dims, width, width), nn.SiLU(), last)
