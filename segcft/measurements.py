"""What can be measured on a structure: (mask, image, spacing) -> (B, K), differentiable in the mask."""

import math
from collections.abc import Sequence

from torch import Tensor


def area(mask: Tensor, image: Tensor, spacing: Sequence[float]) -> Tensor:
    """Soft size of every structure: area in 2-D, volume in 3-D (Xia et al., 2025, arXiv:2509.24913).

    Args:
        mask: Probability of each structure, (B, K, *S), in [0, 1].
        image: Unused; every measurement shares this signature, (B, C, *S).
        spacing: Edge length of a pixel or voxel along each axis of S, in mm.

    Returns:
        (B, K) in mm^2 (2-D) or mm^3 (3-D), differentiable in ``mask``, summed in fp32.

    Raises:
        ValueError: If ``spacing`` does not have one entry per spatial axis.

    >>> import torch
    >>> area(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), spacing=[0.5, 0.5])
    tensor([[4.]])
    """
    if mask.dim() - 2 != len(spacing):
        raise ValueError(f"spacing {list(spacing)} needs one entry for each of the {mask.dim() - 2} spatial axes")
    return mask.float().flatten(2).sum(2) * math.prod(spacing)
