"""What can be measured on a structure: (mask, image, spacing) -> (B, K) in real units, differentiable in the mask.

The axes of an image are named from its last one: x, then y, then z. Places are in mm from the first edge of the image
to the centres of pixels, and a pixel is a little square, so a box of n pixels is exactly n * spacing wide. Less than
one pixel of a structure in all counts for less and less and never divides by zero: an empty mask lies at the image's
centre and has no intensity, no texture and no boundary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

AXES = "xyz"  # names of the last, last but one and last but two axis
ROUND = 1e-6  # anisotropy of the covariance, squared, below which a structure has no principal axis


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
    return _pixels(mask, spacing) * math.prod(spacing)


def centroid(mask: Tensor, image: Tensor, spacing: Sequence[float], axis: str) -> Tensor:
    """Centre of mass along ``axis``, (B, K), mm from the first edge of the image; see ``area``.

    >>> import torch
    >>> centroid(torch.tensor([[[[0.0, 1.0, 1.0]]]]), torch.zeros(1, 1, 1, 3), spacing=[1.0, 2.0], axis="x")
    tensor([[4.]])
    """
    middle = mask.shape[_dim(mask, axis)] * spacing[_at(axis)] / 2
    return middle + _mean(_profile(mask, axis), _places(mask, spacing, axis), _pixels(mask, spacing))


def spread(mask: Tensor, image: Tensor, spacing: Sequence[float], axis: str) -> Tensor:
    """Standard deviation of a structure's matter along ``axis``, (B, K), mm; that of a box is its width / sqrt(12).

    See ``area`` for arguments and errors.
    """
    _pixels(mask, spacing)
    return _covariance(mask, spacing, axis, axis).sqrt()


def extent(mask: Tensor, image: Tensor, spacing: Sequence[float], axis: str) -> Tensor:
    """How many mm along ``axis`` hold any of the structure, (B, K); gaps do not count.

    A slice holds some with probability 1 - prod(1 - p^2), exact for hard masks; squares keep a thousand faint pixels
    from adding up to a structure. See ``area`` for arguments and errors.
    """
    _pixels(mask, spacing)
    slices = mask.float().movedim(_dim(mask, axis), 2).flatten(3)  # (B, K, n, rest)
    absent = (1 - slices.square()).clamp(min=1e-6).log().sum(3).exp()
    return (1 - absent).sum(2) * spacing[_at(axis)]


def elongation(mask: Tensor, image: Tensor, spacing: Sequence[float]) -> Tensor:
    """Major over minor principal axis, (B, K), at least 1 (1.001 of a disc, that it has a gradient); 2-D only.

    See ``area`` for arguments and errors.
    """
    half_trace, half_difference, mixed = _ellipse(mask, spacing)
    radius = (half_difference**2 + mixed**2 + ROUND * half_trace**2).sqrt()
    return ((half_trace + radius) / (half_trace - radius).clamp(min=ROUND * half_trace)).sqrt()


def orientation(mask: Tensor, image: Tensor, spacing: Sequence[float]) -> Tensor:
    """Angle from x towards y of the major principal axis, (B, K), degrees in (-90, 90]; 0 of a disc; 2-D only.

    As y grows downwards, positive is clockwise in the picture. See ``area`` for arguments and errors.
    """
    half_trace, half_difference, mixed = _ellipse(mask, spacing)
    is_round = half_difference**2 + mixed**2 <= ROUND * half_trace**2
    along_x = torch.where(is_round, half_trace, half_difference)  # keeps the gradient of atan2 from 0 / 0
    return torch.rad2deg(torch.atan2(mixed, along_x)) / 2


def intensity(mask: Tensor, image: Tensor, spacing: Sequence[float]) -> Tensor:
    """Mean of the image over a structure, (B, K), differentiable in mask and image; channels are averaged.

    Args:
        mask: Probability of each structure, (B, K, *S), in [0, 1].
        image: (B, C, *S) in [-1, 1].
        spacing: Edge lengths, mm.

    Raises:
        ValueError: If ``spacing`` does not have one entry per spatial axis.
    """
    level = image.float().mean(1, keepdim=True)  # (B, 1, *S)
    return (mask.float() * level).flatten(2).sum(2) / _pixels(mask, spacing).clamp(min=1)


def texture(mask: Tensor, image: Tensor, spacing: Sequence[float]) -> Tensor:
    """Mean variance of the image within 3 pixels along each axis, only of the structure's own, (B, K), levels^2.

    See ``area`` for arguments and errors; channels are averaged first.
    """
    total, weight, level = _pixels(mask, spacing), mask.float(), image.float().mean(1, keepdim=True)
    around = partial(F.avg_pool2d if len(spacing) == 2 else F.avg_pool3d, kernel_size=3, stride=1, padding=1)
    share = around(weight).clamp(min=3.0 ** -len(spacing))  # (B, K, *S), of at least one pixel
    mean, squares = around(weight * level) / share, around(weight * level**2) / share
    return (weight * (squares - mean**2)).flatten(2).sum(2) / total.clamp(min=1)


def boundary(mask: Tensor, image: Tensor, spacing: Sequence[float]) -> Tensor:
    """Length (2-D, mm) or surface (3-D, mm^2) of a structure's boundary, (B, K).

    The total variation of the mask by Sobel's gradient, within some percent on structures wider than about six pixels
    and less than the truth below that. Where the image cuts a structure off is no boundary. See ``area``.
    """
    _pixels(mask, spacing)
    padded = F.pad(mask.float(), [1, 1] * len(spacing), mode="replicate")
    squared = torch.zeros_like(mask, dtype=torch.float32)
    for along in range(len(spacing)):
        slope = padded
        for axis, step in enumerate(spacing):
            length = mask.shape[2 + axis]
            before, here, after = (slope.narrow(2 + axis, start, length) for start in range(3))
            slope = (after - before) / (2 * step) if axis == along else (before + 2 * here + after) / 4
        squared = squared + slope**2
    tiny = 1e-4 / max(spacing)  # the square root has a gradient everywhere
    return ((squared + tiny**2).sqrt() - tiny).flatten(2).sum(2) * math.prod(spacing)


def shape_descriptors(mask: Tensor, spacing: Sequence[float]) -> Tensor:
    """Where every structure lies and how far it reaches, (B, K * 2 * D), mm, differentiable in ``mask``.

    Structure after structure; of each, its centroids along x, y (and z), then its spreads along x, y (and z).

    Args:
        mask: Probability of each structure, (B, K, *S), in [0, 1].
        spacing: Edge length along each axis of S, mm.

    Raises:
        ValueError: If ``spacing`` does not have one entry per spatial axis.
    """
    axes = AXES[: len(spacing)]
    found = [measure(mask, mask, spacing, axis) for measure in (centroid, spread) for axis in axes]
    return torch.stack(found, dim=2).flatten(1)


@dataclass(frozen=True)
class Measurement:
    """Something that YAML can ask of a structure by name.

    Attributes:
        function: Masks (B, K, *S), images (B, C, *S) and spacing -> (B, K).
        units: Number of spatial dimensions -> unit there; a dimension that is missing does not have this measurement.
        positive: Whether it is a size, which is above 0.
    """

    function: Callable[[Tensor, Tensor, Sequence[float]], Tensor]
    units: dict[int, str]
    positive: bool = False


MEASUREMENTS = {
    "area": Measurement(area, {2: "mm^2", 3: "mm^3"}, positive=True),
    "centroid_x": Measurement(partial(centroid, axis="x"), {2: "mm", 3: "mm"}),
    "centroid_y": Measurement(partial(centroid, axis="y"), {2: "mm", 3: "mm"}),
    "centroid_z": Measurement(partial(centroid, axis="z"), {3: "mm"}),
    "width": Measurement(partial(extent, axis="x"), {2: "mm", 3: "mm"}, positive=True),
    "height": Measurement(partial(extent, axis="y"), {2: "mm", 3: "mm"}, positive=True),
    "depth": Measurement(partial(extent, axis="z"), {3: "mm"}, positive=True),
    "spread_x": Measurement(partial(spread, axis="x"), {2: "mm", 3: "mm"}, positive=True),
    "spread_y": Measurement(partial(spread, axis="y"), {2: "mm", 3: "mm"}, positive=True),
    "spread_z": Measurement(partial(spread, axis="z"), {3: "mm"}, positive=True),
    "elongation": Measurement(elongation, {2: ""}),
    "orientation": Measurement(orientation, {2: "degrees"}),
    "intensity": Measurement(intensity, {2: "level", 3: "level"}),
    "texture": Measurement(texture, {2: "level^2", 3: "level^2"}),
    "boundary": Measurement(boundary, {2: "mm", 3: "mm^2"}, positive=True),
}


def _pixels(mask: Tensor, spacing: Sequence[float]) -> Tensor:
    """Soft number of pixels, (B, K), in fp32."""
    if mask.dim() - 2 != len(spacing):
        raise ValueError(f"spacing {list(spacing)} needs one entry for each of the {mask.dim() - 2} spatial axes")
    return mask.float().flatten(2).sum(2)


def _at(axis: str) -> int:
    """Place of an axis in S and in the spacing, counted from the end."""
    return -1 - AXES.index(axis)


def _dim(mask: Tensor, axis: str) -> int:
    if AXES.index(axis) >= mask.dim() - 2:
        raise ValueError(f"masks of {mask.dim() - 2} dimensions have no axis {axis}")
    return mask.dim() + _at(axis)


def _places(mask: Tensor, spacing: Sequence[float], axis: str) -> Tensor:
    """Centres of pixels along ``axis``, mm from the middle of the image, (n,)."""
    count = mask.shape[_dim(mask, axis)]
    return (torch.arange(count, device=mask.device) - (count - 1) / 2) * spacing[_at(axis)]


def _profile(mask: Tensor, *axes: str) -> Tensor:
    """Soft number of pixels at every place along one or two axes, in the order of the image's, (B, K, n[, m])."""
    kept = {_dim(mask, axis) for axis in axes}
    rest = [dim for dim in range(2, mask.dim()) if dim not in kept]
    return mask.float().sum(rest) if rest else mask.float()


