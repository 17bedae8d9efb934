"""Reading grey levels, labels or masks from PNG, JPEG, DICOM and NIfTI; every error is a ValueError naming the file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segcft.core.formatting import one_line
from segcft.io import dicom, raster
from segcft.io.dicom import dicom_levels, read_dicom
from segcft.io.formats import format_of
from segcft.io.nifti import read_nifti
from segcft.io.picture import DICOM, FILMS, LARGEST, NIFTI, Picture, Pixels, Window, checked


def read_picture(path: Path, window: Window | None = None, largest: int = LARGEST) -> Picture:
    """Read the grey levels of an image.

    Without a window the result is uint8: 8-bit files are returned unchanged, DICOM is mapped by its own VOI LUT or
    window. With a window the levels are returned unchanged (DICOM: after rescale slope and intercept, so HU in CT).
    MONOCHROME1 is inverted: after the VOI mapping, or by reflecting the levels within the window.

    PNG and JPEG are oriented by their EXIF tag, DICOM such that the patient's left is on the right of the image
    (as stored if it states no orientation).
    Volumes are reoriented to the closest RAS+ axes. A NIfTI with one slice is a 2-D image: rows run from superior (or
    anterior) downwards and columns start at the patient's right, as radiographs are displayed.

    Args:
        path: PNG, JPEG, DICOM, NIfTI or gzipped NIfTI; its content tells which, not its name.
        window: The levels that will be shown as black and as white.
        largest: Voxels of a volume; its header is refused before any voxel is read.

    Raises:
        ValueError: If the file is missing, truncated, too large, flat or of unknown format, or has more than 8 bits and
            no window is given.
    """
    picture = _open(path, lambda data: dicom_levels(data, window), raster.luminance, largest)
    if window is None and picture.levels.dtype != np.uint8:
        raise ValueError(f"{path} holds {picture.levels.dtype} levels and states no window: set window: [low, high]")
    if picture.levels.min() == picture.levels.max():
        raise ValueError(f"{path} is flat: all of its pixels are {picture.levels.flat[0]}")
    return picture


def read_labels(path: Path) -> Picture:
    """Read the labels of a label map, as stored, as int32; formats and orientation are those of ``read_picture``.

    Raises:
        ValueError: As ``read_picture``, and if a label is not a whole number or is a colour.
    """
    return _whole(path, _open(path, dicom.rescaled, raster.indices))


def read_mask(path: Path) -> Picture:
    """Read a mask as bool: the brighter of its two levels is the structure; formats as ``read_picture``.

    Raises:
        ValueError: As ``read_labels``, and if there are more than two levels.
    """
    picture = _whole(path, _open(path, dicom.brightness, raster.brightness))
    found = np.unique(picture.levels)
    if len(found) > 2 or found.min() < 0:
        raise ValueError(f"{path} is not a binary mask: it holds {len(found)} levels, {found[:5].tolist()} ...")
    picture.levels = picture.levels > (found[0] if len(found) == 2 else 0)
    return picture


def is_picture(path: Path) -> bool:
    """Whether a file is an image by its content, or calls itself one by its name."""
    if path.name.lower().endswith((*FILMS, *NIFTI)) or format_of(path) in ("raster", "nifti"):
        return True
    return is_dicom(path) and dicom.has_image(path)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, judged by its name or its first bytes."""
    return path.name.lower().endswith(DICOM) or format_of(path) == "dicom"


def read_grey(path: str | Path) -> Pixels:
    """Read a PNG or JPEG as grey levels in display orientation, (H, W), uint8 or uint16.

    Raises:
        ValueError: If the file is missing, not an image, truncated or too large.
    """
    return raster.read_image(Path(path), raster.luminance).levels


def _open(
    path: Path, grey: Callable[[Any], Pixels], convert: Callable[[Any], Pixels], largest: int = LARGEST
) -> Picture:
    """Read a file of any format; ``grey`` extracts the levels of a DICOM, ``convert`` those of a PNG or JPEG."""
    if not os.path.isfile(path):
        raise ValueError(f"no image at {path}")
    kind = format_of(path)
    if kind == "raster":
        return raster.read_image(path, convert)
    try:
        if kind is None:
            raise ValueError("its content is not PNG, JPEG, DICOM or NIfTI")
        return checked(read_dicom(path, grey) if kind == "dicom" else read_nifti(path, largest))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        raise ValueError(f"{path} cannot be read as an image: {one_line(error)}") from error


def _whole(path: Path, picture: Picture) -> Picture:
    labels = picture.levels.astype(np.int32)
    if (labels != picture.levels).any():
        raise ValueError(f"{path} holds levels that are not whole numbers, so it is not a label map")
    picture.levels = labels
    return picture
