"""Reading grey levels or labels from PNG, JPEG, DICOM and NIfTI; every error is a ValueError that names the file."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

Pixels = NDArray[Any]
Window = tuple[float, float]

LARGEST = 2**28  # pixels or voxels; a file that declares more is rejected as damaged or malicious
LONGEST = 2**15  # pixels per side of a PNG or JPEG, since it will be padded to a square
FILMS, DICOM, NIFTI = (".png", ".jpg", ".jpeg"), (".dcm", ".dicom"), (".nii", ".nii.gz")
MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}


@dataclass
class Picture:
    """The contents of one image file.

    Attributes:
        levels: Grey levels or labels, (*S).
        spacing: Pixel size along each axis in mm; None if the file does not state it.
        affine: Maps voxel indices to RAS+ coordinates in mm, (4, 4); None if the file does not state it.
    """

    levels: Pixels
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None


def read_picture(path: Path, window: Window | None = None) -> Picture:
    """Read the grey levels of an image.

    Without a window the result is uint8: 8-bit files are returned unchanged, DICOM is mapped by its own VOI LUT or
    window. With a window the levels are returned unchanged (DICOM: after rescale slope and intercept, so HU in CT).
    MONOCHROME1 is inverted: after the VOI mapping, or by reflecting the levels within the window.

    Volumes are reoriented to the closest RAS+ axes. A NIfTI with one slice is a 2-D image: rows run from superior (or
    anterior) downwards and columns start at the patient's right, as radiographs are displayed.

    Args:
        path: ``.png``, ``.jpg``, ``.jpeg``, ``.dcm``, ``.dicom``, ``.nii`` or ``.nii.gz``.
        window: The levels that will be shown as black and as white.

    Raises:
        ValueError: If the file is missing, truncated, too large or of unknown format, or has more than 8 bits and no
            window is given.
    """
    picture = _open(path, lambda data: dicom_levels(data, window))
    if window is None and picture.levels.dtype != np.uint8:
        raise ValueError(f"{path} holds {picture.levels.dtype} levels and states no window: set window: [low, high]")
    return picture


def read_labels(path: Path) -> Picture:
    """Read the labels of a mask or label map as int32; formats and orientation are those of ``read_picture``.

    Raises:
        ValueError: As ``read_picture``, and if a label is not a whole number or is a colour.
    """
    picture = _open(path, _rescaled, _indices)
    labels = picture.levels.astype(np.int32)
    if (labels != picture.levels).any():
        raise ValueError(f"{path} holds levels that are not whole numbers, so it is not a label map")
    return Picture(labels, picture.spacing, picture.affine)


def is_picture(path: Path) -> bool:
    """Whether ``read_picture`` can read a file of this format, judged by its name or its first bytes."""
    name = path.name.lower()
    return name.endswith((*FILMS, *DICOM, *NIFTI)) or (_has_preamble(path))


def read_grey(path: str | Path) -> Pixels:
    """Read a PNG or JPEG as grey levels, (H, W), uint8 or uint16.

    Raises:
        ValueError: If the file is missing, not an image, truncated or too large.
    """
    return _read_image(Path(path), _luminance)


def _read_image(path: Path, convert: Callable[[Any], Pixels]) -> Pixels:
    if not os.path.isfile(path):
        raise ValueError(f"no image at {path}")
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST or max(image.size) > LONGEST:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            return convert(image)
    except Exception as error:  # decoders raise whatever comes to mind on damaged files
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _luminance(image: Any) -> Pixels:
    if image.mode in ("L", "RGB", "P", "1"):
        return np.asarray(image.convert("L"))
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    raise ValueError(f"it has pixels of mode {image.mode!r}; grey of 8 or 16 bits or RGB is needed")


def _indices(image: Any) -> Pixels:
    """Labels as stored: of a palette image the indices; an image with real colours is refused."""
    levels = np.asarray(image) if image.mode in ("P", "RGB") else _luminance(image)
    if levels.ndim == 3 and (levels != levels[..., :1]).any():
        raise ValueError("it has colours; labels are grey levels or indices of a palette")
    return levels[..., 0] if levels.ndim == 3 else levels


def _open(path: Path, grey: Callable[[Any], Pixels], convert: Callable[[Any], Pixels] = _luminance) -> Picture:
    """Read a file of any format; ``grey`` extracts the levels of a DICOM, ``convert`` those of a PNG or JPEG."""
    name = path.name.lower()
    if name.endswith(FILMS):
        return Picture(_read_image(path, convert))
    if not os.path.isfile(path):
        raise ValueError(f"no image at {path}")
    try:
        if name.endswith(NIFTI):
            picture = _read_nifti(path)
        elif name.endswith(DICOM) or _has_preamble(path):
            picture = _read_dicom(path, grey)
        else:
            raise ValueError("known are .png, .jpg, .jpeg, .dcm, .dicom, .nii, .nii.gz and DICOM of any name")
        return _checked(picture)
    except Exception as error:  # decoders raise whatever comes to mind on damaged files
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _has_preamble(path: Path) -> bool:
    """Whether a file has the DICOM preamble; archives often export DICOM files without a suffix."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _checked(picture: Picture) -> Picture:
    if picture.levels.ndim not in (2, 3) or not picture.levels.size:
        raise ValueError(f"an image or a volume is needed, not shape {picture.levels.shape}")
    if picture.levels.dtype.kind not in "uif" or not np.isfinite(picture.levels).all():
        raise ValueError("some levels are not finite numbers")
    if picture.spacing is not None and not all(0 < side < np.inf for side in picture.spacing):
        raise ValueError(f"the spacing {picture.spacing} mm is not positive")
    return picture


