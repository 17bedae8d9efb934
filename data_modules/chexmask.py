"""CheXmask: anatomical masks of public chest radiographs as run lengths in a CSV (Gaggion et al., 2024).

Every run is a pair ``start length``: starts count from 1, pixels run row by row (C order). ``Left Lung`` is the
patient's left, which lies on the right of the image. Areas come from the lengths; nothing is decoded for them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.tables import bad_cell, header, numbers, read_columns, refuse

log = logging.getLogger(__name__)

COLUMNS = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}
ID_COLUMNS = ("Path", "dicom_id", "ImageID", "Image Index", "image_id")
QUALITY = "Dice RCA (Mean)"
BLOCK = 200  # images parsed at once
LONGEST_SIDE = 2**15  # pixels; a run then always fits 32 bits

Runs = NDArray[np.int32]  # (2R,): start, length, start, length, ...


def parse(text: str, pixels: int) -> Runs:
    """Run lengths as written -> checked numbers, one mask at a time; knows the reason of whatever is wrong.

    Args:
        text: ``start length start length ...``, starts from 1.
        pixels: Height x Width of the mask.

    Returns:
        (2R,) int32.

    Raises:
        ValueError: If an entry is no integer, the count is odd, or runs are empty, overlap or leave the image.
    """
    values = np.array([_integer(word) for word in text.split()], dtype=np.int64)
    if len(values) % 2:
        raise ValueError(f"{len(values)} entries are not pairs of start and length")
    starts, lengths = values[::2], values[1::2]
    if (starts < 1).any():
        raise ValueError(f"a run starts at {starts.min()}, but the first pixel is 1")
    if (lengths < 1).any():
        raise ValueError(f"a run is {lengths.min()} pixels long")
    outside = starts + lengths - 1 > pixels
    if outside.any():
        start, length = starts[outside][0], lengths[outside][0]
        raise ValueError(f"the run {start} {length} leaves the image of Height x Width = {pixels} pixels")
    behind = starts[1:] < starts[:-1] + lengths[:-1]
    if behind.any():
        raise ValueError(f"the run at {starts[1:][behind][0]} overlaps the one before it, or the runs are not sorted")
    return values.astype(np.int32)


def _integer(word: str) -> int:
    try:
        return max(-(2**61), min(int(word), 2**61))  # a sum of two still fits 64 bits
    except ValueError:
        raise ValueError(f"{word!r} is not an integer") from None


def parse_many(texts: list[str], pixels: NDArray[np.int64]) -> tuple[Runs, NDArray[np.int64]] | None:
    """What ``parse`` does, for many masks at once and some ten times faster.

    Args:
        texts: Run lengths of T masks.
        pixels: Height x Width of each, (T,).

    Returns:
        All entries one after another, (E,), and how many each mask has, (T,). None if any mask needs a closer look.
    """
    joined = " ".join(texts)
    counts = np.array([text.count(" ") + 1 for text in texts], np.int64)
    try:
        values = np.fromstring(joined, dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning):  # not a number; older NumPy warns and stops early
        return None
    if "  " in joined or len(values) != counts.sum() or (counts % 2).any():
        return None
    starts, lengths, limits = values[::2], values[1::2], np.repeat(pixels, counts // 2)
    outside = (starts < 1) | (lengths < 1) | (lengths > limits) | (starts > limits - lengths + 1)
    behind = starts[1:] < starts[:-1] + lengths[:-1]
    behind[counts.cumsum()[:-1] // 2 - 1] = False  # the next mask starts anew
    return None if outside.any() or behind.any() else (values.astype(np.int32), counts)


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
    """Run lengths of N images, K structures each.

    Attributes:
        ids: Identifier of each image, (N,).
        shapes: Height and width in pixels, (N, 2).
        counts: Entries of each mask, at least one pair, (N, K).
        entries: Checked run lengths of all masks one after another, (counts.sum(),).
    """

    ids: pd.Index
    shapes: NDArray[np.int64]
    counts: NDArray[np.int64]
    entries: Runs

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.bool_]) -> "Masks":
        """Some of the images, those where ``rows`` (N,) is true."""
        if rows.all():
            return self
        entries = self.entries[np.repeat(rows, self.counts.sum(1))]
        return Masks(self.ids[rows], self.shapes[rows], self.counts[rows], entries)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where the entries of each mask begin, (N, K)."""
        return (self.counts.ravel().cumsum() - self.counts.ravel()).reshape(self.counts.shape)

    def runs(self, place: int, channel: int) -> Runs:
        """Run lengths of one mask, (2R,)."""
        start = self.offsets[place, channel]
        return self.entries[start : start + self.counts[place, channel]]

    def areas(self) -> NDArray[np.float64]:
        """Areas in % of the image after it was padded to a square, (N, K); nothing is decoded."""
        if not len(self):
            return np.zeros(self.counts.shape)
        pixels = np.add.reduceat(self.entries[1::2], self.offsets.ravel() // 2, dtype=np.int64)
        sides = self.shapes.max(1, keepdims=True).astype(np.float64)
        return np.asarray(100 * pixels.reshape(self.counts.shape) / sides**2)


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
    parts, seen, wanted = [], np.zeros(4, np.int64), wanted.unique()
    for frame in read_columns(path, [id_column, QUALITY, *fields, "Height", "Width"]):
        mine = frame[wanted.get_indexer(pd.Index(frame[id_column])) >= 0]
        part, seen_here = _read_part(mine, [id_column, *fields], path, min_dice)
        parts.append(part)
        seen += [len(frame), *seen_here]
    report = (
        f"{seen[0]} rows, {seen[1]} of wanted images such as {wanted[0] if len(wanted) else None!r}, of which "
        f"{seen[2]} lie below Dice RCA {min_dice:g} and {seen[3]} have a blank structure"
    )
    log.info("%s: %s", path, report)
    if seen[1] == seen[2] + seen[3]:
        raise ValueError(f"{path}: no mask is left: {report} (lungs only? then name only them as structures)")
    return _joined(parts, path)


def _read_part(
    frame: pd.DataFrame, columns: list[str], path: Path, min_dice: float
) -> tuple[tuple[pd.DataFrame, Masks], list[int]]:
    """Identifiers by row and masks of the rows kept, and how many rows were wanted, poor and blank."""
    id_column, *fields = columns
    good = numbers(frame, QUALITY, path) >= min_dice
    blank = np.any([(frame[name].isna() | frame[name].str.isspace().eq(True)).to_numpy() for name in fields], axis=0)
    kept = frame[good & ~blank]
    shapes = np.stack([_sides(kept, field, path) for field in ("Height", "Width")], 1)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(kept), BLOCK)]
    parsed = [_parse_block(kept[fields].iloc[block], shapes[block].prod(1), path) for block in blocks]
    entries = np.concatenate([np.empty(0, np.int32), *(entries for entries, _ in parsed)])
    counts = np.concatenate([np.empty(0, np.int64), *(counts for _, counts in parsed)]).reshape(-1, len(fields))
    masks = Masks(pd.Index(kept[id_column]), shapes, counts, entries)
    return (kept[[id_column]], masks), [len(frame), int((~good).sum()), int((good & blank).sum())]


