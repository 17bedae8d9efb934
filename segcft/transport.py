"""Smooth, invertible deformations of an image: the flow of a stationary velocity field, in 2-D and 3-D.

Fields are (B, D, *S) with D = len(S) components in pixels, ordered as S is. Images are pulled back: a point shows what
lay at ``point + displacement``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def exponential(velocity: Tensor, squarings: int = 4) -> Tensor:
    """Displacement of the velocity's flow after unit time, by scaling and squaring (Arsigny et al., 2006).

    Args:
        velocity: Stationary velocity field, (B, D, *S) in pixels.
        squarings: The flow of 1 / 2^squarings is taken to be linear and then composed with itself.

    Returns:
        Displacement (B, D, *S) in pixels; 0 where the velocity vanishes around a point. The opposite velocity gives
        the inverse up to interpolation.
    """
    displacement: Tensor = velocity / 2**squarings
    for _ in range(squarings):
        displacement = displacement + warp(displacement, displacement)
    return displacement


def warp(image: Tensor, displacement: Tensor) -> Tensor:
    """Image (B, C, *S) looked up at ``point + displacement``: linear between pixels, the edge's value beyond it."""
    size = image.shape[2:]
    axes = [torch.arange(n, device=image.device, dtype=displacement.dtype) for n in size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement  # (B, D, *S)
    last = points.new_tensor([max(n - 1, 1) for n in size]).view(-1, *[1] * len(size))
    grid = (2 * points / last - 1).flip(1).movedim(1, -1)  # (B, *S, D), x first
    return F.grid_sample(image, grid.to(image.dtype), padding_mode="border", align_corners=True)


def roughness(field: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of a field (B, D, *S), a scalar."""
    steps = [field.diff(dim=axis).square().mean() for axis in range(2, field.dim())]
    return torch.stack(steps).sum()
