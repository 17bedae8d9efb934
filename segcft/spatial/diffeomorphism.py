"""Diffeomorphisms (smooth invertible deformations): the flow of a stationary velocity field, in 2-D and 3-D.

Fields are (B, D, *S) with D = len(S) components in pixels, in the order of S. Images are pulled back: the warped image
at ``point`` is the image at ``point + displacement``. A point with zero displacement keeps its value exactly.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

POLE = 3**0.5 - 2  # pole of the cubic B-spline's inverse filter
GIVEN_BACK = 0.25  # share of the interpolation loss: keeps the energy of fine detail on phantoms and films alike
SQUARINGS = 4  # the flow at time 1/16 is approximated as linear, then composed with itself
MARGIN = 12  # pixels beyond which the inverse filter is below 1e-6


def exponential(velocity: Tensor) -> Tensor:
    """Displacement of the flow exp(velocity) at time 1, by scaling and squaring (Arsigny et al., 2006).

    Args:
        velocity: Stationary velocity field, (B, D, *S) in pixels.

    Returns:
        Displacement (B, D, *S) in pixels; 0 where the velocity is 0 in a neighbourhood. The negated velocity gives the
        inverse, up to interpolation.
    """
    displacement: Tensor = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        displacement = displacement + _looked_up(displacement, _points(displacement))
    return displacement


def warp(image: Tensor, displacement: Tensor) -> Tensor:
    """Sample an image (B, C, *S) at ``point + displacement``: linear interpolation, edge values repeated outside."""
    return _kept(image, displacement, _looked_up(image, _points(displacement)))


def warp_cubic(image: Tensor, displacement: Tensor, origin: Sequence[int] | None = None) -> Tensor:
    """As ``warp``, with cubic B-spline interpolation, which preserves fine detail (Unser, 1999).

    Args:
        image: (B, C, *S).
        displacement: (B, D, *T) in pixels, for a block of the image.
        origin: First pixel of the block; by default the block is the whole image.

    Returns:
        (B, C, *T), which may overshoot the image's range.
    """
    start = list(origin or [0] * (image.dim() - 2))
    block = [slice(at, at + n) for at, n in zip(start, displacement.shape[2:], strict=True)]
    points, offsets = _points(displacement), image.new_tensor(start).view(-1, *[1] * len(start))
    source, first = _around(image, points + offsets)
    points = points + (offsets - image.new_tensor(first).view(-1, *[1] * len(start)))
    whole = points.floor()
    part = points - whole
    low = ((1 - part) ** 3 / 6, (3 * part**3 - 6 * part**2 + 4) / 6)
    high = ((-3 * part**3 + 3 * part**2 + 3 * part + 1) / 6, part**3 / 6)
    weights = (low[0] + low[1], high[0] + high[1])
    places = (whole - 1 + low[1] / weights[0], whole + 1 + high[1] / weights[1])  # two linear samples per axis
    coefficients, found = _coefficients(source), torch.zeros(())
    for corner in itertools.product((0, 1), repeat=len(start)):
        place = torch.stack([places[end][:, axis] for axis, end in enumerate(corner)], 1)
        weight = torch.stack([weights[end][:, axis] for axis, end in enumerate(corner)], 1).prod(1, keepdim=True)
        found = found + weight * _looked_up(coefficients, place)
    return _kept(image[(slice(None), slice(None), *block)], displacement, found)


def sharpened(warped: Tensor, displacement: Tensor) -> Tensor:
    """Restore part of the fine detail of (B, C, *T) that interpolation at sub-pixel positions has removed.

    A cubic spline shifted by a fraction f of a pixel loses detail in proportion to f^2 (1 - f)^2 times the fourth
    derivative. Along each axis the share ``GIVEN_BACK`` of this loss is added again; nothing where f is 0.

    Args:
        warped: Output of ``warp_cubic``.
        displacement: The displacement given to ``warp_cubic``, (B, D, *T) in pixels.
    """
    found = warped
    for axis in range(2, warped.dim()):
        part = displacement[:, axis - 2 : axis - 1]
        part = part - part.floor()
        found = found + GIVEN_BACK * (part * (1 - part)).square() * _curvature(_curvature(warped, axis), axis)
    return found


def _curvature(image: Tensor, axis: int) -> Tensor:
    """Minus the second difference along an axis; edges are repeated."""
    n, padding = image.shape[axis], [0] * (2 * (image.dim() - 1 - axis)) + [1, 1]
    padding += [0] * (2 * (image.dim() - 2) - len(padding))
    padded = F.pad(image, padding, mode="replicate")
    return 2 * image - padded.narrow(axis, 0, n) - padded.narrow(axis, 2, n)


def roughness(field: Tensor) -> Tensor:
    """Mean squared difference between neighbouring pixels of a field (B, D, *S), a scalar."""
    steps = [field.diff(dim=axis).square().mean() for axis in range(2, field.dim())]
    return torch.stack(steps).sum()


def jacobian(displacement: Tensor) -> Tensor:
    """Jacobian matrix of the map ``point + displacement``: (B, D, *S) in pixels -> (B, *S, D, D)."""
    axes = tuple(range(2, displacement.dim()))
    slopes = torch.stack(torch.gradient(displacement, dim=axes), 2)  # (B, component, axis, *S)
    return slopes.movedim((1, 2), (-2, -1)) + torch.eye(len(axes), device=displacement.device)


def _points(displacement: Tensor) -> Tensor:
    axes = [torch.arange(n, device=displacement.device, dtype=displacement.dtype) for n in displacement.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement


def _looked_up(image: Tensor, points: Tensor) -> Tensor:
    """Linear interpolation of (B, C, *S) at points (B, D, *T)."""
    last = points.new_tensor([max(n - 1, 1) for n in image.shape[2:]]).view(-1, *[1] * (points.dim() - 2))
    grid = (2 * points / last - 1).flip(1).movedim(1, -1)  # (B, *T, D), x first
    return F.grid_sample(image, grid.to(image.dtype), padding_mode="border", align_corners=True)


def _kept(image: Tensor, displacement: Tensor, moved: Tensor) -> Tensor:
    """Pixels with zero displacement keep their value exactly, without the rounding of interpolation."""
    return torch.where((displacement == 0).all(1, keepdim=True), image, moved)


def _around(image: Tensor, points: Tensor) -> tuple[Tensor, list[int]]:
    """The block of an image that points (B, D, *T) sample, plus a margin, and its first pixel; edges are repeated."""
    places, kept = points.movedim(1, 0).flatten(1), [slice(None), slice(None)]
    padding: list[int] = []
    first: list[int] = []
    for n, low, high in zip(image.shape[2:], places.amin(1).tolist(), places.amax(1).tolist(), strict=True):
        from_, to = min(max(int(low), 0), n - 1) - MARGIN, min(max(int(high), 0), n - 1) + 2 + MARGIN
        kept.append(slice(max(from_, 0), min(to, n)))
        padding = [max(-from_, 0), max(to - n, 0), *padding]  # the last axis first
        first.append(from_)
    return F.pad(image[tuple(kept)], padding, mode="replicate"), first


def _coefficients(image: Tensor) -> Tensor:
    """Coefficients of the cubic B-spline through the pixels of (B, C, *S); inexact within ``MARGIN`` of the edges."""
    for axis in range(2, image.dim()):
        n = image.shape[axis]
        ends = [0] * (2 * (image.dim() - 1 - axis)) + [MARGIN, MARGIN]  # F.pad counts from the last axis
        padded = F.pad(image, ends)
        image = padded.narrow(axis, MARGIN, n) * 3**0.5
        for offset in range(1, MARGIN + 1):  # a sum of shifted copies is ten times as fast as a convolution
            both = padded.narrow(axis, MARGIN - offset, n) + padded.narrow(axis, MARGIN + offset, n)
            image = image + 3**0.5 * POLE**offset * both
    return image
