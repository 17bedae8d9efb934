"""Curved planar reformation: straightening a vessel along its centreline.

Kanitsar et al., CPR - curved planar reformation, IEEE Visualization 2002, doi:10.1109/VISUAL.2002.1183754.
All points are in mm in one world frame; a volume's affine maps voxel indices to that frame.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import splev, splprep
from scipy.ndimage import map_coordinates

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
FEWEST = 4  # points of a cubic spline
REPEATED = 1e-6  # mm between points that count as one
ARC_STEP = 0.02  # mm between the points at which arc length is tabulated


class Centreline:
    """A smooth curve through the points of a centreline, parametrised by arc length.

    Args:
        points: (n, 3), mm, in order; repeated points are dropped and counted in the log.
        smoothing: Root-mean-square distance of the curve from the points, mm; 0 interpolates them.

    Attributes:
        length: Arc length, mm.

    Raises:
        ValueError: If ``points`` is not (n, 3), a coordinate is not finite, fewer than 4 points are left without the
            repeated ones, or ``smoothing`` is negative.
    """

    def __init__(self, points: ArrayLike, smoothing: float = 0.0) -> None:
        if smoothing < 0:
            raise ValueError(f"smoothing must not be negative, got {smoothing:g} mm")
        distinct = _distinct(_checked(points))
        chord = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(distinct, axis=0), axis=1))]
        self._spline, _ = splprep(distinct.T, u=chord, s=len(distinct) * smoothing**2, k=3)
        count = int(np.clip(chord[-1] / ARC_STEP, 20 * len(distinct), 500_000))
        self._knots = np.linspace(0, chord[-1], count + 1)
        speed = np.linalg.norm(splev(self._knots, self._spline, der=1), axis=0)
        steps = (speed[1:] + speed[:-1]) / 2 * np.diff(self._knots)
        self._arc = np.r_[0.0, np.cumsum(steps)]
        self.length = float(self._arc[-1])

    def at(self, s: ArrayLike) -> Floats:
        """Points at arc lengths ``s`` (L,), mm -> (L, 3); beyond the ends the curve is a straight line."""
        s = np.asarray(s, np.float64)
        inside = np.clip(s, 0, self.length)
        points = np.stack(splev(self._parameter(inside), self._spline), axis=1)
        straight: Floats = points + (s - inside)[:, None] * self.tangents(inside)
        return straight

    def tangents(self, s: ArrayLike) -> Floats:
        """Unit tangents at arc lengths ``s`` (L,), mm -> (L, 3)."""
        inside = np.clip(np.asarray(s, np.float64), 0, self.length)
        return _unit(np.stack(splev(self._parameter(inside), self._spline, der=1), axis=1))

    def _parameter(self, s: Floats) -> Floats:
        return np.interp(s, self._arc, self._knots)


@dataclass(frozen=True)
class Frames:
    """Points along a vessel with the axes of their cross-sections; (L, 3) each, mm or unit vectors."""

    points: Floats
    tangents: Floats
    normals: Floats
    binormals: Floats

    @classmethod
    def along(cls, curve: Centreline, s: ArrayLike) -> "Frames":
        """Rotation-minimising frames at arc lengths ``s`` (L,) by double reflection.

        Such frames do not rotate about the vessel more than its course requires (Wang et al., 2008,
        doi:10.1145/1330511.1330513).

        Args:
            curve: The centreline.
            s: Arc lengths in order, mm, close enough that the curve bends little between two of them.
        """
        points, tangents = curve.at(s), curve.tangents(s)
        normals = np.empty_like(points)
        normals[0] = _first_normal(tangents[0])
        for i in range(len(points) - 1):
            chord = points[i + 1] - points[i]
            reflected = _reflect(normals[i], chord)
            twist = tangents[i + 1] - _reflect(tangents[i], chord)
            normals[i + 1] = _reflect(reflected, twist)
        return cls(points, tangents, normals, np.cross(tangents, normals))


def straighten(
    volume: NDArray[np.generic],
    affine: Floats,
    frames: Frames,
    sides: tuple[int, int],
    spacing: tuple[float, float],
    labels: bool = False,
) -> NDArray[np.generic]:
    """Cross-sections of a vessel stacked along it.

    Args:
        volume: (X, Y, Z), a CT in HU or a label map.
        affine: (4, 4), voxel indices -> mm in the frames' world.
        frames: Frames at L points along the vessel.
        sides: Pixels of a cross-section along the normals and the binormals, (H, W).
        spacing: Their sizes, mm.
        labels: Use nearest-neighbour interpolation (0 outside the volume) instead of linear.

    Returns:
        (L, H, W): float32, or of the volume's own type where it holds ``labels``.

    Raises:
        ValueError: If the centreline leaves the volume, or ``affine`` has no inverse.
    """
    a, b = ((np.arange(side) - (side - 1) / 2) * edge for side, edge in zip(sides, spacing, strict=True))
    offsets = a[:, None, None] * frames.normals[:, None, None] + b[:, None] * frames.binormals[:, None, None]
    return _sample(volume, affine, frames, frames.points[:, None, None] + offsets, labels)


def longitudinal(
    volume: NDArray[np.generic],
    affine: Floats,
    frames: Frames,
    angle: float,
    side: int,
    spacing: float,
    labels: bool = False,
) -> NDArray[np.generic]:
    """A longitudinal section, rotated about the vessel by ``angle`` degrees from the normals towards the binormals.

    Args:
        volume: (X, Y, Z), a CT in HU or a label map.
        affine: (4, 4), voxel indices -> mm in the frames' world.
        frames: Frames at L points along the vessel.
        angle: Degrees.
        side: Pixels W across the vessel.
        spacing: Their size, mm.
        labels: As in ``straighten``.

    Returns:
        (L, W): float32, or of the volume's own type where it holds ``labels``.

    Raises:
        ValueError: If the centreline leaves the volume, or ``affine`` has no inverse.
    """
    turn = math.radians(angle)
    across = math.cos(turn) * frames.normals + math.sin(turn) * frames.binormals  # (L, 3)
    offsets = (np.arange(side) - (side - 1) / 2) * spacing
    return _sample(volume, affine, frames, frames.points[:, None] + offsets[:, None] * across[:, None], labels)


def check_inside(shape: Sequence[int], affine: Floats, points: Floats) -> None:
    """Check that points (n, 3), mm, are inside a volume of ``shape``.

    Raises:
        ValueError: If some are not; the message gives their number and the first of them.
    """
    index = _to_voxels(affine, points)
    outside = ((index < -0.5) | (index > np.asarray(shape) - 0.5)).any(axis=1)
    if outside.any():
        first = int(outside.argmax())
        place, voxel = (", ".join(f"{v:.1f}" for v in row[first]) for row in (points, index))
        raise ValueError(
            f"the centreline leaves the volume: {int(outside.sum())} of {len(points)} points lie outside, first "
            f"point {first} at ({place}) mm, which is voxel ({voxel}) of {' x '.join(map(str, shape))}"
        )


def _sample(
    volume: NDArray[np.generic], affine: Floats, frames: Frames, points: Floats, labels: bool
) -> NDArray[np.generic]:
    check_inside(volume.shape, affine, frames.points)
    index = np.moveaxis(_to_voxels(affine, points), -1, 0)
    sampled: NDArray[np.generic]
    if labels:
        sampled = map_coordinates(volume, index, order=0, mode="grid-constant", cval=0)
    else:
        sampled = map_coordinates(volume, index, output=np.float32, order=1, mode="nearest")
    return sampled


def _to_voxels(affine: Floats, points: Floats) -> Floats:
    try:
        inverse = np.linalg.inv(np.asarray(affine, np.float64))
    except np.linalg.LinAlgError:
        raise ValueError(f"the affine has no inverse: {np.asarray(affine).tolist()}") from None
    voxels: Floats = points @ inverse[:3, :3].T + inverse[:3, 3]
    return voxels


def _checked(points: ArrayLike) -> Floats:
    array = np.asarray(points, np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"a centreline is n points of 3 coordinates, got the shape {array.shape}")
    wrong = ~np.isfinite(array).all(axis=1)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(f"{int(wrong.sum())} points are not finite, first point {first}: {array[first].tolist()}")
    return array


def _distinct(points: Floats) -> Floats:
    """Points without those that repeat the one before."""
    new = np.linalg.norm(np.diff(points, axis=0, prepend=np.inf), axis=1) > REPEATED
    kept: Floats = points[new]
    repeated = len(points) - len(kept)
    if len(kept) < FEWEST:
        raise ValueError(f"a centreline needs {FEWEST} different points, got {len(kept)} and {repeated} repeated")
    if repeated:
        log.warning("%d of %d points of a centreline repeat the one before and are dropped", repeated, len(points))
    return kept


def _first_normal(tangent: Floats) -> Floats:
    """Across the vessel, closest to the world's axis that it follows least."""
    direction = np.eye(3)[np.abs(tangent).argmin()]
    return _unit(direction - (direction @ tangent) * tangent)


def _reflect(vector: Floats, across: Floats) -> Floats:
    """Mirror image in the plane whose normal is ``across``; the vector itself where ``across`` vanishes."""
    squared = across @ across
    return vector if squared < 1e-24 else vector - (2 / squared) * (across @ vector) * across


def _unit(vectors: Floats) -> Floats:
    units: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return units
