"""Random generators of this process as plain data: kept in checkpoints, restored, and told apart between processes."""

import random
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def state() -> State:
    """Python's, NumPy's and torch's generators, on the processor and on this process's GPU."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (the generator that libraries use)
    words_of_numpy = np.asarray(keys).tolist()
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {"kind": str(kind), "keys": words_of_numpy, "place": place, "gauss": [has_gauss, float(cached)]},
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore(found: State) -> None:
    """Go on where ``state`` was."""
    python, numpy = found["python"], found["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state((numpy["kind"], np.array(numpy["keys"], np.uint32), numpy["place"], *numpy["gauss"]))  # noqa: NPY002
    torch.set_rng_state(found["torch"])
    if found["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"][0])


def separate(rank: int) -> None:
    """Give processes that were seeded alike their own chance; rank 0 keeps its own."""
    if rank:
        seed = (torch.initial_seed() + 1_000_003 * rank) % 2**32
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
