"""``segcft prepare``: preprocess every subject of a source once into a cache for fast reading.

The cache is built in ``OUT.partial``. A journal records every finished chunk after its arrays are on disk, so an
interrupted run can be resumed. The finished folder is renamed to ``OUT``. Its bytes do not depend on interruptions or
on the number of workers.
"""

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap
from tqdm import tqdm  # type: ignore[import-untyped]

from data_modules.common.sources import Source
from data_modules.common.splits import SPLITS, refuse_shared
from data_modules.preparation import cache as caches
from data_modules.preparation.cache import (
    FACTS,
    IMAGES,
    MASKS,
    QUARANTINE,
    TABLE,
    Cache,
    differences,
    packed,
    partial_folder,
)
from data_modules.preparation.source_files import edited, record
from data_modules.preparation.statistics import statistics
from segcft.core.atomic_files import digest, write_text
from segcft.core.folder_lock import Lock, alone

log = logging.getLogger(__name__)

PLAN, JOURNAL = "plan.json", "journal.jsonl"
LACK = "out of memory while reading "  # begins the error of a subject that may be good
CHUNK = 32  # subjects per chunk
NEEDED = ("id", "patient", "split", "image", "origin")


def prepare(
    source: Source,
    out: str | Path,
    workers: int = 1,
    on_error: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
) -> Cache:
    """Make a cache, resume a partial one, or open a complete one.

    Args:
        source: The data set.
        out: Folder of the cache.
        workers: Number of reading processes; does not affect the result.
        on_error: ``fail`` at the first subject that cannot be read, or ``skip`` it and list it in ``quarantine.csv``.
        overwrite: Replace a cache that was made with other options or tables.

    Raises:
        ValueError: Naming file, row, field and value of what cannot be read; subjects prepared so far are kept.
    """
    folder = Path(out).expanduser()
    if _complete(folder, source, overwrite):
        _tidy(folder)
        return caches.open_cache(folder)
    with _alone(folder) as (partial, lock):
        if not _complete(folder, source, overwrite):  # another process may have made it meanwhile
            table = _checked(source.table(), source.name)
            _begin(partial, caches.make_plan(source, table), overwrite)
            _fill(partial, source, table, workers, on_error)
            lock.check()
            _finish(partial, folder, table)
        return caches.open_cache(folder)


def _complete(folder: Path, source: Source, overwrite: bool) -> bool:
    """Whether the folder already holds the requested cache."""
    if not (folder / FACTS).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} exists and is not a prepared data set: choose another folder")
        return False
    reasons = caches.stale(folder, source)
    reasons = reasons or [f"{path} has changed" for path in edited(caches.open_cache(folder), source)]
    if reasons and not overwrite:
        raise ValueError(
            f"{folder} is stale: it was made from other data or options ({'; '.join(reasons)}): prepare another "
            "folder, or give --overwrite=true to segcft prepare"
        )
    return not reasons


@contextmanager
def _alone(folder: Path) -> Iterator[tuple[Path, Lock]]:
    """The partial folder, for one process at a time; others wait, and a killed process keeps nobody out."""
    partial = partial_folder(folder)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with alone(partial.with_name(f".{partial.name}.lock"), wait=True) as lock:
        partial.mkdir(exist_ok=True)
        try:
            yield partial, lock
        finally:
            if partial.is_dir() and not any(partial.iterdir()):
                partial.rmdir()


