"""Writing an edited image in the format, pixel grid and bit depth of its source file (NumPy, no torch)."""

import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from segcft.core.atomic_files import staged
from segcft.io.deidentify import pseudonym, remove_identity
from segcft.io.dicom import dicom_levels
from segcft.io.nifti import shown
from segcft.io.orientation import UPRIGHT, Turn, of_dicom, of_exif
from segcft.io.picture import FILMS, NIFTI, Pixels, Window

Change = NDArray[np.float32]
FREE_TEXT = (
    "data_type",
    "db_name",
    "aux_file",
    "intent_name",
)  # free text of a NIfTI header; NIfTI-2 has the latter two


def suffix(source: Path) -> str:
    """File suffix of an edited copy of ``source``; JPEG becomes PNG, which is lossless."""
    name = source.name.lower()
    return next((end for end in reversed(NIFTI) if name.endswith(end)), ".png" if name.endswith(FILMS) else ".dcm")


def write_changed(
    source: Path, change: Change, target: Path, window: Window | None, note: str, identity: bool = False
) -> None:
    """Write ``source`` plus a change, atomically; pixels whose change is 0 keep their stored value exactly.

    PNG and JPEG become PNG of the same mode; all colour channels change equally. DICOM becomes a derived image in a new
    series with new UIDs and a note of what was done; it is de-identified by ``deidentify.remove_identity``. Levels are
    mapped back by the inverse of window, VOI and rescale. NIfTI keeps its affine and stored data type, and
    loses its extensions and free text.

    Args:
        source: The file that ``read_picture`` read.
        change: Added to the levels that ``read_picture`` returned, (*S); 0 leaves a pixel unchanged.
        target: Output path; its suffix must be ``suffix(source)``.
        window: The window that was given to ``read_picture``.
        note: Description of what was done, one sentence.
        identity: Keep all DICOM tags, NIfTI extensions and free text, including the patient's name.

    Raises:
        ValueError: If the format cannot store the change.
    """
    write: dict[str, Callable[..., None]] = {".png": _png, ".dcm": partial(_dicom, identity=identity)}
    try:
        with staged(target) as path:
            write.get(suffix(source), partial(_nifti, identity=identity))(source, change, path, window, note)
    except (AttributeError, NotImplementedError, TypeError) as error:  # raised by libraries that cannot write the file
        raise ValueError(f"{source} cannot be written with a change: {error}") from error


def write_mask(source: Path, mask: NDArray[np.bool_], target: Path) -> None:
    """Write a mask (*S) of what ``read_picture`` returned for ``source``: NIfTI, or PNG with 0 and 255.

    The mask of a DICOM lies on its stored pixels, as a PNG does not state its orientation in the patient.
    """
    with staged(target) as path:
        if suffix(source) == ".dcm":
            mask = _turn(pydicom.dcmread(source, stop_before_pixels=True)).store(mask)
        if suffix(source) not in NIFTI:
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(path, format="PNG")
            return
        image: Any = nibabel.load(source)
        voxels = np.zeros(int(np.prod(image.shape)), np.uint8)
        voxels[_places(image)] = mask
        made = nibabel.Nifti1Image(voxels.reshape(image.shape), image.affine)
        made.header.set_xyzt_units(image.header.get_xyzt_units()[0])
        path.write_bytes(gzip.compress(made.to_bytes(), mtime=0))


def mask_path(target: Path, structure: str) -> Path:
    """Path of a structure's mask, next to its image."""
    stem, end = target.name.partition(".")[0], ".nii.gz" if suffix(target) in NIFTI else ".png"
    return target.with_name(f"{stem}_{structure}{end}")


