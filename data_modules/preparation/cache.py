"""Cache of a prepared data set on disk: memory-mapped arrays, a table and a fingerprint.

A folder with ``images.npy`` (N, C, *S) uint8 or int16, ``masks.npy`` (N, *S) uint8 whose bit k is structure k,
``table.parquet`` (one row per subject; column ``row`` is its index in the arrays), ``quarantine.csv`` (subjects that
could not be read, with the reason) and ``dataset.json`` (source, options and statistics).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.common.sources import Source
from segcft.core.atomic_files import digest

FORMAT = 1
IMAGES, MASKS, TABLE, QUARANTINE, FACTS = (
    "images.npy",
    "masks.npy",
    "table.parquet",
    "quarantine.csv",
    "dataset.json",
)


@dataclass(frozen=True)
class Cache:
    """An opened cache; the arrays are memory-mapped and read only when indexed.

    Attributes:
        folder: Folder of the cache.
        facts: Content of ``dataset.json``.
        table: One row per subject.
        images: (N, C, *S).
        masks: (N, *S), bit k is structure k.
    """

    folder: Path
    facts: dict[str, Any]
    table: pd.DataFrame
    images: NDArray[Any]
    masks: NDArray[np.uint8]

    def read_images(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Images of some subjects, (B, C, *S).

        Raises:
            ValueError: If the file was truncated after it was opened.
        """
        _refuse_short(self.folder / IMAGES, self.images)
        images: NDArray[Any] = self.images[rows]
        return images

    def read_masks(self, rows: NDArray[np.int64], structures: list[str]) -> NDArray[np.uint8]:
        """Masks of some subjects, (B, len(structures), *S) in {0, 1}.

        Raises:
            ValueError: If the file was truncated after it was opened.
        """
        _refuse_short(self.folder / MASKS, self.masks)
        bits = np.array([self.facts["plan"]["structures"].index(name) for name in structures], np.uint8)
        packed = self.masks[rows][:, None]
        return (packed >> bits.reshape(1, -1, *[1] * (packed.ndim - 2))) & np.uint8(1)


def open_cache(folder: Path) -> Cache:
    """Open a complete cache, memory-mapped.

    Raises:
        ValueError: If it is missing, partial or of another format, if its files are inconsistent, or if one of them is
            a link that leaves the folder.
    """
    if not (folder / FACTS).is_file():
        partial = partial_folder(folder)
        state = f"is only partly prepared (see {partial})" if partial.is_dir() else "is not a prepared data set"
        raise ValueError(f"{folder} {state}: run the same `segcft prepare` command (again)")
    for name in (FACTS, TABLE, IMAGES, MASKS):
        if (target := (folder / name).resolve()).parent != folder.resolve():
            raise ValueError(f"{folder / name} is a link to {target}, outside the cache: refused")
    facts = _read_facts(folder)
    try:
        images, masks = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (IMAGES, MASKS))
        table = pd.read_parquet(folder / TABLE)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is damaged, prepare it again: {error}") from error
    plan = facts["plan"]
    frame = (plan["subjects"], plan["channels"], *plan["frame"])
    if images.shape != frame or masks.shape != (frame[0], *frame[2:]) or str(images.dtype) != plan["dtype"]:
        raise ValueError(
            f"{folder} is damaged, prepare it again: {IMAGES} {images.shape} {images.dtype} and "
            f"{MASKS} {masks.shape} should have the frame {frame} {plan['dtype']}"
        )
    return Cache(folder, facts, table, images, masks)


def _refuse_short(file: Path, mapped: NDArray[Any]) -> None:
    """Check for truncation, since reading past the end of a mapped file kills the process (deleted files are fine)."""
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return
    if size < mapped.nbytes:
        raise ValueError(f"{file} has {size} bytes, {mapped.nbytes} are needed: it was cut short, prepare it again")


def partial_folder(folder: Path) -> Path:
    """Folder in which a cache is built before it is renamed."""
    return folder.with_name(f"{folder.name}.partial")


def make_plan(source: Source, table: pd.DataFrame) -> dict[str, Any]:
    """Everything that affects the content of a cache, as plain data; equal plans give identical bytes."""
    ids = hashlib.sha256("\n".join(table["id"].astype(str)).encode()).hexdigest()
    return {
        **_claims(source),
        "files": [{"name": path.name, "bytes": path.stat().st_size, "sha256": digest(path)} for path in source.files()],
        "subjects": len(table),
        "ids": ids,
    }


def differences(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences between two plans, such as ``option: 64 -> 192``; only keys of ``now`` are compared."""
    found = []
    for key, value in now.items():
        old = recorded.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            found += [f"{key}.{text}" for text in differences(old, value)]
        elif old != value:
            found.append(f"{key}: {_short(old)} -> {_short(value)}")
    return found


def stale(folder: Path, source: Source) -> list[str]:
    """Reasons why a complete cache differs from what ``source`` would produce now; empty if it does not.

    Options are compared, and the contents of tables that still exist, whatever time they bear.
    A cache that was copied to a machine without the tables is not stale.
    """
    plan = _read_facts(folder)["plan"]
    reasons = differences(plan, _claims(source))
    recorded = {entry["name"]: entry for entry in plan["files"]}
    for path in source.files():
        if not path.is_file():
            continue
        known = recorded.get(path.name)
        if known is None:
            reasons.append(f"{path} was not there")
        elif known["bytes"] != path.stat().st_size or digest(path) != known["sha256"]:
            reasons.append(f"{path} has changed")
    return reasons


def packed(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Masks of a subject as a cache holds them, (K, *S) -> (*S): bit k is structure k."""
    bits = np.uint8(1) << np.arange(len(mask), dtype=np.uint8)
    packed: NDArray[np.uint8] = (mask.astype(np.uint8) * bits.reshape(-1, *[1] * (mask.ndim - 1))).sum(
        0, dtype=np.uint8
    )
    return packed


def key(source: Source) -> str:
    """Eight hexadecimal digits that identify a source's options and paths."""
    files = [str(path.absolute()) for path in source.files()]
    return hashlib.sha256(json.dumps([_claims(source), files], sort_keys=True).encode()).hexdigest()[:8]


def _claims(source: Source) -> dict[str, Any]:
    """A source's description, converted through JSON."""
    claims = {
        "format": FORMAT,
        "source": source.name,
        "options": source.options(),
        "structures": list(source.structures),
        "frame": list(source.frame),
        "spacing": list(source.spacing),
        "channels": source.channels,
        "dtype": source.dtype,
        "window": list(source.window),
        "unit": source.unit,
    }
    read_back: dict[str, Any] = json.loads(json.dumps(claims))
    return read_back


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        version = facts["plan"]["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / FACTS} cannot be read: {error!r}") from error
    if version != FORMAT:
        raise ValueError(f"{folder} has format {version}; this segcft reads format {FORMAT}: prepare it again")
    return facts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
