"""Resizing and standardising image and feature tensors; ``*S`` is (H, W) or (D, H, W)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 0.05  # in image units, added to the standard deviation so that flat images stay small
_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR_MODE = {2: "bilinear", 3: "trilinear"}


def shrink(features: Tensor, size: Sequence[int]) -> Tensor:
    """Average-pool (B, C, *S) down to ``size``, an integer fraction of S."""
    factor = [old // new for old, new in zip(features.shape[2:], size, strict=True)]
    return features if max(factor) == 1 else _POOL[len(factor)](features, factor)


def grow(features: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (B, C, *S) linearly up to ``size``; unlike pixel shuffle, this leaves no checkerboard artefacts."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return F.interpolate(features, tuple(size), mode=_LINEAR_MODE[len(size)], align_corners=False)


def spread(vector: Tensor, like: Tensor) -> Tensor:
    """View (B, C) as (B, C, 1, ...), so that it broadcasts over the positions of ``like`` (B, C, *S)."""
    return vector.view(*vector.shape, *[1] * (like.dim() - 2))


def standardise(image: Tensor) -> Tensor:
    """Scale every image of (B, C, *S) to mean 0 and standard deviation 1; a flat image stays close to 0."""
    axes = tuple(range(1, image.dim()))
    deviation, mean = torch.std_mean(image, axes, keepdim=True)
    return (image - mean) / (deviation + FLAT)
