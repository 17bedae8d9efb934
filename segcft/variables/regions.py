"""Parts of a structure, fixed by the factual anatomy (Pos-Seg-CFT, arXiv:2603.21213).

A region is a weight in [0, 1] for every pixel. Bands that divide 0 to 1 share every pixel out completely, so the sizes
of the parts add up to that of the whole, in any image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segcft.variables.measurements import AXES


@dataclass(frozen=True)
class Region:
    """A band [low, high) across an axis; thirds of a straightened vessel are 0..1/3, 1/3..2/3, 2/3..1 of the image.

    Attributes:
        low: Where the band begins, from 0 to 1. A band from 0 has no end there: it holds all that lies before it.
        high: Where it ends; the same for 1.
        axis: The image axis that is divided: ``x`` (the last), ``y`` or ``z``.
        of: What 0 and 1 are the ends of: the ``image``; the factual ``structure``'s bounding box along the axis; or
            the factual structure along its own principal ``axis``, towards the end of the image axis that it is
            closest to.
        within: Count only what lies in this factual structure, for instance a mask drawn by hand; ``structure`` and
            ``axis`` are then this one's.

    Raises:
        ValueError: If the band is empty or leaves 0 to 1, or ``axis`` or ``of`` is unknown.
    """

    low: float = 0.0
    high: float = 1.0
    axis: str = "y"
    of: Literal["image", "structure", "axis"] = "image"
    within: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"a region's band lies in 0 to 1, with low < high, got [{self.low:g}, {self.high:g})")
        if len(self.axis) != 1 or self.axis not in AXES:
            raise ValueError(f"a region's axis is x, y or z, got {self.axis!r}")
        if self.of not in ("image", "structure", "axis"):
            raise ValueError(f"a region is a part of the image, the structure or the axis, got of={self.of!r}")

    @property
    def follows_anatomy(self) -> bool:
        """Whether it depends on the factual masks."""
        return self.of != "image" or bool(self.within)


@torch.no_grad()
def weights(region: Region, anatomy: Tensor, spacing: Sequence[float]) -> Tensor:
    """Share of every pixel that lies in the band of ``region``, without gradient.

    Args:
        region: The band; ``within`` is not looked at.
        anatomy: Factual mask of what it divides, (B, *S), hard or soft; an image without any of it is divided whole.
        spacing: Edge length along each axis of S, mm.

    Returns:
        (B, *S) in [0, 1]; those of bands that divide 0 to 1 sum to one.

    Raises:
        ValueError: If the image has no such axis.

    >>> import torch
    >>> weights(Region(0, 0.5), torch.ones(1, 3, 2), [1.0, 1.0])[0, :, 0].tolist()
    [1.0, 0.5, 0.0]
    """
    if AXES.index(region.axis) >= len(spacing):
        raise ValueError(f"images of {len(spacing)} dimensions have no axis {region.axis}")
    direction = _directions(region, anatomy, spacing)  # (B, D)
    steps = direction * direction.new_tensor(spacing)
    shape = (-1, *[1] * len(spacing))
    place = torch.zeros_like(anatomy, dtype=torch.float32)
    for axis, count in enumerate(anatomy.shape[1:]):
        ramp = torch.arange(count, device=anatomy.device) + 0.5
        place = place + steps[:, axis].view(shape) * ramp.view(*[-1 if a == axis else 1 for a in range(len(spacing))])
    width = steps.abs().sum(1).view(shape)  # of a pixel along the direction
    inside = anatomy > 0.5 if region.of != "image" else torch.ones_like(anatomy, dtype=torch.bool)
    inside = inside | ~inside.flatten(1).any(1).view(shape)
    first = place.masked_fill(~inside, math.inf).flatten(1).amin(1).view(shape) - width / 2
    last = place.masked_fill(~inside, -math.inf).flatten(1).amax(1).view(shape) + width / 2
    low, high = ((last - first) * end + first for end in (region.low, region.high))
    below = torch.ones_like(place) if region.high == 1 else ((high - place) / width + 0.5).clamp(0, 1)
    return below if region.low == 0 else below - ((low - place) / width + 0.5).clamp(0, 1)


def _directions(region: Region, anatomy: Tensor, spacing: Sequence[float]) -> Tensor:
    """Unit vectors that the bands are stacked along, (B, D): an image axis, or the anatomy's principal axis."""
    dims = len(spacing)
    if region.of != "axis":
        fixed = torch.zeros(len(anatomy), dims, device=anatomy.device)
        fixed[:, dims - 1 - AXES.index(region.axis)] = 1
        return fixed
    ramps = [torch.arange(n, device=anatomy.device) * s for n, s in zip(anatomy.shape[1:], spacing, strict=True)]
    places = torch.stack(torch.meshgrid(*ramps, indexing="ij")).flatten(1).float()  # (D, P)
    mass = (anatomy > 0.5).float().flatten(1)  # (B, P)
    share = mass / mass.sum(1, keepdim=True).clamp(min=1)
    centred = places - (share @ places.T)[:, :, None]  # (B, D, P)
    covariance = (centred * share[:, None]) @ centred.mT
    principal = torch.linalg.eigh(covariance).eigenvectors[..., -1]  # (B, D)
    directed: Tensor = principal * principal.gather(1, principal.abs().argmax(1, keepdim=True)).sign()
    return directed


