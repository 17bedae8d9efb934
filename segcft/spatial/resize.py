"""Tensors of images and features on coarser and finer grids; ``*S`` is (H, W) or (D, H, W)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 0.05  # deviation, in image units, that adds to every image's own
_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR_MODE = {2: "bilinear", 3: "trilinear"}


def shrink(features: Tensor, size: Sequence[int]) -> Tensor:
    """Average-pool (B, C, *S) down to ``size``, an integer fraction of S."""
    factor = [old // new for old, new in zip(features.shape[2:], size, strict=True)]
    return features if max(factor) == 1 else _POOL[len(factor)](features, factor)


def grow(features: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (B, C, *S) linearly up to ``size``: no checkerboard, unlike a pixel shuffle."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return F.interpolate(features, tuple(size), mode=_LINEAR_MODE[len(size)], align_corners=False)


def spread(vector: Tensor, like: Tensor) -> Tensor:
    """View (B, C) so that it adds to ``like`` (B, C, *S) at every position."""
    return vector.view(*vector.shape, *[1] * (like.dim() - 2))


def standardise(image: Tensor) -> Tensor:
    """(B, C, *S) in [-1, 1] to zero mean and unit deviation of every image; of one that is flat, next to nothing."""
    axes = tuple(range(1, image.dim()))
    deviation, mean = torch.std_mean(image, axes, keepdim=True)
    return (image - mean) / (deviation + FLAT)
