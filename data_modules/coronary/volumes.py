"""Coronary phantoms written as CT volumes: each vessel follows a curve in an oblique NIfTI, with a manifest."""

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from data_modules.common.splits import Split
from data_modules.coronary.anatomy import LENGTH, WIDTH
from data_modules.coronary.curved_planar_reformation import Centreline, Frames
from data_modules.coronary.phantom_dataset import CoronaryPhantomDataset

Floats = NDArray[np.float64]

MARGIN = 2.0  # mm of vessel traced beyond what is shown
REACH = WIDTH / 2 * 2**0.5 + 0.5  # mm around the vessel that are drawn: the corner of a cross-section
FAR = -100.0  # HU outside
ARC_STEP = 0.25  # mm


def write_volumes(
    folder: Path,
    count: int,
    seed: int = 0,
    split: Split = "train",
    spacing: tuple[float, float, float] = (0.4, 0.4, 0.5),
    noise: float = 15.0,
) -> Path:
    """Write phantoms as ``<id>.img.nii.gz`` (int16 HU), ``<id>.label.nii.gz`` (1 lumen, 2 calcified, 3 non-calcified).

    The vessels are those of ``CoronaryPhantomDataset(split, frame, count, seed)`` in 3-D, whose variables are their
    true volumes. ``<id>_lad.csv`` is the centreline in RAS+ mm.

    Args:
        folder: Output folder; created if missing.
        count: Number of subjects.
        seed: Seed of the phantoms, their courses and the noise.
        split: Split of the phantoms.
        spacing: Voxel size, mm.
        noise: Standard deviation of the noise, HU.

    Returns:
        Path of the manifest, with the columns of ``coronary.manifests`` and all variables of the phantoms.

    Raises:
        ValueError: If ``count`` < 1 or ``seed`` < 0.
    """
    phantoms = CoronaryPhantomDataset(split, (12, 12, 12), count, seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        case, rng = f"phantom{index:04d}", np.random.default_rng([seed, index, 2])
        names = {"image": f"{case}.img.nii.gz", "label": f"{case}.label.nii.gz", "centerline": f"{case}_lad.csv"}
        curve = _course(rng)
        image, label, affine = _bend(phantoms, index, curve, _oblique(rng, spacing), noise, rng)
        for name, data in (("image", image), ("label", label)):
            nifti = nibabel.Nifti1Image(data, affine)
            nifti.header.set_xyzt_units("mm")
            nibabel.save(nifti, folder / names[name])
        points = pd.DataFrame(curve.at(np.arange(0, LENGTH + MARGIN)), columns=["x", "y", "z"])
        points.round(4).to_csv(folder / names["centerline"], index=False)
        values = {name: f"{float(value[index]):.8g}" for name, value in phantoms.attributes.items()}
        rows.append({**names, "patient_id": case, "vessel": "lad", "split": "", **values})
    manifest = folder / "manifest.csv"
    pd.DataFrame(rows).to_csv(manifest, index=False)
    return manifest


def _course(rng: np.random.Generator) -> Centreline:
    """A smooth course over a heart's surface, a little longer than the vessel, in mm."""
    radius, pitch = rng.uniform(32, 45), rng.uniform(0.3, 0.6)
    sway, phase = rng.uniform(1.0, 2.5, size=2), rng.uniform(0, 2 * np.pi, size=2)
    t = np.linspace(0, LENGTH + 2 * MARGIN, 80)
    turn = t / np.hypot(radius, radius * pitch)
    outwards = radius + sway[0] * np.sin(2 * np.pi * t / 40 + phase[0])
    up = radius * pitch * turn + sway[1] * np.sin(2 * np.pi * t / 44 + phase[1])
    away = rng.uniform(-60, 60, size=3)
    return Centreline(np.stack([outwards * np.cos(turn), outwards * np.sin(turn), up], 1) + away)


def _oblique(rng: np.random.Generator, spacing: tuple[float, float, float]) -> Floats:
    """Voxel axes in world coordinates, (3, 3), mm: close to a scanner's, the first two pointing left and posterior."""
    around, lean = rng.uniform(-0.3, 0.3, size=2)
    turn = [[np.cos(around), -np.sin(around), 0], [np.sin(around), np.cos(around), 0], [0, 0, 1]]
    tilt = [[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]]
    axes: Floats = np.array(turn) @ np.array(tilt) @ np.diag([-1, -1, 1]) @ np.diag(spacing)
    return axes


def _bend(
    phantoms: CoronaryPhantomDataset,
    index: int,
    curve: Centreline,
    axes: Floats,
    noise: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Floats]:
    """Image, label map and affine of one subject around its curve."""
    s = np.arange(-REACH, LENGTH + MARGIN + REACH, ARC_STEP)
    frames = Frames.along(curve, s)
    voxels, low, shape = _around(frames.points, axes)
    away, nearest = cKDTree(frames.points).query((voxels + low) @ axes.T, distance_upper_bound=REACH)
    near = np.isfinite(away)
    voxels, nearest = voxels[near], nearest[near]
    hu, label = np.full(shape, FAR), np.zeros(shape, np.uint8)
    at, pixel = tuple(voxels.T), float(np.linalg.norm(axes, axis=0).min())
    hu[at], label[at] = _paint(phantoms, index, frames, s, (voxels + low) @ axes.T, nearest, pixel)
    grain = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.8)
    image = (hu + grain * (noise / grain.std())).round().clip(-1024, 3071).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, axes @ low
    return image, label, affine


def _around(points: Floats, axes: Floats) -> tuple[NDArray[np.int64], Floats, tuple[int, int, int]]:
    """Indices of voxels in boxes around the points, (P, 3), the volume's corner and its shape."""
    centres = points @ np.linalg.inv(axes).T
    reach = REACH / np.linalg.norm(axes, axis=0)
    low = np.floor(centres.min(axis=0) - reach)
    x, y, z = (np.ceil(centres.max(axis=0) + reach) - low).astype(int) + 1
    boxes = np.zeros((x, y, z), bool)
    for centre in centres[:: int(1 / ARC_STEP)]:
        first, last = np.floor(centre - low - reach).astype(int), np.ceil(centre - low + reach).astype(int) + 1
        boxes[tuple(slice(a, b) for a, b in zip(first.clip(0), last, strict=True))] = True
    return np.argwhere(boxes), low, (int(x), int(y), int(z))


def _paint(
    phantoms: CoronaryPhantomDataset,
    index: int,
    frames: Frames,
    s: Floats,
    world: Floats,
    nearest: NDArray[np.int64],
    pixel: float,
) -> tuple[Floats, NDArray[np.uint8]]:
    """Attenuation and labels at points (P, 3); ``nearest`` (P,) is the index of the closest point on the vessel."""
    offset = world - frames.points[nearest]
    along = s[nearest] + (offset * frames.tangents[nearest]).sum(axis=1)
    x, y = ((offset * axes[nearest]).sum(axis=1) for axes in (frames.normals, frames.binormals))
    hu, label = phantoms.paint(index, torch.from_numpy(along), torch.from_numpy(x), torch.from_numpy(y), pixel)
    return hu.double().numpy(), label.numpy()