def _checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The source's table after checking it.

    Raises:
        ValueError: If a column is missing, an id occurs twice, a split is unknown or empty, or a patient is in two.
    """
    absent = [column for column in NEEDED if column not in table]
    if absent or not len(table):
        raise ValueError(f"{name}: " + (f"the table lacks {', '.join(absent)}" if absent else "no subject is left"))
    for reason, wrong in (
        ("this id occurs twice", table["id"].duplicated()),
        (f"split must be one of {', '.join(SPLITS)}", ~table["split"].isin(SPLITS)),
    ):
        if wrong.any():
            row = table[wrong.to_numpy()].iloc[0]
            place = f"id = {row['id']!r}, patient = {row['patient']!r}, split = {row['split']!r}"
            raise ValueError(f"{row['origin']}: {reason} ({place})")
    refuse_shared(table)
    if not (table["split"] == "train").any():
        raise ValueError(f"{name}: no subject in the training split, of {len(table)}")
    return table.reset_index(drop=True)


def _begin(partial: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Create the arrays, or check that existing ones belong to the same plan."""
    written = partial / PLAN
    if written.is_file():
        reasons = differences(json.loads(written.read_text(encoding="utf-8")), plan)
        if not reasons:
            return
        if not overwrite:
            raise ValueError(
                f"{partial} holds a partial cache of other data or options ({'; '.join(reasons)}): remove it, or give "
                "--overwrite=true to segcft prepare"
            )
        log.warning("%s: starting again, it was made from other data or options: %s", partial, "; ".join(reasons))
    for path in partial.iterdir():
        path.unlink()
    count, frame = plan["subjects"], plan["frame"]
    open_memmap(partial / IMAGES, "w+", np.dtype(plan["dtype"]), (count, plan["channels"], *frame)).flush()  # type: ignore[no-untyped-call]
    open_memmap(partial / MASKS, "w+", np.uint8, (count, *frame)).flush()  # type: ignore[no-untyped-call]
    write_text(written, json.dumps(plan, indent=2) + "\n")


class _Entry(NamedTuple):
    """One line of the journal: the result for one subject."""

    place: int
    values: dict[str, float]
    error: str


