"""Writing files whole or not at all, and telling them apart."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Write to a temporary neighbour and rename it once all went well; on failure nothing is left behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary neighbour and rename it once all went well; on failure nothing is left behind.

    Raises:
        ValueError: If a file or a folder that is not empty lies there already.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder: nothing was written")
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)  # over an empty folder, too; refused by the system if it has been filled since
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with staged(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def try_out(folder: Path) -> None:
    """See that a folder can be made and written.

    Raises:
        ValueError: If it cannot.
    """
    trial = folder / f".{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"x")
        trial.unlink()
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
