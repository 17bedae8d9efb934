"""Devices by the names that users give."""

import torch


def device(name: str) -> torch.device:
    """The device of an option ``--device``.

    Raises:
        ValueError: If it is not ``cpu``, ``cuda``, ``cuda:N`` or ``mps``, or this machine does not have it.
    """
    here = available()
    try:
        found = torch.device(name)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device {name}: cpu, cuda or mps is needed; this machine has {', '.join(here)}")
    if found.type not in {each.partition(":")[0] for each in here} or (found.index or 0) >= _count(found.type):
        raise ValueError(f"--device {name}: this machine, as torch {torch.__version__} sees it, has {', '.join(here)}")
    return found


def available() -> list[str]:
    """Names of the devices that torch can use here."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def _count(kind: str) -> int:
    return torch.cuda.device_count() if kind == "cuda" else 1
