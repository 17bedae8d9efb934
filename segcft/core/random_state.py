"""State of the random generators (Python, NumPy, torch): saved in checkpoints, restored, and different per process."""

import random
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def state() -> State:
    """State of Python's, NumPy's and torch's generators, on the CPU and on this process's GPU, as plain data."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (used by libraries)
    words_of_numpy = np.asarray(keys).tolist()
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {"kind": str(kind), "keys": words_of_numpy, "place": place, "gauss": [has_gauss, float(cached)]},
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore(found: State) -> None:
    """Set all generators to a state that ``state`` returned."""
    python, numpy = found["python"], found["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state((numpy["kind"], np.array(numpy["keys"], np.uint32), numpy["place"], *numpy["gauss"]))  # noqa: NPY002
    torch.set_rng_state(found["torch"])
    if found["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"][0])


def separate(rank: int) -> None:
    """Reseed the generators by rank, so that processes draw different numbers; rank 0 keeps its seed."""
    if rank:
        seed = (torch.initial_seed() + 1_000_003 * rank) % 2**32
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
