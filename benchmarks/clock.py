"""Clocks, memory and arithmetic: what the benchmarks of speed measure with."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from segcft.cli import cpu

Step = Callable[[], Any]
PEAK_SHAPES = {"cpu": ((8, 64, 64), (4, 128, 64)), "cuda": ((64, 256, 64), (256, 256, 32))}  # images, channels, pixels


class Spent(NamedTuple):
    """Seconds of one step."""

    wall: float
    cpu: float


def timed(step: Step, device: torch.device) -> Spent:
    """Run a step until the device has done it."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    _wait(device)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(
    steps: "Mapping[str, Step | Side]", rounds: int, device: torch.device, warmup: int = 1
) -> dict[str, list[Spent]]:
    """Every step once a round, so that whatever disturbs the machine disturbs all of them."""
    spent: dict[str, list[Spent]] = {name: [] for name in steps}
    for turn in range(warmup + rounds):
        for name, step in steps.items():
            once = step.ask("step") if isinstance(step, Side) else timed(step, device)
            if turn >= warmup:
                spent[name].append(once)
    return spent


def ratio(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float, float]:
    """How often the second goes into the first, of paired rounds: median, smallest, largest; and of their minima."""
    each = [one / other for one, other in zip(slow, fast, strict=True)]
    return statistics.median(each), min(each), max(each), min(slow) / min(fast)


def flops(step: Step) -> float:
    """Floating point operations of a step, those of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def convolution_peak(device: torch.device, dtype: torch.dtype, rounds: int = 10) -> float:
    """FLOP/s of the best 3x3 convolution found on this machine: per CPU second, on a GPU per second."""
    best = 0.0
    for images, channels, pixels in PEAK_SHAPES[device.type]:
        x = torch.randn(images, channels, pixels, pixels, device=device, dtype=dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
        work = 2 * images * channels * channels * 9 * pixels**2

        @torch.no_grad()
        def step(x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
            F.conv2d(x, weight, padding=1)

        spent = [timed(step, device) for _ in range(rounds)]
        key = "wall" if device.type == "cuda" else "cpu"
        seconds = min(getattr(once, key) for once in spent)
        best = max(best, work / seconds)
    return best


class Side:
    """A process of its own that takes a step whenever asked to, with nobody else's memory and settings in its way.

    Args:
        build: Makes the step; like ``given`` it has to be found by name, for both go there.
        given: Its arguments; a device among them is where the step runs, the CPU by default.
        threads: Of torch.
        hastened: Whether it computes as every command of ours does, see ``cpu.hasten``; else its allocator
            is the system's, too.
    """

    def __init__(
        self, build: Callable[..., Step], given: Sequence[Any] = (), threads: int = 1, hastened: bool = True
    ) -> None:
        context = get_context("forkserver" if hastened else "spawn")  # the first imports once, and forks from there
        context.set_forkserver_preload(["benchmarks.paths"])
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, given, threads, hastened), daemon=True)
        with patch.dict(os.environ):
            if not hastened:
                os.environ.pop("LD_PRELOAD", None)
            self._process.start()
        theirs.close()  # so that a process that dies is noticed
        self.ask("")

    def ask(self, word: str) -> Any:
        """What it answers to ``step``: ``Spent``; to ``memory``: MiB, see ``held``.

        Raises:
            RuntimeError: If the process has ended.
        """
        try:
            self._ours.send(word)
            return self._ours.recv()
        except (EOFError, BrokenPipeError):
            self._process.join()
            raise RuntimeError(f"a process that takes steps ended with status {self._process.exitcode}") from None

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.join()


def _serve(asked: Connection, build: Callable[..., Step], given: Sequence[Any], threads: int, hastened: bool) -> None:
    torch.set_num_threads(threads)
    if hastened:
        cpu.hasten()
    device = next((each for each in given if isinstance(each, torch.device)), torch.device("cpu"))
    before = held(device)
    step = build(*given)
    while True:
        try:
            word = asked.recv()
        except EOFError:
            return
        if word == "step":
            asked.send(timed(step, device))
        else:
            most = held(device)
            asked.send((most, most - before))


def held(device: torch.device) -> float:
    """Most memory that this process ever held, MiB; on a GPU that of its tensors."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident()


def resident() -> float:
    """Most memory that this process ever held, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # the other figure is handed on to processes that are started
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return getrusage(RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