def _journal(partial: Path) -> dict[int, _Entry]:
    """The last entry of every subject; a truncated last line is dropped."""
    path, entries = partial / JOURNAL, {}
    if not path.is_file():
        return {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = _Entry(*json.loads(line))
        except (ValueError, TypeError):
            continue
        entries[entry.place] = entry
    return entries


def _done(journal: dict[int, _Entry]) -> dict[int, _Entry]:
    """Entries of subjects that were read, by index; failed ones are tried again."""
    return {place: journal[place] for place in sorted(journal) if not journal[place].error}


def _fill(partial: Path, source: Source, table: pd.DataFrame, workers: int, on_error: str) -> None:
    """Read the subjects missing from the journal; it is first rewritten, then extended chunk by chunk."""
    done = _done(_journal(partial))
    write_text(partial / JOURNAL, "".join(_line(entry) for entry in done.values()))
    missing = [place for place in range(len(table)) if place not in done]
    if done:
        log.warning("%s: resuming, %d of %d are done", partial, len(done), len(table))
    chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
    bar = tqdm(total=len(table), initial=len(done), desc=f"preparing {source.name}", unit=" subjects", disable=None)
    reader = _Reader(partial, source, table)
    with (partial / JOURNAL).open("a", encoding="utf-8") as journal, bar:
        for first in _read_chunks(reader, chunks, workers):
            entries = [reader.again(entry) if entry.error else entry for entry in first]
            failed = [entry for entry in entries if entry.error]
            journal.writelines(_line(entry) for entry in entries if not entry.error or on_error == "skip")
            journal.flush()
            if failed and on_error == "fail":
                raise ValueError(f"{failed[0].error} (on_error=skip skips and lists such subjects)")
            bar.update(len(entries))


def _line(entry: _Entry) -> str:
    return json.dumps(entry) + "\n"


def _read_chunks(reader: "_Reader", chunks: list[list[int]], workers: int) -> Iterator[list[_Entry]]:
    """Yield the entries of every finished chunk; several processes write directly into the arrays."""
    if workers <= 1 or len(chunks) <= 1:
        yield from map(reader, chunks)
        return
    # fork, so that workers share a source's memory, which may be gigabytes of run lengths
    with ProcessPoolExecutor(workers, get_context("fork"), _start, (reader, os.getpid())) as pool:
        pending: list[Future[list[_Entry]]] = [pool.submit(_read, chunk) for chunk in chunks]
        try:
            for future in as_completed(pending):
                yield future.result()
        except BrokenProcessPool as error:
            raise ValueError("a reading process died (out of memory?): run the same command to resume") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Reader:
    """Reads subjects and writes them into the arrays of a partial cache."""

    def __init__(self, partial: Path, source: Source, table: pd.DataFrame) -> None:
        self.source, self.table = source, table
        self.images = np.load(partial / IMAGES, mmap_mode="r+")
        self.masks = np.load(partial / MASKS, mmap_mode="r+")

    def __call__(self, places: list[int]) -> list[_Entry]:
        """Read one chunk; its arrays are on disk when this returns."""
        entries = [self.draw(place) for place in places]
        self.images.flush()
        self.masks.flush()
        return entries

    def again(self, entry: _Entry) -> _Entry:
        """Read a subject that failed once more, with nothing else being read by this process.

        Raises:
            ValueError: If memory is what it lacks: a good file is not skipped for that.
        """
        second = self.draw(entry.place)
        self.images.flush()
        self.masks.flush()
        if second.error.startswith(LACK):
            raise ValueError(f"{second.error}: read with fewer --workers; the same command resumes")
        return second

    def draw(self, place: int) -> _Entry:
        """Read one subject; an error is recorded in its entry."""
        row = self.table.iloc[place]
        try:
            sample = self.source.read({str(name): value for name, value in row.items()})
            self.images[place] = sample.image
            self.masks[place] = packed(sample.mask)
        except (ValueError, MemoryError) as error:
            self.images[place] = self.masks[place] = 0
            text = str(error)
            if _lacks_memory(error):
                return _Entry(place, {}, f"{LACK}{row['origin']}: {text}")
            return _Entry(place, {}, text if str(row["origin"]) in text else f"{row['origin']}: {text}")
        return _Entry(place, {name: float(value) for name, value in sample.values.items()}, "")


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory is short."""
    while error is not None:
        short = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        if short or any(text in str(error) for text in ("nsufficient memory", "nable to allocate")):
            return True
        error = error.__cause__ or error.__context__
    return False


_READER: _Reader | None = None


def _start(reader: _Reader, parent: int) -> None:
    """Initialise a worker process: store the reader, and exit if the parent is killed."""
    global _READER
    _READER = reader

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read(places: list[int]) -> list[_Entry]:
    assert _READER is not None
    return _READER(places)


def _finish(partial: Path, folder: Path, table: pd.DataFrame) -> None:
    """Write table, quarantine and fingerprint, then rename the folder."""
    plan = json.loads((partial / PLAN).read_text(encoding="utf-8"))
    journal = _journal(partial)
    read = _done(journal)
    if len(journal) != len(table):
        raise ValueError(
            f"{partial} accounts for {len(journal)} of {len(table)} subjects: run the same command to resume"
        )
    kept = table.assign(row=np.arange(len(table), dtype=np.int64)).iloc[list(read)]
    values = pd.DataFrame([entry.values for entry in read.values()], index=kept.index)
    kept = pd.concat([kept.drop(columns=list(values.columns), errors="ignore"), values], axis=1)
    kept.to_parquet(partial / TABLE, index=False)
    record(partial, kept)
    failures = _failures(journal, table)
    failures.to_csv(partial / QUARANTINE, index=False)
    if not (kept["split"] == "train").any():
        raise ValueError(f"no training subject could be read, {len(failures)} failed; first: {failures['reason'][0]}")
    hashes = {name: digest(partial / name) for name in (IMAGES, MASKS, TABLE)}
    facts = {"plan": plan, "quarantined": len(failures), **statistics(partial, kept, plan), "sha256": hashes}
    write_text(partial / FACTS, json.dumps(facts, indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)  # overwrite was given, or it is empty
    partial.rename(folder)
    _tidy(folder)
    if len(failures):
        log.warning("%s: %d subjects were skipped, see %s", folder, len(failures), folder / QUARANTINE)


def _tidy(folder: Path) -> None:
    """Remove files that only a partial cache needs; done last, since an interrupted run needs them."""
    for name in (PLAN, JOURNAL):
        (folder / name).unlink(missing_ok=True)


def _failures(journal: dict[int, _Entry], table: pd.DataFrame) -> pd.DataFrame:
    """Subjects that could not be read, with the reason."""
    failed = sorted(place for place, entry in journal.items() if entry.error)
    listed = table.iloc[failed][["id", "patient", "split", "image"]]
    return listed.assign(reason=[journal[place].error for place in failed])
