"""Chains of activations and convolutions, with a hand-written backward pass where that is faster than autograd.

A block of the HVAE is activation, convolution, activation, convolution and so on (He et al., 2016, arXiv:1603.05027).
Autograd stores both input and output of every activation, and its convolution backward pass on CPUs is several times
slower than explicit sums and matrix products. ``chain`` computes the same values. ``*S`` is (H, W) or (D, H, W).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 2**18  # elements; below, the overhead in Python exceeds the gain
TURNED = 2**16  # elements; below, changing the view costs more than it saves
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes
Weights = Sequence[Any]  # weight, bias, weight, bias, ...; a bias may be None


class Activation(NamedTuple):
    """An elementwise function and its derivative.

    Attributes:
        forward: Maps the input to the output.
        backward: Maps the output's gradient and the input to the input's gradient, written into ``grad_input``.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[..., Tensor]


def _unchanged(gradient: Tensor, number: Tensor, *, grad_input: Tensor) -> Tensor:
    return gradient


def gelu(number: Tensor) -> Tensor:
    """``F.gelu`` of (B, C, *S); viewed in memory order, since oneDNN is twice as fast on contiguous data (CPU)."""
    return F.gelu(number.movedim(1, -1)).movedim(-1, 1) if _turns(number) else F.gelu(number)


def _gelu_backward(gradient: Tensor, number: Tensor, *, grad_input: Tensor) -> Tensor:
    given = gradient, number, grad_input
    gradient, number, written = (each.movedim(1, -1) for each in given) if _turns(number) else given
    torch.ops.aten.gelu_backward.grad_input(gradient, number, grad_input=written)
    return grad_input


def _turns(number: Tensor) -> bool:
    return number.device.type == "cpu" and number.numel() >= TURNED and not number.is_contiguous()


GELU = Activation(gelu, _gelu_backward)
SILU = Activation(F.silu, torch.ops.aten.silu_backward.grad_input)
NONE = Activation(lambda number: number, _unchanged)


def chain(
    features: Tensor,
    weights: Weights,
    activation: Activation = NONE,
    shift: Tensor | None = None,
    sizes: Sequence[int] = (),
    lean: bool = False,
) -> list[Tensor]:
    """Apply activation, convolution, activation, convolution, ...; every convolution keeps the spatial size.

    Args:
        features: (B, C, *S).
        weights: Weight and bias of every convolution; see ``weights_of``.
        activation: Applied before every convolution.
        shift: Added after the first convolution; (B, channels, *S), or with ones in place of *S.
        sizes: Number of channels of each part to return; by default one part with all channels.
        lean: For large maps, store only the activations' inputs for the backward pass and recompute their outputs.

    Returns:
        The last convolution's output, (B, channels, *S), or its parts. They may be overwritten, see ``added``.
    """
    lower = torch.is_autocast_enabled(features.device.type)
    costly = features.numel() >= LARGE or torch.compiler.is_compiling()
    large = features.device.type == "cpu" and costly and not lower
    parts = tuple(sizes) if large else ()  # contiguous parts, unlike slices; for small maps one convolution is faster
    if torch.is_grad_enabled() and (large or (lean and costly)):
        if lower:
            dtype = torch.get_autocast_dtype(features.device.type)
            weights = [None if weight is None else weight.to(dtype) for weight in weights]
        values = list(_Chain.apply(features, shift, activation, parts, lean, *weights))  # type: ignore[no-untyped-call]
    else:
        values = _values(features, weights, activation, shift, parts)
    return values if parts else _split(values[0], sizes)


def weights_of(*layers: nn.Module) -> Weights:
    """Weight and bias of every layer."""
    return [weight for layer in layers for weight in (layer.weight, layer.bias)]


def added(value: Tensor, other: Tensor) -> Tensor:
    """The sum of both, computed in place in ``value`` if its precision suffices; ``value`` must not be used elsewhere.

    Autograd copies the gradient of a view that is modified in place, so in eager mode views are not modified. Under
    torch.compile this is not checked: compilers choose themselves what to compute in place.
    """
    writes = value.dtype == other.dtype and (torch.compiler.is_compiling() or not value._is_view())
    return value.add_(other) if writes else value + other


class Pointwise2d(nn.Conv2d):
    """A 1x1 convolution in 2-D."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H, W)."""
        return chain(features, weights_of(self))[0]


class Pointwise3d(nn.Conv3d):
    """A 1x1x1 convolution in 3-D."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, channels, D, H, W)."""
        return chain(features, weights_of(self))[0]


