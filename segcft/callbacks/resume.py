"""Resuming: selects the last intact checkpoint of the same unfinished run, or none.

While a run is training, ``unfinished.json`` next to its checkpoints holds its number and every option that affects the
result. It is removed when the run has finished. A checkpoint belongs to the run whose number it holds.
"""

import json
import logging
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segcft.core import checkpoints
from segcft.core.atomic_files import write_text

LAST, PREVIOUS, MARK = "last.ckpt", "previous.ckpt", "unfinished.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Identity of one training run, which may have been interrupted and resumed.

    Attributes:
        number: Random identifier, hexadecimal.
        configuration: Every option that affects the result, name -> plain value.
        version: Version of its folder under logs/; None for a new one.
    """

    number: str
    configuration: dict[str, Any]
    version: int | str | None = None

    def mark(self, folder: Path) -> None:
        """Write ``unfinished.json`` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / MARK, json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Start:
    """How a run starts.

    Attributes:
        run: A new run, or the one that is resumed.
        checkpoint: Checkpoint to resume from; None to start from scratch.
        step: Optimiser steps taken in that checkpoint.
    """

    run: Run
    checkpoint: Path | None = None
    step: int = 0


def begin(folder: Path, configuration: dict[str, Any], resume: str) -> Start:
    """Decide whether to resume and from which checkpoint; writes nothing.

    Args:
        folder: Folder of the stage's checkpoints.
        configuration: Every option that affects the result, as returned by ``facts``.
        resume: ``auto``, ``force``, ``never`` or the path of a checkpoint.

    Raises:
        ValueError: If the requested checkpoint cannot be read, or (``auto``) an interrupted run has another
            configuration, data, commit or packages.
    """
    fresh, found = Run(uuid.uuid4().hex, configuration), None if resume == "never" else marked(folder)
    usable = _last_of(folder, found.number) if found is not None else None
    if found is not None and usable is not None:
        (path, step), differing = usable, differences(found.configuration, configuration)
        if differing and resume == "auto":
            several = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
            raise ValueError(
                f"{folder} holds a run that was interrupted at step {step}, and since then: {several}. "
                "--resume=force goes on nevertheless, --resume=never starts from scratch and overwrites it"
            )
        if not differing or resume == "force":
            log.warning("resuming the interrupted run at step %d, %s", step, path)
            return Start(replace(found, configuration=configuration), path, step)
    if resume in ("auto", "never", "force"):
        if found is not None and usable is None:
            log.warning("no checkpoint in %s can be resumed from: the run starts from scratch", folder)
        return Start(fresh)
    if "global_step" not in (content := intact(Path(resume))):
        raise ValueError(f"--resume={resume}: it holds a model alone, nothing of a training that could go on")
    checkpoints.refuse_not_finite(content["state_dict"], resume)
    return Start(fresh, Path(resume), int(content["global_step"]))


def _last_of(folder: Path, run: str) -> tuple[Path, int] | None:
    """The last readable checkpoint of a run, and its step."""
    for path, content in whole(folder):
        if content.get("run") == run:
            return path, int(content["global_step"])
    return None


def marked(folder: Path) -> Run | None:
    """The unfinished run, if there is one."""
    try:
        return Run(**json.loads((folder / MARK).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def whole(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Readable checkpoints, the last one first; damaged ones are logged and skipped."""
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            yield path, intact(path)
        except ValueError as error:
            log.warning("%s; it was skipped", error)


def intact(path: Path) -> dict[str, Any]:
    """Read a checkpoint after verifying its checksums.

    Raises:
        ValueError: If one does not match or the file cannot be read; names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not verify checksums when loading
            wrong = archive.testzip()
    except FileNotFoundError as error:
        raise ValueError(f"checkpoint {path} does not exist") from error
    except Exception as error:  # of any type: a flipped bit can announce encryption, another version or compression
        raise ValueError(f"{path} is damaged: {error or type(error).__name__}") from error
    if wrong is not None:
        raise ValueError(f"{path} is damaged: the checksum of {wrong} is wrong")
    return checkpoints.read(path)


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as flat plain data, ``a.b`` -> value, with size and modification time of files it names."""
    flat = dict(_flat("", config))
    for name, value in list(flat.items()):
        if isinstance(value, str) and 0 < len(value) < 1024 and Path(value).is_file():
            about = Path(value).stat()
            flat[f"{name}, the file"] = f"{about.st_size} bytes, {about.st_mtime_ns}"
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two configurations, one line each."""
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