def _parse_block(texts: pd.DataFrame, pixels: NDArray[np.int64], path: Path) -> tuple[Runs, NDArray[np.int64]]:
    """Entries and their counts, image by image and structure by structure."""
    parsed = parse_many(texts.to_numpy(object).ravel().tolist(), np.repeat(pixels, texts.shape[1]))
    if parsed is not None:
        return parsed
    runs = []
    for row, size, cells in zip(texts.index, pixels.tolist(), texts.to_numpy(object), strict=True):
        for field, text in zip(texts.columns, cells, strict=True):
            try:
                runs.append(parse(text, size))
            except ValueError as error:
                raise bad_cell(path, int(row), field, text, str(error)) from error
    return np.concatenate(runs), np.array([len(run) for run in runs], np.int64)


def _sides(frame: pd.DataFrame, field: str, path: Path) -> NDArray[np.int64]:
    values = numbers(frame, field, path)
    wrong = (values < 1) | (values > LONGEST_SIDE) | (values % 1 != 0)
    refuse(frame, field, path, wrong, f"a whole number of pixels, 1 to {LONGEST_SIDE}, is needed here")
    return values.astype(np.int64)


def _joined(parts: list[tuple[pd.DataFrame, Masks]], path: Path) -> Masks:
    ids, masks = pd.concat([ids for ids, _ in parts]), [masks for _, masks in parts]
    id_column = str(ids.columns[0])
    refuse(ids, id_column, path, ids[id_column].duplicated().to_numpy(), "this image occurs twice")
    shapes, counts = np.concatenate([part.shapes for part in masks]), np.concatenate([part.counts for part in masks])
    return Masks(pd.Index(ids[id_column]), shapes, counts, np.concatenate([part.entries for part in masks]))
