"""CheXmask: anatomical masks of public chest radiographs as run lengths in a CSV (Gaggion et al., 2024).

Every run is a pair ``start length``: starts count from 1, pixels run row by row (C order). ``Left Lung`` is the
patient's left, which lies on the right of the image. Areas come from the lengths; nothing is decoded for them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.tables import bad_cell, header, numbers, read_columns, refuse

log = logging.getLogger(__name__)

COLUMNS = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}
ID_COLUMNS = ("Path", "dicom_id", "ImageID", "Image Index", "image_id")
QUALITY = "Dice RCA (Mean)"
LONGEST_SIDE = 2**15  # pixels; a run then always fits 32 bits

Runs = NDArray[np.int32]  # (2R,): start, length, start, length, ...


def parse(text: str, pixels: int) -> Runs:
    """Run lengths as written -> checked numbers.

    Args:
        text: ``start length start length ...``, starts from 1.
        pixels: Height x Width of the mask.

    Returns:
        (2R,) int32.

    Raises:
        ValueError: If an entry is no integer, the count is odd, or runs are empty, overlap or leave the image.
    """
    try:
        values = np.fromstring(text, dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        values = np.empty(0, np.int64)
    if len(values) != text.count(" ") + 1:  # spelt unusually or wrongly: the slow way knows which
        values = np.array([_integer(word) for word in text.split()], dtype=np.int64)
    if len(values) % 2:
        raise ValueError(f"{len(values)} entries are not pairs of start and length")
    starts, lengths = values[::2], values[1::2]
    if (starts < 1).any():
        raise ValueError(f"a run starts at {starts.min()}, but the first pixel is 1")
    if (lengths < 1).any():
        raise ValueError(f"a run is {lengths.min()} pixels long")
    _check_order(starts, lengths, pixels)
    return values.astype(np.int32)


def _integer(word: str) -> int:
    try:
        return min(int(word), 2**62)
    except ValueError:
        raise ValueError(f"{word!r} is not an integer") from None


def _check_order(starts: NDArray[np.int64], lengths: NDArray[np.int64], pixels: int) -> None:
    outside = (starts > pixels) | (lengths > pixels) | (starts - 1 > pixels - lengths)
    if outside.any():
        start, length = starts[outside][0], lengths[outside][0]
        raise ValueError(f"the run {start} {length} leaves the image of Height x Width = {pixels} pixels")
    behind = starts[1:] < starts[:-1] + lengths[:-1]
    if behind.any():
        raise ValueError(f"the run at {starts[1:][behind][0]} overlaps the one before it, or the runs are not sorted")


def decode(runs: Runs, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Checked runs (2R,) -> mask (H, W) in {0, 1}."""
    starts, lengths = runs[::2].astype(np.int64) - 1, runs[1::2]
    edges = np.stack([starts, starts + lengths], 1).ravel()
    gaps = np.diff(edges, prepend=0, append=shape[0] * shape[1])  # outside, inside, outside, ...
    inside = np.arange(len(gaps), dtype=np.uint8) & 1
    return np.repeat(inside, gaps).reshape(shape[0], shape[1])


def encode(mask: NDArray[np.generic]) -> str:
    """Mask (H, W) -> run lengths as CheXmask writes them; empty for an empty mask."""
    padded = np.concatenate([[False], mask.astype(bool).ravel(), [False]])
    runs = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    runs[1::2] -= runs[::2]
    return " ".join(map(str, runs.tolist()))


@dataclass(frozen=True)
class Masks:
    """Run lengths of N images.

    Attributes:
        ids: Identifier of each image, (N,).
        shapes: Height and width in pixels, (N, 2).
        runs: Checked run lengths, (N, K) arrays of (2R,).
    """

    ids: pd.Index
    shapes: NDArray[np.int64]
    runs: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.bool_]) -> "Masks":
        """Some of the images, those where ``rows`` (N,) is true."""
        return Masks(self.ids[rows], self.shapes[rows], self.runs[rows])

    def areas(self) -> NDArray[np.float64]:
        """Areas in % of the image after it was padded to a square, (N, K)."""
        every: list[Runs] = self.runs.ravel().tolist()
        pixels = np.array([int(runs[1::2].sum()) for runs in every], np.float64).reshape(self.runs.shape)
        sides = self.shapes.max(1, keepdims=True).astype(np.float64)
        return np.asarray(100 * pixels / sides**2)


