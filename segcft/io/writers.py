"""Writing an edited image in the format, pixel grid and bit depth of its source file (NumPy, no torch)."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from segcft.core.atomic_files import staged
from segcft.io.deidentify import anonymous_header, kind_of, pseudonym, without_identity
from segcft.io.dicom import levels_of, open_dicom, stored_pixels
from segcft.io.formats import SUFFIXES, format_of
from segcft.io.nifti import extensions, open_nifti, shown
from segcft.io.orientation import UPRIGHT, Turn, of_dicom, of_exif
from segcft.io.picture import NIFTI, Pixels, Window
from segcft.io.raster import FORMATS

Change = NDArray[np.float32]
BLOCK = 2**20  # pixels


def suffix(source: Path) -> str:
    """File suffix of an edited copy of ``source``, by its content; JPEG becomes PNG, which is lossless.

    Raises:
        ValueError: If it is no image.
    """
    if (found := format_of(source)) is None:
        raise ValueError(f"{source} is not PNG, JPEG, DICOM or NIfTI")
    return SUFFIXES[found]


def write_changed(
    source: Path, change: Change, target: Path, window: Window | None, note: str, identity: bool = False
) -> None:
    """Write ``source`` plus a change, atomically; pixels whose change is 0 keep their stored value exactly.

    PNG and JPEG become PNG of the same mode; all colour channels change equally. DICOM becomes a derived image in a new
    series with new UIDs and a note of what was done. Levels are mapped back by the inverse of window, VOI and rescale.
    NIfTI keeps its affine and stored data type. Of everything else only what ``deidentify`` lists is copied.

    Args:
        source: The file that ``read_picture`` read.
        change: Added to the levels that ``read_picture`` returned, (*S); 0 leaves a pixel unchanged.
        target: Output path; its suffix must be ``suffix(source)``.
        window: The window that was given to ``read_picture``.
        note: Description of what was done, one sentence.
        identity: Keep DICOM tags, NIfTI extensions and text, PNG text and colour profile, which may name the patient.

    Raises:
        ValueError: If the format cannot store the change.
    """
    write: Callable[..., None] = {".png": _png, ".dcm": _dicom}.get(suffix(source), _nifti)
    try:
        with staged(target) as path:
            write(source, change, path, window, note, identity)
    except (AttributeError, NotImplementedError, TypeError) as error:  # raised by libraries that cannot write the file
        raise ValueError(f"{source} cannot be written with a change: {error}") from error


def write_mask(source: Path, mask: NDArray[np.bool_], target: Path) -> None:
    """Write a mask (*S) of what ``read_picture`` returned for ``source``: NIfTI, or PNG with 0 and 255.

    The mask of a DICOM lies on its stored pixels, as a PNG does not state its orientation in the patient.
    """
    with staged(target) as path:
        if suffix(source) == ".dcm":
            mask = _turn(open_dicom(source, stop_before_pixels=True)).store(mask)
        if suffix(source) not in NIFTI:
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(path, format="PNG")
            return
        with open_nifti(source) as image:
            voxels = np.zeros(image.shape, np.uint8)
            _shown(voxels, image.affine)[...] = mask
            made = nibabel.Nifti1Image(voxels, image.affine)
            made.header.set_xyzt_units(image.header.get_xyzt_units()[0])
        path.write_bytes(gzip.compress(made.to_bytes(), mtime=0))


def mask_path(target: Path, structure: str) -> Path:
    """Path of a structure's mask, next to its image."""
    stem, end = target.name.partition(".")[0], ".nii.gz" if target.name.endswith(NIFTI) else ".png"
    return target.with_name(f"{stem}_{structure}{end}")


def _png(source: Path, change: Change, path: Path, window: Window | None, note: str, identity: bool) -> None:
    about = PngInfo()
    with Image.open(source, formats=FORMATS) as image:
        deep = image.mode.startswith("I;16")
        turn = of_exif(image)
        pixels = turn.show(np.asarray(image if deep or image.mode in ("L", "RGB") else image.convert("L")))
        kept = {name: image.info[name] for name in ("dpi", *(["icc_profile"] * identity)) if name in image.info}
        for name, text in (getattr(image, "text", {}) if identity else {}).items():
            about.add_text(name, text)
    if "dpi" in kept and turn.transposed:
        kept["dpi"] = kept["dpi"][::-1]
    pixels = pixels.astype(np.uint16) if deep else pixels
    about.add_text("Description", note)
    added = _added(pixels, change if pixels.ndim == 2 else change[..., None])
    Image.fromarray(added).save(path, format="PNG", pnginfo=about, **kept)


