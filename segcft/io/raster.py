"""Reading PNG and JPEG: grey levels, labels and masks, in display orientation."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segcft.core.formatting import one_line
from segcft.io.formats import PNG
from segcft.io.orientation import of_exif
from segcft.io.picture import FLAT, Picture, Pixels

LONGEST = 2**15  # pixels per side, since it will be padded to a square
FORMATS = ("PNG", "JPEG")  # Pillow reads others by programs such as Ghostscript
COLOURED = (2, 6)  # PNG colour types of true colour


def read_image(path: Path, convert: Callable[[Any], Pixels]) -> Picture:
    """Read a PNG or JPEG, oriented by its EXIF tag.

    Args:
        path: The file.
        convert: Computes levels (H, W) from a Pillow image: ``luminance``, ``indices`` or ``brightness``.

    Raises:
        ValueError: If the file is missing, not an image, truncated, too large, or has more than 8 bits per colour.
    """
    if not os.path.isfile(path):
        raise ValueError(f"no image at {path}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > FLAT or max(image.size) > LONGEST:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.info["stored"] = depth(path)
            if image.info["stored"][0] == 16 and image.info["stored"][1] in COLOURED:
                raise ValueError("it has 16 bits a colour; grey of 8 or 16 bits or 8 bits a colour is needed")
            turn = of_exif(image)
            return Picture(turn.show(convert(image)), turn=turn)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        raise ValueError(f"{path} cannot be read as an image: {one_line(error)}") from error


def depth(path: Path) -> tuple[int, int]:
    """Bits per sample and colour type from a PNG's header; (8, -1) for other files."""
    with path.open("rb") as file:
        header = file.read(26)
    return (header[24], header[25]) if header.startswith(PNG) and len(header) == 26 else (8, -1)


def luminance(image: Any) -> Pixels:
    """Grey levels, (H, W), uint8 or uint16."""
    if image.mode in ("L", "RGB", "P", "1"):
        return np.asarray(image.convert("L"))
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    raise ValueError(f"it has pixels of mode {image.mode!r}; grey of 8 or 16 bits or RGB is needed")


def indices(image: Any) -> Pixels:
    """Labels as stored: palette indices, or levels of 0 to 1, 3 or 15 for 1, 2 or 4 bits; colours are refused."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    levels = np.asarray(image) if image.mode in ("P", "RGB") else luminance(image)
    if levels.ndim == 3:
        if (levels != levels[..., :1]).any():
            raise ValueError("it has colours; labels are grey levels or indices of a palette")
        return levels[..., 0]
    bits, kind = image.info["stored"]
    return levels // (255 // (2**bits - 1)) if kind == 0 and bits < 8 else levels  # Pillow spreads them over 8 bits


def brightness(image: Any) -> Pixels:
    """Levels of a mask: for a palette of two colours the brighter one is higher; otherwise as ``indices``."""
    stored = indices(image)
    if image.mode != "P" or len(np.unique(stored)) > 2:
        return stored
    levels = luminance(image)
    if len(np.unique(levels)) < len(np.unique(stored)):
        raise ValueError("its two colours are equally bright: which of them is the structure cannot be told")
    return levels
