"""The HVAE of de Sousa Ribeiro et al. (2023, arXiv:2306.15764): same function as its public code, faster to compute.

It differs from ``hvae.HVAE`` in its blocks: four convolutions with GELU, parents that are not embedded, a prior that
sees only its own earlier features, learnt maps added after upsampling, and a learnt log-scale per pixel.

The public code (biomedia-mira/causal-gen) tiles the parents over the image and concatenates them. A 1x1 convolution of
a constant map is a constant, so here the same sum is computed once per image as a shift of every channel.
``benchmarks/parity.py`` compares both implementations.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcft.hvae.blocks import Block, conv, scaled
from segcft.hvae.convolutions import GELU, added, chain, gelu, weights_of
from segcft.hvae.hvae import HVAE, Recompute
from segcft.hvae.latents import LatentBlock, Normal
from segcft.hvae.likelihoods import CappedDiscretisedGaussian, Likelihood
from segcft.hvae.stages import Stage
from segcft.spatial.resize import shrink, spread

SQUEEZE = 4  # ratio of a block's width to its bottleneck's
MAPS_UP_TO = 64  # pixels along the longest axis: finer stages have no learnt map
Preset = Literal["morphomnist32", "mimic192"]
PRESETS: dict[str, list[Stage]] = {
    "morphomnist32": [
        Stage(16, 4, 16, resolution=32),
        Stage(32, 4, 16),
        Stage(64, 4, 16),
        Stage(128, 4, 16),
        Stage(256, 4, 16, resolution=1),
    ],
    "mimic192": [
        Stage(32, 2, resolution=192),
        Stage(64, 4, 16),
        Stage(96, 8, 16),
        Stage(128, 12, 16),
        Stage(160, 8, 16),
        Stage(192, 4, 16),
        Stage(512, 2, 16, resolution=1),
    ],
}


class Quadruple(Block):
    """Bottleneck block: GELU, 1x1, GELU, kxk, GELU, kxk, GELU, 1x1.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Input channels.
        bottleneck: Channels of the inner convolutions.
        out_channels: Output channels.
        kernel: k, 3 or 1.
        beside: Number of further input channels that are given as ``shift``; they count in the weight initialisation.
        gain: Factor on the last convolution's initial weight.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        bottleneck: int,
        out_channels: int,
        kernel: int = 3,
        beside: int = 0,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.squeeze = _even(conv(spatial_dims, in_channels, bottleneck, 1), in_channels + beside)
        self.first, self.second = (_even(conv(spatial_dims, bottleneck, bottleneck, kernel)) for _ in range(2))
        self.expand = scaled(_even(conv(spatial_dims, bottleneck, out_channels, 1)), gain)

    def forward(self, features: Tensor, shift: Tensor | None = None) -> Tensor:
        """(B, in_channels, *S), and a shift added after the first convolution -> (B, out_channels, *S)."""
        return self.apart((), features, shift)[0]

    def apart(self, sizes: Sequence[int], features: Tensor, shift: Tensor | None = None) -> list[Tensor]:
        """The output of ``forward``, split into parts of ``sizes`` channels."""
        weights = weights_of(self.squeeze, self.first, self.second, self.expand)
        return chain(features, weights, GELU, shift, sizes, self.lean)