def _png(source: Path, change: Change, path: Path, window: Window | None, note: str) -> None:
    with Image.open(source) as image:
        deep = image.mode.startswith("I;16")
        turn = of_exif(image)
        pixels = turn.show(np.asarray(image if deep or image.mode in ("L", "RGB") else image.convert("L")))
        kept = {name: image.info[name] for name in ("dpi", "icc_profile") if name in image.info}
    if "dpi" in kept and turn.transposed:
        kept["dpi"] = kept["dpi"][::-1]
    pixels = pixels.astype(np.uint16) if deep else pixels
    about = PngInfo()
    about.add_text("Description", note)
    added = _added(pixels, change if pixels.ndim == 2 else change[..., None])
    Image.fromarray(added).save(path, format="PNG", pnginfo=about, **kept)


def _dicom(source: Path, change: Change, path: Path, window: Window | None, note: str, identity: bool) -> None:
    data: Any = pydicom.dcmread(source)
    stored = data.pixel_array
    if stored.dtype.kind not in "ui" or data.BitsStored > 16:
        raise ValueError(f"{source}: at most 16 bits a pixel can be written, not {data.BitsStored} of {stored.dtype}")
    low = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
    table = np.arange(low, low + 2**data.BitsStored, dtype=stored.dtype)
    back = _inverse(table, dicom_levels(data, window, table))
    change = _turn(data).store(change)
    changed = change != 0
    levels, moved = dicom_levels(data, window, stored)[changed].astype(np.float64), np.zeros(stored.shape, np.float32)
    moved[changed] = back(levels + change[changed]) - back(levels)
    added = _added(stored, moved).clip(table[0], table[-1])
    data.set_pixel_data(np.where(change == 0, stored, added), data.PhotometricInterpretation, data.BitsStored)
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        if name in data:
            delattr(data, name)
    if not identity:
        remove_identity(data)
    _say_derived(data, pydicom.dcmread(source, stop_before_pixels=True), note, str if identity else pseudonym)
    data.save_as(path, enforce_file_format=True)


def _turn(data: Any) -> Turn:
    return of_dicom(data) or UPRIGHT


def _say_derived(data: Any, original: Any, note: str, named: Callable[[str], str]) -> None:
    """Set the tags of a derived image (DICOM PS3.3, C.7.6.1.1.2): a new series of the study, with its source's UID."""
    data.ImageType = ["DERIVED", "SECONDARY", *list(original.get("ImageType") or [])[2:]]
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[str(original.get("SeriesInstanceUID", generate_uid())), note])
    data.SeriesDescription = "Counterfactual (synthetic)"
    data.DerivationDescription = note[:1024]
    if "SOPInstanceUID" in original:
        item = Dataset()
        item.ReferencedSOPClassUID = original.SOPClassUID
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
    image: Any = nibabel.load(source)
    stored, slope = np.array(image.dataobj.get_unscaled(), order="C"), float(image.dataobj.slope)
    places = _places(image)
    flat = stored.reshape(-1)
    flat[places] = _added(flat[places], change / np.float32(slope))
    changed = type(image)(stored, image.affine, image.header)
    changed.header.set_slope_inter(slope, float(image.dataobj.inter))  # explicit, so that voxels are stored unchanged
    if not identity:
        for name in set(FREE_TEXT) & set(changed.header):
            changed.header[name] = b""
        changed.header.extensions.clear()  # they may hold the DICOM tags
    changed.header["descrip"] = note.encode("ascii", "replace")[:79]
    content = changed.to_bytes()
    path.write_bytes(gzip.compress(content, mtime=0) if suffix(source) == ".nii.gz" else content)


def _places(image: Any) -> Pixels:
    """Flat index (C order) of the NIfTI voxel behind each pixel that ``read_picture`` returns, (*S)."""
    shape = (*image.shape, 1, 1)[:3]
    return shown(np.arange(np.prod(shape)).reshape(shape), image.affine)


def _added(pixels: Pixels, change: Change) -> Pixels:
    """Pixels plus their change, rounded and clipped to the data type; exactly unchanged where the change is 0."""
    result = pixels + change.astype(np.float64)
    if pixels.dtype.kind in "ui":
        limits = np.iinfo(pixels.dtype)
        result = np.rint(result).clip(limits.min, limits.max)
    return np.where(change == 0, pixels, result.astype(pixels.dtype))
