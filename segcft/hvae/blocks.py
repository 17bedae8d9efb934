"""Convolutional building blocks of the HVAE in 2-D and 3-D; ``*S`` is (H, W) or (D, H, W)."""

from torch import Tensor, nn

from segcft.hvae.convolutions import SILU, Pointwise2d, Pointwise3d, added, chain, weights_of
from segcft.spatial.resize import spread

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_POINTWISE = {2: Pointwise2d, 3: Pointwise3d}


def conv(spatial_dims: int, in_channels: int, out_channels: int, kernel: int = 3) -> nn.Module:
    """A convolution with padding that keeps the spatial size, its bias initialised to zero.

    Raises:
        ValueError: If ``spatial_dims`` is neither 2 nor 3.
    """
    kinds = _POINTWISE if kernel == 1 else _CONVOLUTION
    if spatial_dims not in kinds:
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    layer = kinds[spatial_dims](in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # keeps the variance through SiLU and depth
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def scaled(layer: nn.Module, gain: float) -> nn.Module:
    """Multiply a layer's initial weight by ``gain``: 0 for zero output, sqrt(1 / depth) for a deep residual sum."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    weight.data.mul_(gain)
    return layer


class Block(nn.Module):
    """A block of alternating activations and convolutions.

    Attributes:
        lean: Whether to store less for the backward pass and recompute it, see ``convolutions.chain``.
    """

    lean: bool = False


class Bottleneck(Block):
    """Pre-activation bottleneck: SiLU, convolution, shift by the parents, SiLU, convolution.

    The embedded parents are added after the first convolution as one shift per channel.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Input channels.
        out_channels: Output channels.
        embedding: Length of the embedded parents; 0 for a block without conditioning.
        kernel: 3, or 1 for maps of a single pixel.
        gain: Factor on the last convolution's initial weight.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        embedding: int = 0,
        kernel: int = 3,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        width = max(8, out_channels // 2)
        self.squeeze = conv(spatial_dims, in_channels, width, kernel)
        self.shift = nn.Linear(embedding, width) if embedding else None
        self.expand = scaled(conv(spatial_dims, width, out_channels, kernel), gain)

    def forward(self, features: Tensor, parents: Tensor | None = None) -> Tensor:
        """(B, in_channels, *S) and embedded parents (B, embedding) -> (B, out_channels, *S)."""
        shift = None
        if self.shift is not None:
            assert parents is not None, "a conditioned block needs the embedded parents"
            shift = spread(self.shift(parents), features)
        return chain(features, weights_of(self.squeeze, self.expand), SILU, shift, lean=self.lean)[0]


class Residual(Bottleneck):
    """``x + bottleneck(x)``."""

    def __init__(
        self, spatial_dims: int, channels: int, embedding: int = 0, kernel: int = 3, gain: float = 1.0
    ) -> None:
        super().__init__(spatial_dims, channels, channels, embedding, kernel, gain)

    def forward(self, features: Tensor, parents: Tensor | None = None) -> Tensor:
        """(B, channels, *S) -> the same shape."""
        return added(super().forward(features, parents), features)
