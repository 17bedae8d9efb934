"""Reading NIfTI: one image or volume, in display orientation."""

from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from segcft.io.picture import LARGEST, Picture, Pixels

MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
ALIKE = 0.01  # tolerated relative difference of voxel volumes


def read_nifti(path: Path) -> Picture:
    """Read a volume reoriented to the closest RAS+ axes, or a 2-D image if there is one slice.

    Raises:
        ValueError: If it holds more than one volume, colours, or if its position is missing or contradictory.
    """
    image: Any = nibabel.load(path)
    if image.get_data_dtype().names:
        raise ValueError("it holds colours; grey levels are needed")
    shape = tuple(image.shape) + (1,) * (3 - len(image.shape))
    if np.prod(shape, dtype=np.float64) > LARGEST or any(side > 1 for side in shape[3:]):
        raise ValueError(f"one image or volume of at most {LARGEST} voxels is needed, not shape {image.shape}")
    check_position(image.header, shape[:3])
    shape, turn = shape[:3], io_orientation(image.affine)
    levels = shown(np.asarray(image.dataobj).reshape(shape), image.affine)
    affine = image.affine @ inv_ornt_aff(turn, shape)
    affine[:3] *= MILLIMETRES[image.header.get_xyzt_units()[0]]
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    turned = apply_orientation(np.empty(shape, np.bool_), turn).shape
    corners = corners_of(affine, turned)
    if levels.ndim == 3:
        return Picture(levels, spacing, affine, corners=corners)
    flat = _flat_axis(turned)
    rows, columns = (side for axis, side in reversed(list(enumerate(spacing))) if axis != flat)
    return Picture(levels, (rows, columns), affine, corners=corners)


def check_position(header: Any, shape: tuple[int, ...]) -> None:
    """Check that a header states the volume's position, without contradictions.

    Raises:
        ValueError: If neither sform nor qform is set, or they, or pixdim, contradict each other.
    """
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not (sform or qform):
        raise ValueError("neither sform nor qform is set: orientation and position of this volume are unknown")
    if sform and qform:
        far = np.linalg.norm(corners_of(header.get_sform(), shape) - corners_of(header.get_qform(), shape), axis=1)
        if far.max() > min(np.linalg.norm(header.get_sform()[:3, :3], axis=0)) / 2:
            raise ValueError(f"sform and qform place its corners up to {far.max():.1f} mm apart")
    sides = np.abs(np.asarray(header["pixdim"][1:4], float))
    volume = abs(np.linalg.det((header.get_sform() if sform else header.get_qform())[:3, :3]))
    if (sides > 0).all() and abs(volume / np.prod(sides) - 1) > ALIKE:
        raise ValueError(f"its affine has voxels of {volume:.4g} mm^3, its pixdim of {np.prod(sides):.4g}")


def corners_of(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Outer corners of a volume of ``shape``, in mm, (8, 3)."""
    ends = np.array(list(product(*((-0.5, side - 0.5) for side in shape))))
    return np.asarray(ends @ affine[:3, :3].T + affine[:3, 3])


def shown(stored: Pixels, affine: NDArray[np.float64]) -> Pixels:
    """Voxels of a NIfTI (X, Y, Z) in the orientation of ``read_picture``: RAS+, or (H, W) if there is one slice."""
    levels: Pixels = apply_orientation(stored, io_orientation(affine))
    return levels if 1 not in levels.shape else levels.take(0, _flat_axis(levels.shape))[::-1, ::-1].T


def _flat_axis(shape: tuple[int, ...]) -> int:
    return 2 if shape[2] == 1 else shape.index(1)