def reach(image: Tensor) -> int:
    """Margin around a structure of images (B, C, *S) in pixels: 3 of 64 along the longest side."""
    return max(1, round(3 * max(image.shape[2:]) / 64))


def dilate(mask: Tensor, pixels: int) -> Tensor:
    """Grow a boolean mask (B, *S) by ``pixels`` along every axis."""
    return largest(mask[:, None].float(), pixels)[:, 0] > 0


def largest(values: Tensor, pixels: int) -> Tensor:
    """The largest of (B, C, *S) within ``pixels`` along every axis, there."""
    if not pixels:
        return values
    dims = values.dim() - 2
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[dims]
    for axis in range(dims):  # one after the other: the same square, and fewer pixels to look at
        only = [axis == other for other in range(dims)]
        values = pool(values, [2 * pixels * here + 1 for here in only], 1, [pixels * here for here in only])
    return values


def averaged(values: Tensor, width: int) -> Tensor:
    """Mean of (B, C, *S) within an odd ``width`` along every axis around every pixel."""
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[values.dim() - 2]
    return pool(values, width, stride=1, padding=width // 2, count_include_pad=False)


def blur(mask: Tensor, width: int) -> Tensor:
    """Share of a mask (B, *S) within an odd ``width`` around every pixel, (B, *S)."""
    return averaged(mask[:, None].float(), width)[:, 0]


def neighbourhood(mask: Tensor, image: Tensor) -> Tensor:
    """A structure (B, *S) and its margin as weights (B, 1, *S): 1 within, 0 beyond, soft in the last pixel."""
    return blur(dilate(mask, max(1, reach(image) - 1)), 3)[:, None]


def surroundings(mask: Tensor, image: Tensor) -> Tensor:
    """A structure (B, *S) as weights (B, 1, *S) that fall smoothly from 1 to 0 within eight margins of it."""
    return _faded(mask, 4 * reach(image), 4 * reach(image))


def vicinity(mask: Tensor, image: Tensor) -> Tensor:
    """A small thing (B, *S) as weights (B, 1, *S): 1 there and beside it, falling smoothly to 0 within four margins."""
    return _faded(mask, 2 * reach(image), 2 * reach(image) - 1)


def _faded(mask: Tensor, pixels: int, ramp: int) -> Tensor:
    """Grown by ``pixels``, with an edge that is smooth over ``ramp`` pixels on both sides, (B, 1, *S)."""
    near, width = dilate(mask, pixels), ramp + 1 - ramp % 2
    return blur(blur(near, width), width)[:, None]