def _dicom(source: Path, change: Change, path: Path, window: Window | None, note: str, identity: bool) -> None:
    data = open_dicom(source)
    stored = stored_pixels(data)
    if stored.dtype.kind not in "ui" or data.BitsStored > 16:
        raise ValueError(f"{source}: at most 16 bits a pixel can be written, not {data.BitsStored} of {stored.dtype}")
    low = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
    table = np.arange(low, low + 2**data.BitsStored, dtype=stored.dtype)
    back = _inverse(table, levels_of(data, window, table))
    change = _turn(data).store(change)
    moved = np.zeros(stored.shape, np.float32)
    for block in _blocks(stored):
        changed = change[block] != 0
        levels = levels_of(data, window, stored[block][changed]).astype(np.float64)
        moved[block][changed] = back(levels + change[block][changed]) - back(levels)
    added = _added(stored, moved).clip(table[0], table[-1])
    data.set_pixel_data(np.where(change == 0, stored, added), data.PhotometricInterpretation, data.BitsStored)
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        if name in data:
            delattr(data, name)
    if not identity:
        data = without_identity(data)
    _say_derived(data, open_dicom(source, stop_before_pixels=True), note, str if identity else pseudonym)
    data.save_as(path, enforce_file_format=True)


def _turn(data: Any) -> Turn:
    return of_dicom(data) or UPRIGHT


def _say_derived(data: Any, original: Any, note: str, named: Callable[[str], str]) -> None:
    """Set the tags of a derived image (DICOM PS3.3, C.7.6.1.1.2): a new series of the study, with its source's UID."""
    data.ImageType = ["DERIVED", "SECONDARY", *list(data.get("ImageType") or [])[2:]]
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[str(original.get("SeriesInstanceUID", generate_uid())), note])
    data.SeriesDescription = "Counterfactual (synthetic)"
    data.DerivationDescription = note[:1024]
    if "SOPInstanceUID" in original:
        item = Dataset()
        item.ReferencedSOPClassUID = kind_of(str(original.get("SOPClassUID", "")))
        item.ReferencedSOPInstanceUID = named(original.SOPInstanceUID)
        data.SourceImageSequence = [item]


def _inverse(stored: Pixels, levels: Pixels) -> Callable[[Pixels], Pixels]:
    """The inverse map, from levels to stored values; levels clipped by the window map to its edge, steps to slopes."""
    turns = np.flatnonzero(np.diff(levels.astype(np.float64)))
    if not len(turns):
        raise ValueError("every stored value maps to the same level: set another window")
    kept = np.union1d(turns, turns + 1)
    known, place = np.unique(levels[kept].astype(np.float64), return_inverse=True)
    mean = np.bincount(place, stored[kept].astype(np.float64)) / np.bincount(place)
    slopes = np.diff(mean) / np.diff(known)
    if np.ptp(slopes) < 1e-9 * abs(slopes[0]):  # mostly a straight line, which is faster than interpolation
        return lambda wanted: mean[0] + slopes[0] * (np.clip(wanted, known[0], known[-1]) - known[0])
    return lambda wanted: np.interp(wanted, known, mean)


def _nifti(source: Path, change: Change, path: Path, window: Window | None, note: str, identity: bool) -> None:
    with open_nifti(source) as image:
        stored, slope = np.array(image.dataobj.get_unscaled(), order="C"), float(image.dataobj.slope)
        view = _shown(stored, image.affine)
        view[...] = _added(view, change / np.float32(slope))
        header = image.header if identity else anonymous_header(image.header)
        changed = type(image)(stored, image.affine, header)
        changed.header.set_slope_inter(slope, float(image.dataobj.inter))  # explicit: voxels are stored unchanged
        changed.header.extensions[:] = extensions(image) if identity else []
    changed.header["descrip"] = note.encode("ascii", "replace")[:79]
    content = changed.to_bytes()
    path.write_bytes(gzip.compress(content, mtime=0) if suffix(source) == ".nii.gz" else content)


def _shown(stored: Pixels, affine: NDArray[np.float64]) -> Pixels:
    """A view of a NIfTI's voxels, C-contiguous, as ``read_picture`` returns them, (*S)."""
    return shown(stored.reshape((*stored.shape, 1, 1)[:3]), affine)


def _blocks(pixels: Pixels) -> Iterator[slice]:
    """Rows of an image, or planes of a volume, of about ``BLOCK`` pixels, so that little memory is taken at once."""
    step = max(1, BLOCK * len(pixels) // pixels.size)
    return (slice(start, start + step) for start in range(0, len(pixels), step))


def _added(pixels: Pixels, change: Change) -> Pixels:
    """Pixels plus their change, rounded and clipped to the data type; exactly unchanged where the change is 0."""
    added = np.array(pixels)
    for block in _blocks(pixels):
        result = np.add(pixels[block], change[block], dtype=np.float64)
        if pixels.dtype.kind in "ui":
            limits = np.iinfo(pixels.dtype)
            result = np.rint(result).clip(limits.min, limits.max)
        added[block] = np.where(change[block] == 0, pixels[block], result.astype(pixels.dtype))
    return added
