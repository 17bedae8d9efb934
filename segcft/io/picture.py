"""The contents of an image file, and checks on them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcft.io.orientation import UPRIGHT, Turn

Pixels = NDArray[Any]
Window = tuple[float, float]

LARGEST = 2**28  # pixels or voxels; a file that declares more is rejected as damaged or malicious
FILMS, DICOM, NIFTI = (".png", ".jpg", ".jpeg"), (".dcm", ".dicom"), (".nii", ".nii.gz")


@dataclass
class Picture:
    """The contents of one image file.

    Attributes:
        levels: Grey levels or labels in display orientation, (*S).
        spacing: Pixel size along each axis in mm; None if the file does not state it.
        affine: Maps voxel indices to RAS+ coordinates in mm, (4, 4); None if the file does not state it.
        turn: Orientation of the stored pixels relative to ``levels``, for PNG, JPEG and DICOM.
        of_dicom: Whether the file is DICOM, so that ``turn`` refers to the patient and not to the camera.
        corners: Corners of the volume in RAS+ mm, (8, 3); None if the file does not state its position.
    """

    levels: Pixels
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    turn: Turn = field(default=UPRIGHT)
    of_dicom: bool = False
    corners: NDArray[np.float64] | None = None


def checked(picture: Picture) -> Picture:
    """Check a picture, and return it.

    Raises:
        ValueError: If it is not an image or volume, has levels that are not finite, or a spacing that is not positive.
    """
    if picture.levels.ndim not in (2, 3) or not picture.levels.size:
        raise ValueError(f"an image or a volume is needed, not shape {picture.levels.shape}")
    if picture.levels.dtype.kind not in "uif" or not np.isfinite(picture.levels).all():
        raise ValueError("some levels are not finite numbers")
    if picture.spacing is not None and not all(0 < side < np.inf for side in picture.spacing):
        raise ValueError(f"the spacing {picture.spacing} mm is not positive")
    return picture


def apart(one: Picture, other: Picture) -> float | None:
    """Largest distance between the same corners of two volumes, mm; None if one does not state its position."""
    if one.corners is None or other.corners is None:
        return None
    return float(np.linalg.norm(one.corners - other.corners, axis=1).max())
