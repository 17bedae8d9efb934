"""CheXmask: run-length encoded masks of public chest radiographs in a CSV (Gaggion et al., 2024).

Every run is a pair ``start length``; starts count from 1 and pixels are in row-major order. ``Left Lung`` is the
patient's left, on the right of the image. Areas are computed from the run lengths, without decoding masks.

The table comes in two variants. ``OriginalResolution`` masks have the shape of the film. ``Preprocessed`` masks are
1024 x 1024: the film was padded with black to a centred square, then resized.
"""

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segcft.io.csv_tables import bad_cell, header, numbers, read_columns, refuse, refuse_twice

log = logging.getLogger(__name__)

COLUMNS = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}
ID_COLUMNS = ("Path", "dicom_id", "ImageID", "Image Index", "image_id")
QUALITY, HIGHEST = "Dice RCA (Mean)", "Dice RCA (Max)"
BLOCK = 200  # images parsed at once
LONGEST_SIDE = 2**15  # pixels; a run then always fits 32 bits
PREPROCESSED_SIDE = 1024  # pixels

Variant = Literal["auto", "original", "preprocessed"]
Runs = NDArray[np.int32]  # (2R,): start, length, start, length, ...


def parse(text: str, pixels: int) -> Runs:
    """Parse and check the run lengths of one mask; errors state the reason.

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
    if not re.fullmatch("[+-]?[0-9]+", word):
        raise ValueError(f"{word!r} is not an integer")
    return max(-(2**61), min(int(word[:1000]), 2**61))  # a sum of two still fits 64 bits


def parse_many(texts: list[str], pixels: NDArray[np.int64]) -> tuple[Runs, NDArray[np.int64]] | None:
    """As ``parse``, for many masks at once and about ten times as fast.

    Args:
        texts: Run lengths of T masks; empty if there is no mask.
        pixels: Height x Width of each, (T,).

    Returns:
        All entries concatenated, (E,), and their number per mask, (T,). None if any mask must be checked by ``parse``.
    """
    joined = " ".join(filter(None, texts))
    counts = np.array([text.count(" ") + 1 if text else 0 for text in texts], np.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # of older NumPy, which stops early
            values = np.fromstring(joined, dtype=np.int64, sep=" ") if joined else np.empty(0, np.int64)
    except (ValueError, DeprecationWarning):  # not a number
        return None
    if "  " in joined or len(values) != counts.sum() or (counts % 2).any():
        return None
    starts, lengths, limits = values[::2], values[1::2], np.repeat(pixels, counts // 2)
    outside = (starts < 1) | (lengths < 1) | (lengths > limits) | (starts > limits - lengths + 1)
    behind = starts[1:] < starts[:-1] + lengths[:-1]
    firsts = counts.cumsum() // 2
    behind[firsts[(firsts > 0) & (firsts < len(starts))] - 1] = False  # the next mask starts anew
    return None if outside.any() or behind.any() else (values.astype(np.int32), counts)


def decode(runs: Runs, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Checked runs (2R,) -> mask (H, W) in {0, 1}."""
    starts, lengths = runs[::2].astype(np.int64) - 1, runs[1::2]
    edges = np.stack([starts, starts + lengths], 1).ravel()
    gaps = np.diff(edges, prepend=0, append=shape[0] * shape[1])  # outside, inside, outside, ...
    inside = np.arange(len(gaps), dtype=np.uint8) & 1
    return np.repeat(inside, gaps).reshape(shape[0], shape[1])


def coverage(runs: Runs, shape: Sequence[int], size: int) -> NDArray[np.float32]:
    """Fraction of every pixel of a square frame inside a mask, (size, size), computed without decoding the mask.

    Args:
        runs: Checked runs, (2R,).
        shape: Height and width of the mask, which is padded to a centred square and shrunk to the frame.
        size: Side of the frame.
    """
    height, width = (int(side) for side in shape)
    side = max(height, width)
    starts = runs[::2].astype(np.int64) - 1
    ends = starts + runs[1::2]
    many = (ends - 1) // width - starts // width + 1  # rows that each run touches
    run = np.repeat(np.arange(len(many)), many)
    row = starts[run] // width + np.arange(len(run)) - np.repeat(many.cumsum() - many, many)
    left = np.maximum(starts[run] - row * width, 0) + (side - width) // 2
    right = np.minimum(ends[run] - row * width, width) + (side - width) // 2
    row += (side - height) // 2
    edges = np.arange(size + 1, dtype=np.float32) * np.float32(side / size)
    return _overlap(row, row + 1, edges).T @ _overlap(left, right, edges)