def read_chexmask(path: Path, structures: Sequence[str], wanted: pd.Index, min_dice: float = 0.7) -> Masks:
    """Masks of the wanted images from a CheXmask table of any of its data sets.

    Args:
        path: The CSV.
        structures: What to read, among ``left_lung``, ``right_lung`` and ``heart``; other columns may be empty.
        wanted: Identifiers of the images that matter; other rows are not looked at.
        min_dice: Smallest ``Dice RCA (Mean)``, CheXmask's own estimate of quality.

    Returns:
        The images found, in the table's order; rows of poor quality or with a blank structure are left out.

    Raises:
        ValueError: If a cell is not what it should be (the message names file, row, field and value), if an
            identifier occurs twice, or if nothing is left.
    """
    unknown = [name for name in structures if name not in COLUMNS]
    if unknown or not structures:
        raise ValueError(f"structures {list(structures)}: CheXmask offers {', '.join(COLUMNS)}")
    known = header(path)
    id_column = next((name for name in ID_COLUMNS if name in known), None)
    if id_column is None:
        raise ValueError(f"{path}: none of the identifiers {', '.join(ID_COLUMNS)} among the columns {known}")
    fields = [COLUMNS[name] for name in structures]
    parts, counts = [], np.zeros(4, np.int64)
    for frame in read_columns(path, [id_column, QUALITY, *fields, "Height", "Width"]):
        part, count = _read_part(frame[frame[id_column].isin(wanted)], [id_column, *fields], path, min_dice)
        parts.append(part)
        counts += [len(frame), *count]
    log.info("%s: %d rows, %d of wanted images, %d below Dice RCA %g, %d with a blank structure", path.name,
             *counts[:3], min_dice, counts[3])  # fmt: skip
    return _joined(parts, path, counts, min_dice, wanted)


def _read_part(
    frame: pd.DataFrame, columns: list[str], path: Path, min_dice: float
) -> tuple[tuple[pd.DataFrame, NDArray[np.object_]], list[int]]:
    """Rows kept (identifier, Height, Width) with their runs, and how many were wanted, poor and blank."""
    id_column, *fields = columns
    good = numbers(frame, QUALITY, path) >= min_dice
    blank = np.any([(frame[name].isna() | frame[name].str.isspace().eq(True)).to_numpy() for name in fields], axis=0)
    kept = frame[good & ~blank]
    sizes = np.stack([_sides(kept, field, path) for field in ("Height", "Width")], 1)
    runs = np.empty((len(kept), len(fields)), object)
    for column, field in enumerate(fields):
        for place, (row, text) in enumerate(kept[field].items()):
            try:
                runs[place, column] = parse(text.strip(), int(sizes[place, 0] * sizes[place, 1]))
            except ValueError as error:
                raise bad_cell(path, int(row), field, text, str(error)) from error  # type: ignore[call-overload]
    table = pd.DataFrame({id_column: kept[id_column], "Height": sizes[:, 0], "Width": sizes[:, 1]}, index=kept.index)
    return (table, runs), [len(frame), int((~good).sum()), int((good & blank).sum())]


def _sides(frame: pd.DataFrame, field: str, path: Path) -> NDArray[np.int64]:
    values = numbers(frame, field, path)
    wrong = (values < 1) | (values > LONGEST_SIDE) | (values % 1 != 0)
    refuse(frame, field, path, wrong, f"a whole number of pixels, 1 to {LONGEST_SIDE}, is needed here")
    return values.astype(np.int64)


def _joined(
    parts: list[tuple[pd.DataFrame, NDArray[np.object_]]],
    path: Path,
    counts: NDArray[np.int64],
    min_dice: float,
    wanted: pd.Index,
) -> Masks:
    if not sum(len(table) for table, _ in parts):
        raise ValueError(
            f"{path}: no mask is left of {counts[0]} rows; {counts[1]} belong to wanted images (such as "
            f"{str(wanted[0]) if len(wanted) else None!r}), {counts[2]} of them lie below Dice RCA {min_dice:g} and "
            f"{counts[3]} have a blank structure (lungs only? then set structures to those that the table holds)"
        )
    table = pd.concat([table for table, _ in parts])
    id_column = str(table.columns[0])
    refuse(table, id_column, path, table[id_column].duplicated().to_numpy(), "this image occurs twice")
    runs = np.concatenate([runs for _, runs in parts])
    return Masks(pd.Index(table[id_column]), table[["Height", "Width"]].to_numpy(np.int64), runs)
