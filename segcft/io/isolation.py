"""Reading and writing files of strangers in other processes, with limits on memory and time."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segcft.io.orientation import Turn
from segcft.io.picture import LARGEST, Picture, Pixels, Window

MEMORY, SECONDS = 2**30, 20  # bytes and seconds for one file


class Decoders:
    """Processes that decode image files, each file in a fork with limits; see ``isolated_process``.

    May be used by several threads. Processes are started when they are first needed, or by ``start``, and end with
    this object or its process.

    Args:
        count: How many files are decoded at once.
        memory: Bytes for reading one file; writing may take three times.
        seconds: Seconds for reading one file; writing may take three times.
    """

    def __init__(self, count: int = 2, memory: int = MEMORY, seconds: int = SECONDS) -> None:
        self.memory, self.seconds = memory, seconds
        self._idle: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def start(self) -> None:
        """Start one process, so that the first file does not have to wait for it."""
        with self._process():
            pass

    def read_picture(self, path: Path, window: Window | None = None, largest: int = LARGEST) -> Picture:
        """As ``readers.read_picture``; levels of 64 bits become float32.

        Raises:
            ValueError: As there, and if it takes too much memory or time.
        """
        with tempfile.TemporaryDirectory(prefix="segcft-") as folder:
            levels = Path(folder) / "levels.npy"
            request = {"path": str(path), "window": window, "largest": largest, "levels": str(levels)}
            told = self._ask({"read": request}, f"{path} cannot be read as an image")
            affine, corners = (None if told[name] is None else np.array(told[name]) for name in ("affine", "corners"))
            spacing = None if told["spacing"] is None else tuple(told["spacing"])
            more = Turn(*told["turn"]), told["anatomical"], corners, tuple(told["doubts"])
            return Picture(np.load(levels), spacing, affine, *more)

    def write_changed(self, source: Path, change: Pixels, target: Path, window: Window | None, note: str) -> None:
        """As ``writers.write_changed``, without identity.

        Raises:
            ValueError: As there, and if it takes too much memory or time.
        """
        with tempfile.TemporaryDirectory(prefix="segcft-") as folder:
            np.save(Path(folder) / "change.npy", change)
            request = {"source": str(source), "change": f"{folder}/change.npy", "target": str(target)}
            reason = f"{source} cannot be written with a change"
            self._ask({"write": {**request, "window": window, "note": note}}, reason)

    def _ask(self, request: dict[str, Any], reason: str) -> dict[str, Any]:
        with self._process() as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        told: dict[str, Any] = json.loads(line) if line else {"error": "its decoder crashed"}
        if "error" in told:
            raise ValueError(told["error"] if told.get("told") else f"{reason}: {told['error']}")
        return told

    @contextmanager
    def _process(self) -> Iterator["subprocess.Popen[bytes]"]:
        """One that is idle; another takes its place if it has ended."""
        process = self._idle.get()
        try:
            if process is None or process.poll() is not None:
                process = _started(self.memory, self.seconds)
                weakref.finalize(self, _stop, process)
            yield process
        except OSError as error:
            raise ValueError(f"files cannot be decoded now: {error}") from error
        finally:
            self._idle.put(process)


def _started(memory: int, seconds: int) -> "subprocess.Popen[bytes]":
    command: Sequence[str] = [sys.executable, "-P", "-m", "segcft.io.isolated_process", str(memory), str(seconds)]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}  # it forks
    pipe, environment = subprocess.PIPE, {**os.environ, **one, "PYTHONPATH": paths}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()