def _read_dicom(path: Path, grey: Callable[[Any], Pixels]) -> Picture:
    data = pydicom.dcmread(path)
    if (
        data.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2")
        or int(data.get("NumberOfFrames") or 1) != 1
    ):
        raise ValueError("one frame of grey levels is needed")
    if data.Rows * data.Columns > LARGEST:
        raise ValueError(f"{data.Rows} x {data.Columns} pixels are too many")
    spacing = data.get("PixelSpacing") or data.get("ImagerPixelSpacing")  # the second is measured at the detector
    return Picture(grey(data), tuple(float(side) for side in spacing) if spacing else None)


def _rescaled(data: Any, stored: Pixels | None = None) -> Pixels:
    """DICOM pixels after rescale slope and intercept, (H, W)."""
    stored = data.pixel_array if stored is None else stored
    levels = np.asarray(apply_modality_lut(stored, data))
    return stored if np.array_equal(stored, levels) else levels


def dicom_levels(data: Any, window: Window | None, stored: Pixels | None = None) -> Pixels:
    """Grey levels of a DICOM's pixels, or of the ``stored`` values given instead, (H, W); see ``read_picture``."""
    levels, inverted = _rescaled(data, stored), data.PhotometricInterpretation == "MONOCHROME1"
    if window is not None:
        return window[0] + window[1] - levels.astype(np.float32) if inverted else levels
    if data.get("VOILUTSequence"):
        levels = _to_bytes(apply_voi(levels, data), 0, 2.0 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    elif data.get("WindowWidth") is not None:
        low, high = apply_windowing(np.array([-1e12, 1e12]), data).tolist()
        levels = _to_bytes(apply_windowing(levels, data), low, high)
    return 255 - levels if inverted and levels.dtype == np.uint8 else levels


def _to_bytes(levels: Pixels, low: float, high: float) -> Pixels:
    return np.rint(255 * (levels.astype(np.float64) - low) / (high - low)).clip(0, 255).astype(np.uint8)


def _read_nifti(path: Path) -> Picture:
    image: Any = nibabel.load(path)
    shape = tuple(image.shape) + (1,) * (3 - len(image.shape))
    if np.prod(shape, dtype=np.float64) > LARGEST or any(side > 1 for side in shape[3:]):
        raise ValueError(f"one image or volume of at most {LARGEST} voxels is needed, not shape {image.shape}")
    shape, turn = shape[:3], io_orientation(image.affine)
    levels = shown(np.asarray(image.dataobj).reshape(shape), image.affine)
    affine = image.affine @ inv_ornt_aff(turn, shape)
    affine[:3] *= MILLIMETRES[image.header.get_xyzt_units()[0]]
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    if levels.ndim == 3:
        return Picture(levels, spacing, affine)
    flat = _flat_axis(apply_orientation(np.empty(shape, np.bool_), turn).shape)
    rows, columns = (side for axis, side in reversed(list(enumerate(spacing))) if axis != flat)
    return Picture(levels, (rows, columns), affine)


def shown(stored: Pixels, affine: NDArray[np.float64]) -> Pixels:
    """Voxels of a NIfTI (X, Y, Z) in the orientation of ``read_picture``: RAS+, or (H, W) if there is one slice."""
    levels: Pixels = apply_orientation(stored, io_orientation(affine))
    return levels if 1 not in levels.shape else levels.take(0, _flat_axis(levels.shape))[::-1, ::-1].T


def _flat_axis(shape: tuple[int, ...]) -> int:
    return 2 if shape[2] == 1 else shape.index(1)
