"""A server's own folder for temporary files, which the next server removes if this one is killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segcft.core.file_locks import lock

PREFIX = "segcft-app-"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Keep the temporary files of this process in one folder, and remove it at the end.

    A lock on the folder tells that its server is alive; folders without one are removed at the start.
    """
    outside = tempfile.gettempdir()
    for folder in Path(outside).glob(f"{PREFIX}*"):
        _remove_abandoned(folder)
    folder, handle = _made(outside)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _made(outside: str) -> tuple[Path, int]:
    """A new folder and its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=outside))
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # taken for abandoned before it was locked
            continue
        lock(handle)
        if folder.exists():
            return folder, handle
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # removed meanwhile, another user's, or a link
        return
    try:
        if os.fstat(handle).st_uid == os.getuid() and lock(handle, wait=False):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)