def _split(value: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    return list(torch.split(value, list(sizes), dim=1)) if sizes else [value]


def _values(
    features: Tensor,
    weights: Weights,
    activation: Activation,
    shift: Tensor | None,
    parts: Sequence[int] = (),
    kept: list[tuple[Tensor, Tensor]] | None = None,
) -> list[Tensor]:
    """See ``chain``; input and output of every activation are appended to ``kept``, in the weights' precision."""
    *inner, last, bias = weights
    for place in range(0, len(weights), 2):
        made = activation.forward(features)
        if kept is not None:
            made = made.to(last.dtype)
            kept.append((features, made))
        if place < len(inner):
            features = _convolve(made, inner[place], inner[place + 1])
            features = features if place or shift is None else added(features, shift)
    if not parts:
        return [_convolve(made, last, bias)]
    pieces = zip(last.split(parts), bias.split(parts), strict=True)
    return [_convolve(made, *piece) for piece in pieces]


class _Chain(torch.autograd.Function):
    """See ``chain``."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        shift: Tensor | None,
        activation: Activation,
        parts: tuple[int, ...],
        lean: bool,
        *weights: Tensor | None,
    ) -> tuple[Tensor, ...]:
        kept: list[tuple[Tensor, Tensor]] = []
        values = _values(features, weights, activation, shift, parts, kept)
        read, made = zip(*kept, strict=True)
        ctx.save_for_backward(*weights[::2], *read, *(() if lean else made))
        ctx.activation, ctx.parts, ctx.shift = activation, parts, None if shift is None else shift.shape
        ctx.biases = [bias is not None for bias in weights[1::2]]
        return tuple(values)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, count, activation = ctx.saved_tensors, len(ctx.biases), ctx.activation
        weights, read, made = saved[:count], saved[count : 2 * count], saved[2 * count :]
        by_weights: list[Tensor | None] = []
        for place in reversed(range(count)):
            weight, parts = weights[place], ctx.parts if place + 1 == count else ()
            value = made[place] if made else activation.forward(read[place]).to(weight.dtype)
            pieces = zip(gradients, weight.split(parts) if parts else [weight], strict=True)
            each = [_gradients(gradient, value, piece) for gradient, piece in pieces]
            biases = [gradient.sum((0, *range(2, gradient.dim()))) for gradient in gradients if ctx.biases[place]]
            by_weights[:0] = _joined([part for _, part in each]), _joined(biases)
            by_shift, (by_value, _) = gradients[0], each[0]
            for other, _ in each[1:]:
                by_value.add_(other)
            by_value = by_value.to(read[place].dtype)
            gradients = (activation.backward(by_value, read[place], grad_input=by_value),)
        by_given = gradients[0], None if ctx.shift is None else by_shift.sum_to_size(ctx.shift)
        return *by_given, None, None, None, *by_weights


def _convolve(features: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    if _is_product(features, weight):
        if torch.is_grad_enabled():
            return F.linear(features.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)  # autograd takes no out=
        return _product(features, weight.flatten(1).t(), bias)
    convolution = F.conv2d if features.dim() == 4 else F.conv3d
    return convolution(features, weight, bias, padding=weight.shape[2] // 2)


def _gradients(gradient: Tensor, value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a convolution's input and of its weight."""
    gradient = _laid_as(gradient, value)
    if _is_product(value, weight):
        rows, read = _rows(gradient), _rows(value)
        wide = rows.shape[1] > read.shape[1]  # matrix products with more columns than rows are faster
        by_weight = (read.t() @ rows).t() if wide else rows.t() @ read
        return _product(gradient, weight.flatten(1)), by_weight.reshape(weight.shape)
    axes = gradient.dim() - 2
    pad, none, once = [weight.shape[2] // 2] * axes, [0] * axes, [1] * axes
    by_value, by_weight, _ = torch.ops.aten.convolution_backward(
        gradient, value, weight, None, once, pad, once, False, none, 1, [True, True, False]
    )
    return by_value, by_weight


def _is_product(features: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is 1x1 and channels are last in memory, so that a matrix product is faster on CPUs."""
    if max(weight.shape[2:]) > 1 or features.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return features.dtype == weight.dtype and features.stride(1) == 1  # also for parts, so that they round identically


def _rows(features: Tensor) -> Tensor:
    """One row of channels per pixel: (B, C, *S) -> (B * S, C)."""
    return features.movedim(1, -1).flatten(0, -2)


def _product(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, C, *S), (C, channels) -> (B, channels, *S); not a view, so that it may be modified in place."""
    size = len(features), weight.shape[1], *features.shape[2:]
    value = torch.empty(size, dtype=features.dtype, memory_format=CHANNELS_LAST[features.dim()])
    rows = _rows(value)
    torch.mm(_rows(features), weight, out=rows)
    if bias is not None:
        rows.add_(bias)
    return value


def _laid_as(gradient: Tensor, value: Tensor) -> Tensor:
    """The gradient in the memory format of ``value``, which earlier blocks also use; mixed formats are slow to add."""
    last = CHANNELS_LAST[value.dim()]
    return gradient.contiguous(memory_format=last) if value.is_contiguous(memory_format=last) else gradient


def _joined(parts: list[Tensor]) -> Tensor | None:
    return torch.cat(parts) if len(parts) > 1 else (parts[0] if parts else None)
