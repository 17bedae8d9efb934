"""One process at a time in a folder, also on a file system that several machines share.

The lock is a file that names its holder: process and host. On the same host a holder whose process has ended is
replaced at once. Elsewhere it cannot be asked, so it touches its file every ``BEAT`` seconds, and one that has not done
so for ``SILENCE`` seconds, by the watching machine's own clock, is taken to have ended.
"""

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT, SILENCE = 15.0, 60.0
log = logging.getLogger(__name__)
_held: set[str] = set()  # by this process: a file that it could not remove holds nothing


class Lock:
    """A lock that this process holds.

    Args:
        path: Its file.
        text: What this process wrote into it.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self._over = threading.Event()
        _held.add(text)
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """See that nobody else has taken it, which happens to a process that was stopped for a while.

        Raises:
            ValueError: If somebody has.
        """
        if _text(self.path) != self.text:
            raise ValueError(f"{self.path.parent} was taken over by another process: this one must not go on there")

    def release(self) -> None:
        """Remove the file, if it is still this process's; others see of one that stays that its process has ended."""
        self._over.set()
        _held.discard(self.text)
        if _text(self.path) == self.text:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            if _text(self.path) == self.text:
                with suppress(OSError):
                    os.utime(self.path)


@contextmanager
def alone(path: Path, wait: bool = False) -> Iterator[Lock]:
    """Hold a lock.

    Args:
        path: Its file, whose folder exists.
        wait: Wait for another holder instead of refusing.

    Raises:
        ValueError: If another process holds it; names the process and its host.
    """
    lock = Lock(path, _taken(path, wait))
    try:
        yield lock
    finally:
        lock.release()


def _taken(path: Path, wait: bool) -> str:
    """Write the file as soon as no living process holds it; its content."""
    text, told = (
        json.dumps({**_place(), "pid": os.getpid(), "began": _began(os.getpid()), "key": uuid.uuid4().hex}),
        False,
    )
    while not _created(path, text):
        seen = _text(path)
        if seen is None or not _lives(path, seen):
            _removed(path, seen)
        elif not wait:
            raise ValueError(
                f"{path.parent} is in use by {_named(seen)}: two at once would mix what they write there "
                f"(if that process has ended, remove {path})"
            )
        else:
            if not told:
                log.warning("%s is in use by %s, waiting for it", path, _named(seen))
            told = True
            time.sleep(0.2)
    return text


def _created(path: Path, text: str) -> bool:
    """Make the file with its content at once; False if there is one. Links are atomic on network file systems, too."""
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    own.write_text(text, encoding="utf-8")
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        own.unlink(missing_ok=True)
    return True


def _removed(path: Path, seen: str | None) -> None:
    """Remove the file of a holder that has ended; put it back if another one has been quicker."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if _text(aside) != seen:
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _lives(path: Path, seen: str) -> bool:
    """Whether the holder's process has not ended."""
    try:
        holder = json.loads(seen)
        if {name: holder[name] for name in _place()} == _place():
            same = _began(int(holder["pid"])) == holder["began"] is not None
            return bool(same) and (holder["pid"] != os.getpid() or seen in _held)
    except (ValueError, KeyError, TypeError):
        pass  # written by something else: only time tells
    before, end = _touched(path), time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENCE / 10))
        if _touched(path) != before:
            return True
    return False


def _place() -> dict[str, str]:
    """The host, its start and its space of process numbers, which containers have of their own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return {
        "host": platform.node(),
        "boot": boot.read_text().strip() if boot.is_file() else "",
        "space": os.readlink(space) if space.exists() else "",
    }


def _began(process: int) -> str | None:
    """When a process of this host began, so that a number that is used again is not mistaken; None if it has ended."""
    state = Path(f"/proc/{process}/stat")
    try:
        fields = state.read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(process, 0)  # where there is no /proc
    except OSError:
        return None
    return ""


def _named(seen: str) -> str:
    try:
        holder = json.loads(seen)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
