"""Checkpoints that explain themselves: recipes and weights, opened with ``weights_only=True`` anywhere.

A training checkpoint holds, beside Lightning's state, ``"segcft": {"version", "parts": {name: recipe}, "seconds"}``;
the weights of part ``name`` are the entries ``name.*`` of its ``state_dict``. A bundle, the folder that
``segcft export`` writes, is read wherever a checkpoint is.
"""

import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from segcft.core import manifests
from segcft.core.recipes import Recorded, build, resolve

FORMAT = 1
BUNDLED = "model.ckpt"  # the checkpoint of a bundle
Part = TypeVar("Part", bound=nn.Module)


def describe(parts: dict[str, Recorded], seconds: dict[str, float]) -> dict[str, Any]:
    """What to store under ``"segcft"``.

    Args:
        parts: Attribute of the task -> the part it holds.
        seconds: Training seconds of this stage and of those it builds on.
    """
    return {"version": FORMAT, "parts": {name: part.recipe for name, part in parts.items()}, "seconds": seconds}


def read(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint, or that of a bundle whose files are all as they were exported, without running code from it.

    Raises:
        ValueError: If the file is missing, not a checkpoint, hostile, or not segcft's, or the bundle is not intact.
    """
    try:
        file = manifests.verified(Path(path), BUNDLED) if Path(path).is_dir() else path
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"checkpoint {path} does not exist") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:  # the last: cut short
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is not a checkpoint that can be opened safely: {reason}") from error
    if not isinstance(checkpoint, dict) or "segcft" not in checkpoint:
        raise ValueError(f"{path} was not written by segcft: it holds no recipe")
    if checkpoint["segcft"]["version"] != FORMAT:
        raise ValueError(f"{path} has format {checkpoint['segcft']['version']}; this segcft reads format {FORMAT}")
    return checkpoint


def load(path: str | Path, kind: type[Part]) -> Part:
    """Rebuild the part of type ``kind`` with its trained weights (EMA weights where the run kept them).

    Raises:
        ValueError: If the checkpoint cannot be read or holds no part of that kind.
    """
    checkpoint = read(path)
    parts = checkpoint["segcft"]["parts"]
    for name, recipe in parts.items():
        if issubclass(resolve(recipe["class_path"]), kind):
            part: Part = _restored(name, recipe, checkpoint["state_dict"])
            return part
    held = ", ".join(recipe["class_path"] for recipe in parts.values())
    raise ValueError(f"{path} is the wrong kind of checkpoint: a {kind.__name__} is needed, it holds {held}")


def search(path: str | Path, kind: type[Part]) -> Part | None:
    """The first module of type ``kind`` anywhere inside a checkpoint's parts; None if there is none.

    Raises:
        ValueError: If the checkpoint cannot be read.
    """
    checkpoint = read(path)
    for name, recipe in checkpoint["segcft"]["parts"].items():
        for module in _restored(name, recipe, checkpoint["state_dict"]).modules():
            if isinstance(module, kind):
                return module
    return None


def _restored(name: str, recipe: dict[str, Any], state: dict[str, Any]) -> Any:
    part, prefix = build(recipe), f"{name}."
    part.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return part


def seconds(path: str | Path) -> dict[str, float]:
    """Training seconds of the stage that wrote a checkpoint and of those it builds on."""
    spent: dict[str, float] = read(path)["segcft"]["seconds"]
    return spent