class Step(Quadruple):
    """Residual block ``x + quadruple(x)``; x passes a 1x1 convolution if the width changes.

    Args:
        spatial_dims: 2 or 3.
        width: Input channels; the bottleneck has a quarter of them.
        out_width: Output channels.
        kernel: 3 or 1.
        gain: Factor on the last convolution's initial weight.
    """

    def __init__(self, spatial_dims: int, width: int, out_width: int, kernel: int = 3, gain: float = 1.0) -> None:
        super().__init__(spatial_dims, width, width // SQUEEZE, out_width, kernel, gain=gain)
        self.skip = nn.Identity() if width == out_width else _even(conv(spatial_dims, width, out_width, 1))

    def forward(self, features: Tensor, shift: Tensor | None = None) -> Tensor:
        """(B, width, *S) -> (B, out_width, *S)."""
        return added(super().forward(features, shift), self.skip(features))

    def narrowed(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """``forward`` followed by average pooling, (B, out_width, *size).

        Pooling commutes with 1x1 convolutions, so it is done first, where it leaves fewer pixels to convolve.
        """
        (hidden,) = chain(features, weights_of(self.squeeze, self.first, self.second), GELU, lean=self.lean)
        return added(self.expand(shrink(gelu(hidden), size)), self.skip(shrink(features, size)))


class ParityBlock(LatentBlock):
    """One stochastic block of the decoder; the last of a stage has the next stage's width.

    Args:
        spatial_dims: 2 or 3.
        stage: Width and resolution.
        latent: Channels of the latent.
        parents_dim: Length P of the parents' vector.
        out_width: Channels of the next block.
        conditional_prior: Condition the prior on the parents.
        gain: Factor on the initial weights of the layers that add to the decoder's state.
    """

    def __init__(
        self,
        spatial_dims: int,
        stage: Stage,
        latent: int,
        parents_dim: int,
        out_width: int,
        conditional_prior: bool,
        gain: float,
    ) -> None:
        super().__init__()
        width, narrow = stage.width, stage.width // SQUEEZE
        kernel = 1 if max(stage.size(spatial_dims)) <= 2 else 3
        self.stochastic, self.split = stage.latent_channels > 0, (latent, latent, width)
        seen = parents_dim if conditional_prior else 0
        self.prior = Quadruple(spatial_dims, width, narrow, 2 * latent + width, kernel, seen, gain=0.0)
        self.prior_shift = _shift(parents_dim, narrow, width + seen) if conditional_prior else None
        if self.stochastic:
            inputs = 2 * width + parents_dim
            self.posterior = Quadruple(spatial_dims, width, narrow, 2 * latent, kernel, inputs - width)
            self.posterior_shift = _shift(parents_dim, narrow, inputs)
            self.look = _even(conv(spatial_dims, width, narrow, 1), inputs, bias=False)
        self.write = scaled(_even(conv(spatial_dims, latent, width, 1), latent + parents_dim), gain)
        self.write_shift = scaled(_shift(parents_dim, width, latent + parents_dim), gain)
        self.remember = _even(conv(spatial_dims, latent + width, out_width, 1))
        self.residual = Step(spatial_dims, width, out_width, kernel, gain)

    def prior_of(self, state: Tensor, memory: Tensor, parents: Tensor) -> tuple[Normal, Tensor]:
        """See ``LatentBlock.prior_of``; GELU is also applied to the parents."""
        shift = spread(self.prior_shift(F.gelu(parents)), memory) if self.prior_shift is not None else None
        mean, log_std, features = self.prior.apart(self.split, memory, shift)
        return Normal(mean.float(), log_std.float()), features

    def posterior_of(self, state: Tensor, memory: Tensor, seen: Tensor, parents: Tensor) -> Normal:
        """See ``LatentBlock.posterior_of``; ``seen`` is the first convolution of the encoder's activation."""
        shift = spread(self.posterior_shift(F.gelu(parents)), state) + seen
        mean, log_std = self.posterior.apart(self.split[:2], state, shift)
        return Normal(mean.float(), log_std.float())

    def absorb(self, state: Tensor, latent: Tensor, features: Tensor, parents: Tensor) -> Tensor:
        """See ``LatentBlock.absorb``."""
        written = added(self.write(latent.to(state.dtype)), spread(self.write_shift(parents), state))
        out: Tensor = self.residual(added(added(written, features), state))
        return out

    def recall(self, memory: Tensor, latent: Tensor, features: Tensor) -> Tensor:
        """See ``LatentBlock.recall``."""
        weight, bias = weights_of(self.remember)
        of_latent, of_features = weight.split([latent.shape[1], features.shape[1]], dim=1)
        (kept,), (new,) = chain(features, [of_features, bias]), chain(latent.to(features.dtype), [of_latent, None])
        return added(kept, new)


class ParityHVAE(HVAE):
    """The public HVAE in 2-D or 3-D; every task accepts it in place of ``HVAE``.

    A stage of n blocks has n in the decoder and n in the encoder, the last of which leads to the next coarser stage.
    With ``latent_channels`` 0 its blocks use the prior's mean instead of a latent, as wide as the widest latent.

    Args:
        spatial_dims: 2 or 3.
        channels: Image channels C.
        parents_dim: Length P of the parents' vector.
        stages: Resolutions, finest first, or the name of a preset. ``morphomnist32``: 2,041,122 weights with P = 12,
            2,047,074 with the conditional prior; ``mimic192``: 7,976,658 with P = 6, deterministic above 96 pixels.
        likelihood: Pixel-wise likelihood; ``CappedDiscretisedGaussian`` by default, for 8-bit levels.
        conditional_prior: See ``HVAE``.
        mixing: See ``HVAE``.
        recompute: See ``HVAE``.
        frame: See ``HVAE``.

    Raises:
        ValueError: As ``HVAE``; if the preset is unknown, a stage has no blocks, or less than four channels.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        parents_dim: int,
        stages: Preset | list[Stage],
        likelihood: Likelihood | None = None,
        conditional_prior: bool = False,
        mixing: float = 0.5,
        recompute: Recompute = 0,
        frame: Sequence[int] | None = None,
    ) -> None:
        chosen = _preset(stages) if isinstance(stages, str) else stages
        for stage in chosen:
            if stage.blocks < 1 or stage.width < SQUEEZE:
                raise ValueError(f"every stage needs a block and {SQUEEZE} channels, not {stage}")
        super().__init__(
            spatial_dims,
            channels,
            parents_dim,
            chosen,
            likelihood or CappedDiscretisedGaussian(),
            conditional_prior,
            mixing=mixing,
            recompute=recompute,
            frame=frame,
        )

    @property
    def widths(self) -> list[int]:
        """Channels of the decoder's state after every stage, finest first: each has the next one's."""
        return [stage.width for stage in [self.stages[0], *self.stages[:-1]]]

    def _build(self, channels: int, parents_dim: int, embedding: int) -> None:
        dims, stages = self.spatial_dims, self.stages
        gain = self.gain
        self.finest = 0  # priors keep their features at all resolutions
        self.embed = nn.Identity()
        self.stem = _even(conv(dims, channels, stages[0].width, 7))
        self.encoder = nn.ModuleList(
            nn.Sequential(*(Step(dims, stage.width, stage.width, gain=gain) for _ in range(stage.blocks - last)))
            for stage, last in zip(stages, [1] * (len(stages) - 1) + [0], strict=True)
        )
        self.narrow = nn.ModuleList(
            Step(dims, fine.width, coarse.width, gain=gain) for fine, coarse in pairwise(stages)
        )
        self.decoder = nn.ModuleList(self._decoder_stage(depth, parents_dim, gain) for depth in range(len(stages)))
        self.maps = nn.ParameterList(
            torch.zeros(1, stage.width, *stage.size(dims))
            for stage in stages[:-1]
            if max(stage.size(dims)) <= MAPS_UP_TO
        )
        self.head = _even(conv(dims, stages[0].width, 2 * channels, 1))

    def _decoder_stage(self, depth: int, parents_dim: int, gain: float) -> nn.ModuleList:
        stage, latent = self.stages[depth], max(stage.latent_channels for stage in self.stages)
        after = [stage.width] * (stage.blocks - 1) + [self.widths[depth]]
        latent = stage.latent_channels or latent
        options = (stage, latent, parents_dim)
        return nn.ModuleList(
            ParityBlock(self.spatial_dims, *options, width, self.conditional_prior, gain) for width in after
        )

    def _look(self, features: Tensor, depth: int) -> list[Tensor]:
        """One GELU and one 1x1 convolution for all blocks of the stage."""
        blocks = [block for block in self._blocks(depth) if isinstance(block, ParityBlock)]
        if not all(block.stochastic for block in blocks):
            return super()._look(features, depth)  # no posterior reads them
        weights = torch.cat([block.look.get_parameter("weight") for block in blocks])
        (found,) = chain(features, [weights, None], GELU, lean=blocks[0].posterior.lean)
        return list(found.chunk(len(blocks), dim=1))

    def _narrow(self, features: Tensor, depth: int) -> Tensor:
        step = self.narrow[depth - 1]
        assert isinstance(step, Step)
        return step.narrowed(features, self.stages[depth].size(self.spatial_dims))

    def _widen(self, flow: Tensor, depth: int) -> Tensor:
        """Upsample by repeating pixels, and add the learnt map of the stage."""
        flow = F.interpolate(flow, self.stages[depth].size(self.spatial_dims), mode="nearest")
        coarser = len(self.stages) - 1 - depth  # only coarse stages have maps; the top one's is ``start``
        return flow + self.maps[-coarser] if coarser <= len(self.maps) else flow


def _preset(name: str) -> list[Stage]:
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _even(layer: nn.Module, inputs: int = 0, bias: bool = True) -> nn.Module:
    """Initialise a layer uniformly within 1 / sqrt(inputs), by default its own number; ``bias`` False leaves it out."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    bound = 1 / math.sqrt(inputs or weight[0].numel())
    nn.init.uniform_(weight, -bound, bound)
    if not bias:
        layer.register_parameter("bias", None)
    return layer


def _shift(parents_dim: int, width: int, inputs: int) -> nn.Module:
    """The layer that maps parents to a channel shift; ``inputs`` counts all input channels, the parents included."""
    return _even(nn.Linear(parents_dim, width, bias=False), inputs)
