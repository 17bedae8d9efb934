"""The contents of an image file, and checks on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcft.io.orientation import UPRIGHT, Turn

Pixels = NDArray[Any]
Window = tuple[float, float]

LARGEST, FLAT = 2**28, 2**26  # voxels of a volume, pixels of an image; what declares more is damaged or malicious
DISPLACED = 0.25  # voxels between a mask and its image; half a voxel is a confusion of centres and edges
FILMS, DICOM, NIFTI = (".png", ".jpg", ".jpeg"), (".dcm", ".dicom"), (".nii", ".nii.gz")


@dataclass
class Picture:
    """The contents of one image file.

    Attributes:
        levels: Grey levels or labels in display orientation, (*S).
        spacing: Pixel size along each axis in mm; None if the file does not state it.
        affine: Maps voxel indices to RAS+ coordinates in mm, (4, 4); None if the file does not state it.
        turn: Orientation of the stored pixels relative to ``levels``, for PNG, JPEG and DICOM.
        anatomical: Whether the file states its orientation in the patient, by DICOM tags or a NIfTI affine.
        corners: Corners of the volume in RAS+ mm, (8, 3); None if the file does not state its position.
        doubts: What the file leaves open and should state, a sentence each.
    """

    levels: Pixels
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    turn: Turn = field(default=UPRIGHT)
    anatomical: bool = False
    corners: NDArray[np.float64] | None = None
    doubts: tuple[str, ...] = ()


def checked(picture: Picture) -> Picture:
    """Check a picture, and return it.

    Raises:
        ValueError: If it is not an image or volume, has levels that are not finite, or a spacing that is not positive.
    """
    if picture.levels.ndim not in (2, 3) or not picture.levels.size:
        raise ValueError(f"an image or a volume is needed, not shape {picture.levels.shape}")
    kind = picture.levels.dtype.kind
    if kind not in "uif" or (kind == "f" and not np.isfinite(picture.levels).all()):
        raise ValueError("some levels are not finite numbers")
    if picture.spacing is not None and not all(0 < side < np.inf for side in picture.spacing):
        raise ValueError(f"the spacing {picture.spacing} mm is not positive")
    return picture


def corners_of(affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """Outer corners of a volume of ``shape``, in mm, (8, 3)."""
    ends = np.array(list(product(*((-0.5, side - 0.5) for side in shape))))
    return np.asarray(ends @ affine[:3, :3].T + affine[:3, 3])


def apart(corners: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Largest distance between the same corners of two volumes, (8, 3) each, in their unit."""
    return float(np.linalg.norm(corners - others, axis=1).max())


def check_alike(corners: NDArray[np.float64], others: NDArray[np.float64], voxel: float) -> None:
    """Check that a mask lies on its image: no corner is further away than a quarter of a voxel's shortest side.

    Raises:
        ValueError: If it does not, with the distance in mm.
    """
    far = apart(corners, others)
    if not far <= DISPLACED * voxel:
        raise ValueError(f"it is not aligned with its image: their corners are up to {far:.2f} mm apart")