def _overlap(starts: NDArray[np.int64], ends: NDArray[np.int64], edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fraction of each interval between edges that each of R intervals covers, (R, len(edges) - 1)."""
    low = np.maximum(starts[:, None].astype(np.float32), edges[:-1])
    high = np.minimum(ends[:, None].astype(np.float32), edges[1:])
    return np.asarray((high - low).clip(0) / edges[1], np.float32)


def encode(mask: NDArray[np.generic]) -> str:
    """Mask (H, W) -> run lengths as CheXmask writes them; empty for an empty mask."""
    padded = np.concatenate([[False], mask.astype(bool).ravel(), [False]])
    runs = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    runs[1::2] -= runs[::2]
    return " ".join(map(str, runs.tolist()))


@dataclass(frozen=True)
class Masks:
    """Run lengths of N images with K structures; a structure without a mask has no entries.

    Attributes:
        ids: Identifier of each image, (N,).
        shapes: Height and width in pixels, (N, 2).
        dice: Estimated quality, ``Dice RCA (Mean)``, (N,).
        counts: Entries of each mask, (N, K).
        pixels: Pixels of each mask, (N, K).
        entries: Checked run lengths of all masks, concatenated, (counts.sum(),).
        preprocessed: Whether the masks are CheXmask's ``Preprocessed`` variant.
    """

    ids: pd.Index
    shapes: NDArray[np.int64]
    dice: NDArray[np.float64]
    counts: NDArray[np.int64]
    pixels: NDArray[np.int64]
    entries: Runs
    preprocessed: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Index of the first entry of each mask, (N, K)."""
        return (self.counts.ravel().cumsum() - self.counts.ravel()).reshape(self.counts.shape)

    def runs(self, place: int, channel: int) -> Runs:
        """Run lengths of one mask, (2R,)."""
        start = self.offsets[place, channel]
        return self.entries[start : start + self.counts[place, channel]]

    def areas(self) -> NDArray[np.float64]:
        """Areas in % of the image padded to a square, (N, K); NaN without a mask. No mask is decoded."""
        sides = self.shapes.max(1, keepdims=True).astype(np.float64)
        return np.where(self.counts > 0, 100 * self.pixels / sides**2, np.nan)


def read_chexmask(
    path: Path, structures: Sequence[str], wanted: pd.Index, min_dice: float = 0.7, variant: Variant = "auto"
) -> Masks:
    """Read the masks of the wanted images from a CheXmask table.

    Args:
        path: The CSV, plain or ``.gz``.
        structures: Structures to read, among ``left_lung``, ``right_lung`` and ``heart``; other columns may be empty.
        wanted: Identifiers of the images to read; other rows are ignored.
        min_dice: Smallest ``Dice RCA (Mean)``, CheXmask's own estimate of quality.
        variant: ``original`` or ``preprocessed``; ``auto`` means ``preprocessed`` if every Height and Width that is
            not blank is 1024. Images without a size are 1024 x 1024 there, and are skipped in an ``original`` table.

    Returns:
        The images found, in the table's order. Rows of poor quality, without a size or without any mask are skipped and
        counted in the log.

    Raises:
        ValueError: If a cell is invalid (the message names file, row, field and value), if an identifier occurs twice,
            or if no mask is left.
    """
    unknown = [name for name in structures if name not in COLUMNS]
    if unknown or not structures:
        raise ValueError(f"structures {list(structures)}: CheXmask offers {', '.join(COLUMNS)}")
    known = header(path)
    id_column = next((name for name in ID_COLUMNS if name in known), None)
    if id_column is None:
        raise ValueError(f"{path}: none of the identifiers {', '.join(ID_COLUMNS)} among the columns {known}")
    preprocessed = variant == "preprocessed" or (variant == "auto" and _all_preprocessed(path))
    reader = _Reader(path, id_column, [COLUMNS[name] for name in structures], min_dice, preprocessed)
    wanted = wanted.unique()
    for frame in read_columns(path, [id_column, QUALITY, *reader.fields, "Height", "Width"], [HIGHEST]):
        reader.add(frame[wanted.get_indexer(pd.Index(frame[id_column])) >= 0])
        reader.seen[0] += len(frame)
    masks = reader.finished()
    without = ", ".join(f"{name} of {int(n)}" for name, n in zip(structures, (masks.counts == 0).sum(0), strict=True))
    rows, mine, poor, sizeless, blank = reader.seen.tolist()
    report = (
        f"{rows} rows, {mine} of wanted images such as {wanted[0] if len(wanted) else None!r}, of which {poor} lie "
        f"below Dice RCA {min_dice:g}, {sizeless} have no Height and Width and {blank} no mask at all"
    )
    log.info("%s: %s; blank: %s of %d", path, report, without, len(masks))
    if not len(masks):
        raise ValueError(f"{path}: no mask is left: {report}")
    return masks


class _Reader:
    """Collects a table in chunks; the entries grow in place, since two copies would take gigabytes."""

    def __init__(self, path: Path, id_column: str, fields: list[str], min_dice: float, preprocessed: bool) -> None:
        self.path, self.id_column, self.fields = path, id_column, fields
        self.min_dice, self.preprocessed = min_dice, preprocessed
        self.seen = np.zeros(5, np.int64)  # rows; then of wanted images: all, poor, without a size, without a mask
        self._ids: list[pd.DataFrame] = []
        self._shapes: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
        self._dice: list[NDArray[np.float64]] = [np.empty(0)]
        self._counts: list[NDArray[np.int64]] = [np.empty((0, len(fields)), np.int64)]
        self._pixels = self._counts[:]
        self._entries = np.empty(0, np.int32)

    def add(self, frame: pd.DataFrame) -> None:
        """Add the valid rows of a chunk of wanted rows."""
        dice = numbers(frame, QUALITY, self.path)
        if HIGHEST in frame:  # in CheXmask's PadChest the mean of most rows exceeds the maximum: the smaller is safe
            dice = np.fmin(dice, numbers(frame, HIGHEST, self.path, blank=True))
        poor = dice < self.min_dice
        texts = frame[self.fields].fillna("").mask(lambda text: text.apply(lambda cell: cell.str.isspace()), "")
        blank = (texts == "").all(axis=1).to_numpy()
        sizeless = frame[["Height", "Width"]].isna().any(axis=1).to_numpy() & (not self.preprocessed)
        kept = ~(poor | blank | sizeless)
        self.seen[1:] += [len(frame), poor.sum(), (sizeless & ~poor).sum(), (blank & ~poor & ~sizeless).sum()]
        shapes = np.stack([self._sides(frame[kept], field) for field in ("Height", "Width")], 1)
        texts = texts[kept]
        for start in range(0, len(texts), BLOCK):
            block = slice(start, start + BLOCK)
            self._parse(texts.iloc[block], shapes[block].prod(1))
        self._ids.append(frame.loc[kept, [self.id_column]])
        self._shapes.append(shapes)
        self._dice.append(dice[kept])

    def finished(self) -> Masks:
        """All collected masks."""
        ids = pd.concat(self._ids) if self._ids else pd.DataFrame({self.id_column: []})
        refuse_twice(ids, self.id_column, self.path, "image")
        return Masks(
            pd.Index(ids[self.id_column]),
            np.concatenate(self._shapes),
            np.concatenate(self._dice),
            np.concatenate(self._counts),
            np.concatenate(self._pixels),
            self._entries,
            self.preprocessed,
        )

    def _parse(self, texts: pd.DataFrame, limits: NDArray[np.int64]) -> None:
        cells = texts.to_numpy(object).ravel().tolist()
        entries, counts = parse_many(cells, np.repeat(limits, len(self.fields))) or self._parse_each(texts, limits)
        total = np.concatenate([[0], entries[1::2].cumsum(dtype=np.int64)])
        ends = counts.cumsum() // 2
        self._pixels.append((total[ends] - total[ends - counts // 2]).reshape(-1, len(self.fields)))
        self._counts.append(counts.reshape(-1, len(self.fields)))
        filled = len(self._entries)
        self._entries.resize(filled + len(entries), refcheck=False)
        self._entries[filled:] = entries

    def _parse_each(self, texts: pd.DataFrame, limits: NDArray[np.int64]) -> tuple[Runs, NDArray[np.int64]]:
        runs = []
        for row, limit, cells in zip(texts.index, limits.tolist(), texts.to_numpy(object), strict=True):
            for field, text in zip(texts.columns, cells, strict=True):
                try:
                    runs.append(parse(text, limit))
                except ValueError as error:
                    raise bad_cell(self.path, int(row), field, text, str(error)) from error
        return np.concatenate(runs), np.array([len(run) for run in runs], np.int64)

    def _sides(self, frame: pd.DataFrame, field: str) -> NDArray[np.int64]:
        values = numbers(frame, field, self.path, blank=self.preprocessed)
        if self.preprocessed:
            values = np.where(np.isnan(values), PREPROCESSED_SIDE, values)
            refuse(frame, field, self.path, values != PREPROCESSED_SIDE, "the Preprocessed variant is 1024 x 1024")
        wrong = (values < 1) | (values > LONGEST_SIDE) | (values % 1 != 0)
        refuse(frame, field, self.path, wrong, f"a whole number of pixels, 1 to {LONGEST_SIDE}, is needed here")
        return values.astype(np.int64)


def _all_preprocessed(path: Path) -> bool:
    """Whether every size that is not blank is 1024 x 1024, and at least one is not blank."""
    seen: set[str] = set()
    for frame in read_columns(path, ["Height", "Width"]):
        seen.update(frame["Height"].dropna().unique(), frame["Width"].dropna().unique())
        if not seen <= {"1024", "1024.0"}:
            return False
    return bool(seen)
