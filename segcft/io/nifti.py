"""Reading NIfTI: one image or volume, in display orientation."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from segcft.io.picture import LARGEST, Picture, Pixels, apart, corners_of

MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
ALIKE = 0.01  # tolerated relative difference of voxel volumes


def read_nifti(path: Path) -> Picture:
    """Read a volume reoriented to the closest RAS+ axes, or a 2-D image if there is one slice.

    Raises:
        ValueError: If it holds more than one volume, colours, or if its position is missing or contradictory.
    """
    image: Any = nibabel.load(path)
    shape, affine = position(image)
    turn = io_orientation(affine)
    levels = shown(np.asarray(image.dataobj).reshape(shape), affine)
    affine = affine @ inv_ornt_aff(turn, shape)
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    turned = apply_orientation(np.empty(shape, np.bool_), turn).shape
    if levels.ndim == 2:
        flat = _flat_axis(turned)
        spacing = tuple(side for axis, side in reversed(list(enumerate(spacing))) if axis != flat)
    return Picture(levels, spacing, affine, anatomical=True, corners=corners_of(affine, turned))


def position(image: Any) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape (X, Y, Z) of a nibabel image and its affine from voxel indices to RAS+ mm, (4, 4).

    Raises:
        ValueError: If it holds more than one volume, colours, or if its position is missing or contradictory.
    """
    if image.get_data_dtype().names:
        raise ValueError("it holds colours; grey levels are needed")
    shape = (*image.shape, 1, 1)[: max(3, len(image.shape))]
    if np.prod(shape, dtype=np.float64) > LARGEST or any(side > 1 for side in shape[3:]):
        raise ValueError(f"one image or volume of at most {LARGEST} voxels is needed, not shape {image.shape}")
    header, scale = image.header, np.diag([*[MILLIMETRES[image.header.get_xyzt_units()[0]]] * 3, 1.0])
    codes = {"sform": header["sform_code"], "qform": header["qform_code"]}
    stated = {name: scale @ getattr(header, f"get_{name}")() for name, code in codes.items() if code > 0}
    if not stated:
        raise ValueError("neither sform nor qform is set: orientation and position of this volume are unknown")
    affine, other = next(iter(stated.values())), stated.get("qform")
    check_affine(affine)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        other is not None
        and (far := apart(corners_of(affine, shape[:3]), corners_of(other, shape[:3]))) > sides.min() / 2
    ):
        raise ValueError(f"sform and qform place its corners up to {far:.1f} mm apart")
    declared = np.abs(np.asarray(header["pixdim"][1:4], float)) * scale[0, 0]
    volume = abs(np.linalg.det(affine[:3, :3]))
    if (declared > 0).all() and abs(volume / np.prod(declared) - 1) > ALIKE:
        raise ValueError(f"its affine has voxels of {volume:.4g} mm^3, its pixdim of {np.prod(declared):.4g}")
    return shape[:3], affine


def check_affine(affine: NDArray[np.float64]) -> None:
    """Check that an affine (4, 4) maps voxels to distinct places.

    Raises:
        ValueError: If it is not finite or has no inverse.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise ValueError(f"its affine has no inverse: {affine.tolist()}")


def shown(stored: Pixels, affine: NDArray[np.float64]) -> Pixels:
    """Voxels of a NIfTI (X, Y, Z) in the orientation of ``read_picture``: RAS+, or (H, W) if there is one slice."""
    levels: Pixels = apply_orientation(stored, io_orientation(affine))
    return levels if 1 not in levels.shape else levels.take(0, _flat_axis(levels.shape))[::-1, ::-1].T


def _flat_axis(shape: tuple[int, ...]) -> int:
    return 2 if shape[2] == 1 else shape.index(1)
