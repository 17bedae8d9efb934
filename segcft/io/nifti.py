"""Reading NIfTI: one image or volume, in display orientation."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Extension
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from numpy.typing import NDArray

from segcft.io.formats import GZIP, HEADER, nifti_version
from segcft.io.picture import LARGEST, Picture, Pixels, apart, corners_of

MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
ALIKE = 0.01  # tolerated relative difference of voxel volumes
MOST_BYTES = 2**30  # of voxels
MOST_BEFORE = 2**24  # bytes before the voxels: header and extensions
DEFLATED = 1032  # bytes that one byte of a gzip file can hold, at most
CHUNK = 2**20  # bytes


class Inflated(gzip.GzipFile):
    """A gzip file that is read into an array without a copy of it."""

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as there are bytes; their number."""
        view, place = memoryview(buffer).cast("B"), 0
        while place < len(view) and (read := super().readinto(view[place : place + CHUNK])):
            place += read
        return place


@contextmanager
def open_nifti(path: Path, largest: int = LARGEST) -> Iterator[Any]:
    """Open a NIfTI as a nibabel image without its extensions; what its header declares is checked, no voxel is read.

    Raises:
        ValueError: If it is no NIfTI, holds no grey levels, declares more voxels than ``largest``, is cut short, or
            its affine has no inverse.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP
    with Inflated(path, "rb") if zipped else path.open("rb") as file:
        block = file.read(HEADER)
        kind = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}.get(nifti_version(block))
        if kind is None:
            raise ValueError("it is no NIfTI of one file")
        try:
            header = kind.header_class(block[: kind.header_class.sizeof_hdr])
            _check_size(header, path.stat().st_size * (DEFLATED if zipped else 1), largest)
            affine = header.get_best_affine()
        except (HeaderDataError, HeaderTypeError) as error:
            raise ValueError(str(error)) from error
        check_affine(affine)
        yield kind(ArrayProxy(file, header.copy()), affine, header)


def _check_size(header: Any, capacity: int, largest: int) -> None:
    """Check what a NIfTI header declares.

    Args:
        header: Of nibabel.
        capacity: Bytes that the file can hold at most.
        largest: Number of voxels.

    Raises:
        ValueError: If it is no volume of real numbers, or is too large.
    """
    kind, shape = header.get_data_dtype(), header.get_data_shape()
    if kind.names:
        raise ValueError("it holds colours; grey levels are needed")
    if kind.kind not in "uif" or kind.itemsize > 8:
        raise ValueError(f"it holds {kind.name} numbers; integers or floats of at most 64 bits are needed")
    count = int(np.prod([float(side) for side in shape]))
    if min(shape, default=0) < 1 or count > largest or any(side > 1 for side in shape[3:]):
        raise ValueError(f"one image or volume of at most {largest} voxels is needed, not shape {shape}")
    if count * kind.itemsize > MOST_BYTES:
        raise ValueError(f"its voxels take {count * kind.itemsize} bytes, more than {MOST_BYTES}")
    if not 0 <= float(header["vox_offset"]) <= MOST_BEFORE:
        raise ValueError(f"its voxels start at byte {header['vox_offset']}: at most {MOST_BEFORE} may precede them")
    if int(header["vox_offset"]) + count * kind.itemsize > capacity:
        raise ValueError(f"it is cut short: shape {shape} of {kind.name} does not fit into it")


def extensions(image: Any) -> list[Nifti1Extension]:
    """Header extensions of an image that ``open_nifti`` opened, as they are.

    Raises:
        ValueError: If they are damaged.
    """
    file, found = image.dataobj.file_like, []
    file.seek(image.header.sizeof_hdr)
    order: Any = "little" if image.header.endianness == "<" else "big"
    block = file.read(max(0, image.dataobj.offset - image.header.sizeof_hdr))
    rest = block[4:] if block[:1] != b"\0" else b""
    while len(rest) >= 16:
        size, code = (int.from_bytes(rest[at : at + 4], order, signed=True) for at in (0, 4))
        if not 8 <= size <= len(rest):
            raise ValueError(f"a header extension has {size} bytes")
        found.append(Nifti1Extension(code, rest[8:size]))
        rest = rest[size:]
    return found


def read_nifti(path: Path, largest: int = LARGEST) -> Picture:
    """Read a volume reoriented to the closest RAS+ axes, or a 2-D image if there is one slice.

    Raises:
        ValueError: As ``open_nifti``, or if its position is missing or contradictory.
    """
    with open_nifti(path, largest) as image:
        shape, affine = position(image)
        turn = io_orientation(affine)
        levels = shown(np.asarray(image.dataobj).reshape(shape), affine)
    affine = affine @ inv_ornt_aff(turn, shape)
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    turned = apply_orientation(np.empty(shape, np.bool_), turn).shape
    if levels.ndim == 2:
        flat = _flat_axis(turned)
        spacing = tuple(side for axis, side in reversed(list(enumerate(spacing))) if axis != flat)
    return Picture(levels, spacing, affine, anatomical=True, corners=corners_of(affine, turned))


def position(image: Any) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape (X, Y, Z) of a nibabel image and its affine from voxel indices to RAS+ mm, (4, 4).

    Raises:
        ValueError: If its position is missing or contradictory.
    """
    shape = (*image.shape, 1, 1)[:3]
    header, scale = image.header, np.diag([*[MILLIMETRES[image.header.get_xyzt_units()[0]]] * 3, 1.0])
    codes = {"sform": header["sform_code"], "qform": header["qform_code"]}
    stated = {name: scale @ getattr(header, f"get_{name}")() for name, code in codes.items() if code > 0}
    if not stated:
        raise ValueError("neither sform nor qform is set: orientation and position of this volume are unknown")
    affine, other = next(iter(stated.values())), stated.get("qform")
    check_affine(affine)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if other is not None and (far := apart(corners_of(affine, shape), corners_of(other, shape))) > sides.min() / 2:
        raise ValueError(f"sform and qform place its corners up to {far:.1f} mm apart")
    declared = np.abs(np.asarray(header["pixdim"][1:4], float)) * scale[0, 0]
    volume = abs(np.linalg.det(affine[:3, :3]))
    if (declared > 0).all() and abs(volume / np.prod(declared) - 1) > ALIKE:
        raise ValueError(f"its affine has voxels of {volume:.4g} mm^3, its pixdim of {np.prod(declared):.4g}")
    return shape, affine


def check_affine(affine: NDArray[np.float64]) -> None:
    """Check that an affine (4, 4) maps voxels to distinct places.

    Raises:
        ValueError: If it is not finite or has no inverse.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise ValueError(f"its affine has no inverse: {affine.tolist()}")


def shown(stored: Pixels, affine: NDArray[np.float64]) -> Pixels:
    """Voxels of a NIfTI (X, Y, Z) in the orientation of ``read_picture``: RAS+, or (H, W) if there is one slice.

    The result is a view: what is assigned to it is assigned to ``stored``.
    """
    levels: Pixels = apply_orientation(stored, io_orientation(affine))
    return levels if 1 not in levels.shape else np.moveaxis(levels, _flat_axis(levels.shape), 0)[0, ::-1, ::-1].T


def _flat_axis(shape: tuple[int, ...]) -> int:
    return 2 if shape[2] == 1 else shape.index(1)
