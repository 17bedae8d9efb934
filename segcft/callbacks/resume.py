"""Which checkpoint a run goes on from: the last whole one of the same, unfinished run, or none.

While a run is at work, ``unfinished.json`` lies beside its checkpoints: its number, and all that decides what it
learns. The run takes it away when it has finished. A checkpoint belongs to the run whose number it holds.
"""

import json
import logging
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segcft.core import checkpoints
from segcft.core.atomic_files import write_text

LAST, PREVIOUS, MARK = "last.ckpt", "previous.ckpt", "unfinished.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One training, be it interrupted or not.

    Attributes:
        number: Its own, in hexadecimal.
        configuration: All that decides what it learns, name -> plain value.
        version: Of the folder under logs/ that it writes to; None to take a new one.
    """

    number: str
    configuration: dict[str, Any]
    version: int | str | None = None

    def mark(self, folder: Path) -> None:
        """Say that it is at work."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / MARK, json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Start:
    """How a run begins.

    Attributes:
        run: The new run, or the one that goes on.
        checkpoint: Where it goes on from; None to start afresh.
        step: Optimiser steps that were taken there.
    """

    run: Run
    checkpoint: Path | None = None
    step: int = 0


def begin(folder: Path, configuration: dict[str, Any], resume: str) -> Start:
    """Decide; nothing is written.

    Args:
        folder: Of the stage's checkpoints.
        configuration: All that decides what the run learns, as ``facts`` gives it.
        resume: ``auto``, ``never`` or the path of a checkpoint.

    Raises:
        ValueError: If the checkpoint that is asked for cannot be read.
    """
    fresh, found = Run(uuid.uuid4().hex, configuration), None if resume == "never" else marked(folder)
    if found is not None:
        differing = differences(found.configuration, configuration)
        for path, content in whole(folder) if not differing else ():
            if content.get("run") == found.number:
                log.warning("going on from step %d of the interrupted run, %s", content["global_step"], path)
                return Start(found, path, content["global_step"])
        if differing and resume == "auto":
            several = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
            log.warning("%s lies in %s, but it is another run: %s. Starting afresh", MARK, folder, several)
    if resume in ("auto", "never"):
        return Start(fresh)
    return Start(fresh, Path(resume), int(checkpoints.read(resume)["global_step"]))


def marked(folder: Path) -> Run | None:
    """The unfinished run, if there is one."""
    try:
        return Run(**json.loads((folder / MARK).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def whole(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Checkpoints that can be read, the last one first; says which one is damaged."""
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            yield path, intact(path)
        except ValueError as error:
            log.warning("%s is damaged and left out: %s", path, error)


def intact(path: Path) -> dict[str, Any]:
    """A checkpoint whose every byte is as it was written.

    Raises:
        ValueError: If it is not.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch's own reading does not compare the sums
            wrong = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(str(error)) from error
    if wrong is not None:
        raise ValueError(f"the checksum of {wrong} is wrong")
    return checkpoints.read(path)


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as flat plain data, ``a.b`` -> value, with size and time of every file that it names."""
    flat = dict(_flat("", config))
    for name, value in list(flat.items()):
        if isinstance(value, str) and 0 < len(value) < 1024 and Path(value).is_file():
            about = Path(value).stat()
            flat[f"{name}, the file"] = f"{about.st_size} bytes, {about.st_mtime_ns}"
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, a line each."""
    missing = "nothing"
    names = sorted(before.keys() | now.keys())
    pairs = ((name, before.get(name, missing), now.get(name, missing)) for name in names)
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield prefix, value if value is None or type(value) in (str, int, float, bool) else str(value)
        return
    for key, inner in items:
        yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