def _mean(profile: Tensor, places: Tensor, pixels: Tensor) -> Tensor:
    return (profile * places).sum(-1) / pixels.clamp(min=1)


def _covariance(mask: Tensor, spacing: Sequence[float], first: str, second: str) -> Tensor:
    """Second central moment along two axes, (B, K), mm^2, of pixels that are little squares."""
    total = _pixels(mask, spacing)
    middles = [_mean(_profile(mask, axis), _places(mask, spacing, axis), total)[..., None] for axis in (first, second)]
    a, b = (_places(mask, spacing, axis) - middle for axis, middle in zip((first, second), middles, strict=True))
    if first == second:
        return _mean(_profile(mask, first), a * a, total) + spacing[_at(first)] ** 2 / 12
    products = _profile(mask, first, second) * (b[..., :, None] * a[..., None, :])  # (B, K, second, first)
    return products.flatten(2).sum(2) / total.clamp(min=1)


def _ellipse(mask: Tensor, spacing: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Half the trace, half the difference (x less y) and the mixed entry of the covariance, (B, K) each."""
    if len(spacing) != 2:
        raise ValueError(f"elongation and orientation are those of 2-D masks, not of spacing {list(spacing)}")
    x, y = (_covariance(mask, spacing, axis, axis) for axis in "xy")
    return (x + y) / 2, (x - y) / 2, _covariance(mask, spacing, "x", "y")
