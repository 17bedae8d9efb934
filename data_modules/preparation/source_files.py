"""The files that a cache was made from, and whether they still are what they were.

Size and time of every image are kept in ``sources.parquet``. Files that were copied have other times, and so has one
that was edited: what they show now decides, see ``edited``.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from data_modules.common.sources import Source
from data_modules.preparation.cache import Cache, packed

SOURCES = "sources.parquet"
PATIENCE = 2.0  # seconds for looking at files; those of a large data set on a slow disk take turns
COMPARED = 16  # subjects that are read again at most


def record(folder: Path, table: pd.DataFrame) -> None:
    """Write size and modification time of every file that the table names, with the row that names it."""
    found = [(row, str(path), *state) for row, path in _files(table) if (state := _state(path)) is not None]
    pd.DataFrame(found, columns=["row", "path", "bytes", "modified"]).to_parquet(folder / SOURCES, index=False)


def edited(cache: Cache, source: Source) -> list[str]:
    """Files that show something else than the cache holds; files that are gone, or were copied, are none."""
    if not (cache.folder / SOURCES).is_file():  # of an older version
        return []
    known = pd.read_parquet(cache.folder / SOURCES)
    order, end = np.random.default_rng().permutation(len(known)), time.monotonic() + PATIENCE
    suspects: dict[int, Path] = {}
    for row, path, size, modified in known.iloc[order].itertuples(index=False):
        state = _state(Path(path))
        if state is not None and state != (size, modified):
            suspects.setdefault(int(row), Path(path))
        if len(suspects) == COMPARED or time.monotonic() > end:
            break
    return [str(path) for path in _differing(cache, source, suspects)]


def _differing(cache: Cache, source: Source, suspects: dict[int, Path]) -> Iterator[Path]:
    if not suspects:
        return
    table = source.table().set_index("id", drop=False)
    held = dict(zip(cache.table["row"], cache.table["id"], strict=True))
    for row, path in suspects.items():
        if held.get(row) not in table.index:
            continue
        subject = {str(name): value for name, value in table.loc[held[row]].items()}
        try:
            sample = source.read(subject)
            same = np.array_equal(sample.image, cache.images[row]) and np.array_equal(
                packed(sample.mask), cache.masks[row]
            )
        except ValueError:
            same = False
        if not same:
            yield path


def _files(table: pd.DataFrame) -> Iterator[tuple[int, Path]]:
    """Row and path of every cell that names a file; of a column the first one tells whether it holds such."""
    rows = table["row"].tolist()
    for name in table.select_dtypes(["object", "string"]).columns:
        cells = [cell if isinstance(cell, str) else "" for cell in table[name]]
        first = next(filter(None, cells), "")
        if name not in ("id", "patient", "split", "origin") and _state(Path(first)) is not None:
            yield from ((row, Path(cell)) for row, cell in zip(rows, cells, strict=True) if cell)


def _state(path: Path) -> tuple[int, int] | None:
    """Size and modification time of a file; None if it is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_size, found.st_mtime_ns) if path.is_file() else None
