"""Reading coronary CT angiography: volumes (NIfTI, NRRD) and centrelines (CSV, SWC, text, VTP), in RAS+ mm."""

import math
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import nrrd
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segcft.io.csv_tables import numbers, read_columns
from segcft.io.nifti import CHUNK, check_affine, open_nifti, position
from segcft.io.picture import LARGEST

Floats = NDArray[np.float64]
WorldFrame = Literal["RAS", "LPS"]
LARGEST_VOXEL = 8  # bytes
CENTRELINE_SUFFIXES = (".csv", ".swc", ".txt", ".vtp")
_NRRD_SPACES = {  # signs that convert a space to RAS
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Volume:
    """A volume with its affine.

    Attributes:
        data: (X, Y, Z).
        affine: (4, 4), voxel indices -> RAS+ mm.
    """

    data: NDArray[Any]
    affine: Floats


@lru_cache(maxsize=2)  # image and label map are reused for all vessels and angles
def read_volume(path: Path) -> Volume:
    """Read a NIfTI (``.nii``, ``.nii.gz``) or NRRD (``.nrrd``) volume.

    Raises:
        ValueError: Naming the file, if it cannot be read, does not have three axes, or has no orientation.
    """
    shape, affine = read_header(path)
    try:
        if path.name.endswith(".nrrd"):
            _check_inflated(path, math.prod(shape))
            return Volume(_lean(nrrd.read(str(path), index_order="F")[0]), affine)
        with open_nifti(path) as image:
            return Volume(_lean(np.asanyarray(image.dataobj).reshape(shape)), affine)
    except (OSError, EOFError, ValueError, zlib.error, nrrd.NRRDError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_header(path: Path) -> tuple[tuple[int, ...], Floats]:
    """Shape (X, Y, Z) and affine to RAS+ mm, (4, 4), without reading voxels.

    Raises:
        ValueError: As ``read_volume``.
    """
    try:
        shape, affine = _nrrd_header(path) if path.name.endswith(".nrrd") else _nifti_header(path)
        check_affine(affine)
    except (OSError, EOFError, ValueError, zlib.error, nrrd.NRRDError) as error:
        raise ValueError(f"{path}: {error}") from error
    return shape, affine


def read_centreline(path: Path, frame: WorldFrame = "RAS") -> Floats:
    """Points of one vessel's centreline, in order, in RAS+ mm, (n, 3).

    ``.csv`` has columns x, y, z (others are ignored); ``.swc`` and ``.txt`` have rows ``id type x y z radius parent``
    in which every point's parent is the one before, or rows ``x y z [radius]``; ``.vtp`` is ASCII polydata with one
    line. Points run from proximal (the ostium) to distal, as ``CoronaryCTA`` shows the first millimetres.

    Args:
        path: The file.
        frame: World frame of its coordinates; ITK, VTK and NRRD files are often LPS.

    Raises:
        ValueError: Naming the file and, if applicable, row and field.
    """
    readers = {".csv": _csv_points, ".swc": _text_points, ".txt": _text_points, ".vtp": _vtp_points}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a centreline is one of {', '.join(CENTRELINE_SUFFIXES)}")
    try:
        points = readers[path.suffix](path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return points * ([-1, -1, 1] if frame == "LPS" else [1, 1, 1])


def _lean(data: NDArray[Any]) -> NDArray[Any]:
    """Convert float64 to float32 to save memory; other types are unchanged."""
    return data.astype(np.float32) if data.dtype == np.float64 else data


def _nifti_header(path: Path) -> tuple[tuple[int, ...], Floats]:
    with open_nifti(path) as image:
        if len(image.shape) < 3 or image.shape[3:] not in ((), (1,)):
            raise ValueError(f"a volume has three axes, this file has the shape {image.shape}")
        return position(image)


def _nrrd_header(path: Path) -> tuple[tuple[int, ...], Floats]:
    header = nrrd.read_header(str(path))
    _check_nrrd(header)
    directions, origin = header.get("space directions"), header.get("space origin")
    space = str(header.get("space", "")).lower()
    if space not in _NRRD_SPACES or directions is None or origin is None:
        raise ValueError(f"space {space!r} with directions and origin is needed among {', '.join(_NRRD_SPACES)}")
    if np.shape(directions) != (3, 3):
        raise ValueError(f"a volume has three axes, this file has space directions {np.asarray(directions).tolist()}")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.asarray(directions).T, origin
    affine[:3] *= np.array(_NRRD_SPACES[space])[:, None]
    return tuple(int(side) for side in header["sizes"]), affine


def _check_nrrd(header: Mapping[str, Any]) -> None:
    """Check that a file holds its own voxels, in a known encoding, and not too many.

    Raises:
        ValueError: If not.
    """
    if other := header.get("data file", header.get("datafile")):
        raise ValueError(f"its voxels are in another file, {other!r}: one file is needed")
    if header["encoding"] not in ("raw", "gzip", "gz"):
        raise ValueError(f"encoding {header['encoding']!r}: raw or gzip is needed")
    if math.prod(int(side) for side in header["sizes"]) > LARGEST:
        raise ValueError(f"its sizes {header['sizes'].tolist()} are more than {LARGEST} voxels")


def _check_inflated(path: Path, voxels: int) -> None:
    """Check that compressed voxels do not inflate to more than they can take, without keeping them.

    Raises:
        ValueError: If they do.
    """
    with path.open("rb") as file:
        if nrrd.read_header(file)["encoding"] == "raw":
            return
        inflating, count = zlib.decompressobj(zlib.MAX_WBITS | 16), 0
        while block := inflating.unconsumed_tail or file.read(CHUNK):
            count += len(inflating.decompress(block, CHUNK))
            if count > LARGEST_VOXEL * voxels:
                raise ValueError(f"it inflates to more than its {voxels} voxels can take")


def _csv_points(path: Path) -> Floats:
    table = pd.concat([pd.DataFrame(columns=["x", "y", "z"]), *read_columns(path, ["x", "y", "z"])])
    return np.stack([numbers(table, axis, path) for axis in "xyz"], axis=1)


def _text_points(path: Path) -> Floats:
    rows: list[list[float]] = []
    for count, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            rows.append([float(word) for word in words])
        except ValueError:
            raise ValueError(f"{path}, line {count}: numbers are needed, got {line.strip()[:100]!r}") from None
        if len(words) not in (3, 4, 7) or len(words) != len(rows[0]):
            raise ValueError(
                f"{path}, line {count}: x y z [radius], or id type x y z radius parent, got {line[:100]!r}"
            )
        if len(words) == 7 and len(rows) > 1 and rows[-1][6] != rows[-2][0]:
            raise ValueError(f"{path}, line {count}: parent {rows[-1][6]:g} is not the point before: one vessel a file")
    if not rows:
        raise ValueError(f"{path}: no points")
    return np.array(rows)[:, 2:5] if len(rows[0]) == 7 else np.array(rows)[:, :3]


def _vtp_points(path: Path) -> Floats:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: {error}") from error
    points = _vtp_array(path, root.find(".//Points/DataArray"), "Points").reshape(-1, 3)
    lines = root.findall(".//Lines/DataArray")
    ends = _vtp_array(path, next((a for a in lines if a.get("Name") == "offsets"), None), "Lines/offsets")
    order = _vtp_array(path, next((a for a in lines if a.get("Name") == "connectivity"), None), "Lines/connectivity")
    if len(ends) != 1:
        raise ValueError(f"{path}: {len(ends)} lines: one vessel a file")
    if len(order) == 0 or order.min() < 0 or order.max() >= len(points):
        raise ValueError(f"{path}: its line names points that are not there")
    line: Floats = points[order.astype(int)]
    return line


def _vtp_array(path: Path, element: ElementTree.Element | None, name: str) -> Floats:
    if element is None or element.get("format") != "ascii":
        raise ValueError(f"{path}: {name} is needed as an ASCII DataArray (in VTK: SetDataModeToAscii)")
    try:
        return np.array((element.text or "").split(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}, {name}: {error}") from error
