"""Reading DICOM: one frame of grey levels, in display orientation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

from segcft.io.orientation import of_dicom
from segcft.io.picture import LARGEST, Picture, Pixels, Window

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def read_dicom(path: Path, grey: Callable[[Any], Pixels]) -> Picture:
    """Read a DICOM file with one frame; ``grey`` computes its levels from the data set.

    Raises:
        ValueError: If there are several frames, colours, or invalid values; the message names the tag.
    """
    data = pydicom.dcmread(path)
    frames = int(data.get("NumberOfFrames") or 1)
    if data.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2") or frames != 1:
        raise ValueError("one frame of grey levels is needed")
    if data.Rows * data.Columns > LARGEST:
        raise ValueError(f"{data.Rows} x {data.Columns} pixels are too many")
    if found := [name for name in GROUPS if name in data]:
        raise ValueError(f"it is an enhanced DICOM, whose {found[0]} holds slope, window and spacing: not supported")
    if data.get("RescaleSlope") is not None and float(data.RescaleSlope) == 0:
        raise ValueError("RescaleSlope is 0, which makes all levels the same")
    turn = of_dicom(data)
    spacing = pixel_spacing(data)
    if spacing and turn.transposed:
        spacing = (spacing[1], spacing[0])
    return Picture(turn.show(grey(data)), spacing, turn=turn, of_dicom=True)


def pixel_spacing(data: Any) -> tuple[float, float] | None:
    """Height and width of a pixel in mm; None if missing or 0.

    ImagerPixelSpacing refers to the detector, so it is divided by EstimatedRadiographicMagnificationFactor.
    """
    given, share = data.get("PixelSpacing"), 1.0
    if not given or not all(float(side) > 0 for side in given):
        given, share = data.get("ImagerPixelSpacing"), float(data.get("EstimatedRadiographicMagnificationFactor") or 1)
    if not given or not all(float(side) > 0 for side in given) or not share > 0:
        return None
    height, width = (float(side) / share for side in given)
    return height, width


def rescaled(data: Any, stored: Pixels | None = None) -> Pixels:
    """DICOM pixels after rescale slope and intercept, (H, W)."""
    stored = data.pixel_array if stored is None else stored
    levels = np.asarray(apply_modality_lut(stored, data))
    return stored if np.array_equal(stored, levels) else levels


def brightness(data: Any) -> Pixels:
    """Levels of a mask, inverted for MONOCHROME1 so that higher levels are brighter."""
    levels = rescaled(data)
    return levels.max() - levels if data.PhotometricInterpretation == "MONOCHROME1" else levels


def dicom_levels(data: Any, window: Window | None, stored: Pixels | None = None) -> Pixels:
    """Grey levels of a DICOM's pixels, or of the ``stored`` values given instead, (H, W); see ``read_picture``."""
    levels, inverted = rescaled(data, stored), data.PhotometricInterpretation == "MONOCHROME1"
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
