"""How every command computes on a CPU; no result changes by it."""

import ctypes
import sys

import torch

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
KEPT = 2**31 - 1  # bytes, in all and in one block
LARGEST = 2**25  # of a block, where glibc allows no more


def hasten() -> None:
    """Let no step wait for denormal numbers or for memory.

    Numbers below 1e-38 count as 0: a convolution takes ten times as long for them. Memory that a step has freed is
    kept for the next one, up to 2 GiB: given back to the system it comes again page by page, each cleared anew.
    """
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # of glibc; other systems keep their ways
        mallopt(TRIM, KEPT)
        mallopt(MMAP, KEPT) or mallopt(MMAP, LARGEST)
