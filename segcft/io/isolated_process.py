"""A process that decodes image files of strangers for ``segcft.io.isolation``.

Reads one request a line as JSON and answers each with a line. Every request is worked on in a fork of its own, with a
limit on memory and time; a fork takes milliseconds, while importing the decoders takes half a second.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segcft.io.readers import read_picture
from segcft.io.writers import write_changed

WRITING = 3  # times memory and time of reading; what is written was read before


def main(memory: int, seconds: int) -> None:
    """Answer requests until there are no more.

    Args:
        memory: Bytes that reading a file may take on top of what the process has; writing takes ``WRITING`` times.
        seconds: That reading a file may take; writing takes ``WRITING`` times.
    """
    for line in sys.stdin.buffer:
        request = json.loads(line)
        factor = WRITING if "write" in request else 1
        print(_forked(request, factor * memory, factor * seconds), flush=True)


def _forked(request: dict[str, Any], memory: int, seconds: int) -> str:
    """The answer to a request from a process of its own, as JSON."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(reading)
            _limit(memory, seconds)
            os.write(writing, json.dumps(_answered(request)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if answer and code == 0:
        return answer.decode()
    slow = code in (-signal.SIGALRM, -signal.SIGXCPU)
    return json.dumps({"error": f"it takes longer than {seconds} s" if slow else "its decoder crashed"})


def _limit(memory: int, seconds: int) -> None:
    """Limit this process for good, and close what it does not need."""
    signal.alarm(seconds)  # ends it, since nothing handles the signal
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # warnings of decoders quote the file
        os.dup2(nothing, stream)
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_CORE": 0, "RLIMIT_AS": _size() + memory, "RLIMIT_FSIZE": memory}
    for name, most in limits.items():
        with suppress(ValueError, OSError):  # macOS does not limit address space
            resource.setrlimit(getattr(resource, name), (most, most))


def _size() -> int:
    """Bytes of address space of this process; 0 if the system does not say."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _answered(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _read(**request["read"]) if "read" in request else _write(**request["write"])
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:
        return {"error": str(error) or type(error).__name__, "told": isinstance(error, ValueError)}


def _read(path: str, window: tuple[float, float] | None, largest: int, levels: str) -> dict[str, Any]:
    """Read a picture; its levels are saved at ``levels``, those of 64 bits as float32."""
    picture = read_picture(Path(path), tuple(window) if window else None, largest)  # type: ignore[arg-type]
    small = picture.levels if picture.levels.itemsize <= 4 else picture.levels.astype(np.float32)
    np.save(levels, small, allow_pickle=False)
    turn, places = picture.turn, {"affine": picture.affine, "corners": picture.corners}
    return {
        "spacing": picture.spacing,
        "turn": [turn.transposed, turn.rows, turn.columns],
        "anatomical": picture.anatomical,
        "doubts": picture.doubts,
        **{name: None if value is None else value.tolist() for name, value in places.items()},
    }


def _write(source: str, change: str, target: str, window: tuple[float, float] | None, note: str) -> dict[str, Any]:
    """Write a file with the change saved at ``change``."""
    limits: Any = tuple(window) if window else None
    write_changed(Path(source), np.load(change, allow_pickle=False), Path(target), limits, note)
    return {}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
