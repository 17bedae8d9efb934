"""Reading DICOM: one frame of grey levels, in display orientation."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import DeflatedExplicitVRLittleEndian

from segcft.io.codestreams import check_codestream
from segcft.io.orientation import UPRIGHT, of_dicom
from segcft.io.picture import FLAT, Picture, Pixels, Window

ITEM = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # tag of an item of a sequence, in both byte orders
MOST_ITEMS = 100_000  # of a file; each takes about 800 bytes of memory
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote tags, which name patients
UNTURNED = "the DICOM file states no orientation: it is taken as stored, the patient's left on the right of the image"
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def read_dicom(path: Path, grey: Callable[[Any], Pixels]) -> Picture:
    """Read a DICOM file with one frame; ``grey`` computes its levels from the data set.

    Raises:
        ValueError: If there are several frames, colours, or invalid values; the message names the tag.
    """
    data = open_dicom(path)
    turn = of_dicom(data)
    shown, spacing = turn or UPRIGHT, pixel_spacing(data)
    if spacing and shown.transposed:
        spacing = (spacing[1], spacing[0])
    doubts = (UNTURNED,) if turn is None else ()
    return Picture(shown.show(grey(data)), spacing, turn=shown, anatomical=turn is not None, doubts=doubts)


def _check(data: Any) -> None:
    """Check that a data set is one frame of grey levels of a tolerable size, and that its levels are known."""
    if "Rows" not in data:
        kind = data.file_meta.get("MediaStorageSOPClassUID")
        raise ValueError(f"it holds no image, but {kind.name if kind else 'other data'}")
    frames = int(data.get("NumberOfFrames") or 1)
    if data.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2") or frames != 1:
        raise ValueError("one frame of grey levels is needed")
    if data.SamplesPerPixel != 1:
        raise ValueError(f"SamplesPerPixel is {data.SamplesPerPixel}, one grey level a pixel is needed")
    if data.Rows * data.Columns > FLAT:
        raise ValueError(f"{data.Rows} x {data.Columns} pixels are too many")
    _check_levels(data)


def _check_levels(data: Any) -> None:
    """Check that the levels of a data set are known from its own tags."""
    if found := [name for name in GROUPS if name in data]:
        raise ValueError(f"it is an enhanced DICOM, whose {found[0]} holds slope, window and spacing: not supported")
    if data.get("RescaleSlope") is not None and float(data.RescaleSlope) == 0:
        raise ValueError("RescaleSlope is 0, which makes all levels the same")
    if data.HighBit != data.BitsStored - 1:
        raise ValueError(f"HighBit {data.HighBit} does not fit BitsStored {data.BitsStored}: the levels are not known")


def open_dicom(path: Path, **options: Any) -> Any:
    """Open a DICOM file as a pydicom data set; ``options`` are those of ``pydicom.dcmread``.

    Raises:
        ValueError: If it is deflated, which may fill the memory, or has more than ``MOST_ITEMS`` items of sequences.
    """
    if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise ValueError("it is compressed by deflate, which is not supported: convert it to another transfer syntax")
    content = path.read_bytes()
    if max(map(content.count, ITEM)) > MOST_ITEMS:
        raise ValueError(f"its sequences have more than {MOST_ITEMS} items")
    return pydicom.dcmread(BytesIO(content), **options)


def stored_pixels(data: Any) -> Pixels:
    """Pixels of a data set as stored, (H, W).

    Raises:
        ValueError: If it is not one frame of grey levels, is too large, or its compressed pixels have another size than
            its tags state.
    """
    _check(data)
    check_codestream(data)
    stored: Pixels = data.pixel_array
    return stored


def has_image(path: Path) -> bool:
    """Whether a DICOM file holds an image, unlike a DICOMDIR, a report or a presentation state; True if damaged."""
    try:
        return "Rows" in open_dicom(path, stop_before_pixels=True, specific_tags=["Rows"])
    except Exception:  # pydicom raises all kinds of errors on damaged files; reading the file names the damage
        return True


def pixel_spacing(data: Any) -> tuple[float, float] | None:
    """Height and width of a pixel in the patient, mm; None if missing or 0.

    ImagerPixelSpacing refers to the detector, so it is divided by EstimatedRadiographicMagnificationFactor; so is a
    PixelSpacing that only repeats it without a PixelSpacingCalibrationType (DICOM PS3.3, 10.7.1.3).

    Raises:
        ValueError: If the magnification is below 1.
    """
    given, detector = _sides(data, "PixelSpacing"), _sides(data, "ImagerPixelSpacing")
    if given and (given != detector or data.get("PixelSpacingCalibrationType")):
        return given
    factor = float(data.get("EstimatedRadiographicMagnificationFactor") or 1)
    if not factor >= 1:
        raise ValueError(f"EstimatedRadiographicMagnificationFactor is {factor:g}, which is below 1")
    return (detector[0] / factor, detector[1] / factor) if detector else None


def _sides(data: Any, name: str) -> tuple[float, float] | None:
    """A tag's two sides of a pixel; None if it is missing or 0."""
    sides = [float(side) for side in data.get(name) or []]
    return (sides[0], sides[1]) if len(sides) == 2 and all(side > 0 for side in sides) else None


def rescaled(data: Any, stored: Pixels | None = None) -> Pixels:
    """DICOM pixels after rescale slope and intercept, (H, W)."""
    stored = stored_pixels(data) if stored is None else stored
    levels = np.asarray(apply_modality_lut(stored, data))
    return stored if np.array_equal(stored, levels) else levels


def brightness(data: Any) -> Pixels:
    """Levels of a mask, inverted for MONOCHROME1 so that higher levels are brighter."""
    levels = rescaled(data)
    return levels.max() - levels if data.PhotometricInterpretation == "MONOCHROME1" else levels


def dicom_levels(data: Any, window: Window | None) -> Pixels:
    """Grey levels of a DICOM's pixels, (H, W); see ``read_picture``."""
    stored = stored_pixels(data)
    if stored.dtype.kind not in "ui" or stored.itemsize > 2:
        return levels_of(data, window, stored)
    low, unsigned = stored.min(), np.dtype(f"u{stored.itemsize}")
    table = np.arange(int(low), int(stored.max()) + 1, dtype=stored.dtype)
    levels: Pixels = levels_of(data, window, table)[stored.view(unsigned) - low.view(unsigned)]  # modulo 2^8 or 2^16
    return levels


def levels_of(data: Any, window: Window | None, stored: Pixels) -> Pixels:
    """Grey levels of stored values, (*S), as a DICOM's tags map them."""
    levels, inverted = rescaled(data, stored), data.PhotometricInterpretation == "MONOCHROME1"
    if window is not None:
        return window[0] + window[1] - levels.astype(np.float32) if inverted else levels
    if data.get("VOILUTSequence"):
        levels = _to_bytes(apply_voi(levels, data), 0, 2.0 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    elif data.get("WindowWidth") is not None:
        with np.errstate(over="ignore"):  # a sigmoid's far ends
            low, high = apply_windowing(np.array([-1e12, 1e12]), data).tolist()
            levels = _to_bytes(apply_windowing(levels, data), low, high)
    return 255 - levels if inverted and levels.dtype == np.uint8 else levels


def _to_bytes(levels: Pixels, low: float, high: float) -> Pixels:
    return np.rint(255 * (levels.astype(np.float64) - low) / (high - low)).clip(0, 255).astype(np.uint8)
