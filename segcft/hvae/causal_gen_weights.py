"""Loading weights trained with the public HVAE code (biomedia-mira/causal-gen) into ``ParityHVAE``."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from segcft.hvae.causal_gen import ParityBlock, ParityHVAE, Quadruple, Step

PARTS = {"squeeze": 1, "first": 3, "second": 5, "expand": 7}  # layers of a Quadruple -> their index in the public code


def load_public_weights(model: ParityHVAE, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of a public ``HVAE`` (with "heavy" blocks) into the equivalent model here.

    Args:
        model: A 2-D model with the same stages, prior, channels and parents; the parents must have the same order and
            units.
        state: The public model's ``state_dict()``; in its checkpoints, the entry ``ema_model_state_dict``.

    Raises:
        ValueError: If a weight is missing, unused, or of another shape.
    """
    reader = _Reader(state)
    reader.copy(model.stem, "encoder.stem")
    encoder, decoder = _encoder_steps(model), list(chain(*reversed(_stages(model))))
    for place, step in enumerate(encoder):
        reader.step(step, f"encoder.blocks.{place}")
    for place, block in enumerate(decoder):
        reader.block(block, f"decoder.blocks.{place}")
    for place, learnt in enumerate([model.start, *reversed(list(model.maps))]):
        reader.fill(learnt, reader.take(f"decoder.bias.{place}"), f"decoder.bias.{place}")
    heads = ("likelihood.x_loc", "likelihood.x_logscale")
    for kind in ("weight", "bias"):
        joined = torch.cat([reader.take(f"{name}.{kind}") for name in heads])
        reader.fill(_weight(model.head, kind), joined, f"{heads[0]}.{kind}")
    reader.finish()


def _stages(model: ParityHVAE) -> list[list[ParityBlock]]:
    """Blocks of the decoder, finest stage first."""
    return [cast(list[ParityBlock], list(cast(nn.ModuleList, blocks))) for blocks in model.decoder]


def _encoder_steps(model: ParityHVAE) -> list[Step]:
    """Blocks of the encoder, in the order in which they are applied."""
    found: list[nn.Module] = []
    for depth, blocks in enumerate(model.encoder):
        found += [model.narrow[depth - 1]] if depth else []
        found += list(cast(nn.Sequential, blocks))
    return cast(list[Step], found)


def _weight(layer: nn.Module, kind: str) -> Tensor:
    return cast(Tensor, getattr(layer, kind))


class _Reader:
    """Reads weights from a state dict, each exactly once."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.left = dict(state)

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise ValueError(f"the public weights lack {name!r}: other stages, another prior, or its 'light' blocks?")
        return self.left.pop(name)

    def fill(self, ours: Tensor, theirs: Tensor, name: str) -> None:
        if ours.dim() == 2:  # a linear layer here is a 1x1 convolution there
            theirs = theirs.flatten(1)
        if ours.shape != theirs.shape:
            raise ValueError(f"public weight {name!r}: {tuple(theirs.shape)} does not fit {tuple(ours.shape)}")
        ours.data.copy_(theirs)

    def copy(self, layer: nn.Module, name: str) -> None:
        for kind in ("weight", "bias"):
            self.fill(_weight(layer, kind), self.take(f"{name}.{kind}"), f"{name}.{kind}")

    def divide(self, layers: Sequence[nn.Module], name: str) -> None:
        """Split one public convolution over concatenated inputs into one layer per input; the first gets the bias."""
        self.fill(_weight(layers[0], "bias"), self.take(f"{name}.bias"), f"{name}.bias")
        weight = self.take(f"{name}.weight")
        inputs = [_weight(layer, "weight").shape[1] for layer in layers]
        if weight.shape[1] != sum(inputs):
            raise ValueError(
                f"public weight {name!r} reads {weight.shape[1]} channels, not {sum(inputs)}: other parents?"
            )
        for layer, part in zip(layers, torch.split(weight, inputs, dim=1), strict=True):
            self.fill(_weight(layer, "weight"), part, f"{name}.weight")

    def quadruple(self, ours: Quadruple, name: str, beside: Sequence[nn.Module] = ()) -> None:
        """``beside``: layers whose inputs the public code concatenates to the first convolution's, in order."""
        self.divide([ours.squeeze, *beside], f"{name}.conv.{PARTS['squeeze']}")
        for part in ("first", "second", "expand"):
            self.copy(getattr(ours, part), f"{name}.conv.{PARTS[part]}")

    def step(self, ours: Step, name: str) -> None:
        self.quadruple(ours, name)
        if not isinstance(ours.skip, nn.Identity):
            self.copy(ours.skip, f"{name}.width_proj")

    def block(self, ours: ParityBlock, name: str) -> None:
        self.quadruple(ours.prior, f"{name}.prior", [ours.prior_shift] if ours.prior_shift is not None else [])
        if ours.stochastic:
            self.quadruple(ours.posterior, f"{name}.posterior", [ours.posterior_shift, ours.look])
        self.divide([ours.write, ours.write_shift], f"{name}.z_proj")
        self.copy(ours.remember, f"{name}.z_feat_proj")
        self.step(ours.residual, f"{name}.conv")

    def finish(self) -> None:
        if self.left:
            names = ", ".join(sorted(self.left)[:3])
            raise ValueError(f"{len(self.left)} public weights have no place here, such as {names}: other stages?")
