"""Self-describing checkpoints: weights plus the recipe of every part, opened with ``weights_only=True``.

A training checkpoint holds, besides Lightning's state, ``"segcft": {"version", "parts": {name: recipe}, "seconds"}``;
the weights of part ``name`` are the entries ``name.*`` of its ``state_dict``. A bundle, the folder that
``segcft export`` writes, can be given wherever a checkpoint is expected.
"""

import pickle
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from segcft.core import manifests
from segcft.core.recipes import Recorded, build, resolve

FORMAT = 1
BUNDLED = "model.ckpt"  # name of the checkpoint file in a bundle
EVALUATOR = "evaluator"  # name of the part that judges answers; it is taken for no other part
UNKNOWN = ("constraint.bound", "shape.coefficients")  # NaN until they are measured, if ever
Part = TypeVar("Part", bound=nn.Module)


def describe(parts: dict[str, Recorded], seconds: dict[str, float]) -> dict[str, Any]:
    """The entry that a checkpoint stores under ``"segcft"``.

    Args:
        parts: Attribute name of the task -> the module stored there.
        seconds: Training seconds, stage name -> seconds, of this stage and the earlier ones it started from.
    """
    return {"version": FORMAT, "parts": {name: part.recipe for name, part in parts.items()}, "seconds": seconds}


def read(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint file, or the checkpoint in a bundle folder after checking its checksums; runs no code from it.

    Args:
        path: Of the file or the folder.
        mapped: Leave the weights on disk until they are used.

    Raises:
        ValueError: If the file is missing, damaged, unsafe or not written by segcft, or if the bundle fails its checks.
    """
    try:
        file = manifests.verified(Path(path), BUNDLED) if Path(path).is_dir() else path
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise ValueError(f"checkpoint {path} does not exist") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:  # OSError: truncated
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is not a checkpoint that can be opened safely: {reason}") from error
    if not isinstance(checkpoint, dict) or "segcft" not in checkpoint:
        raise ValueError(f"{path} was not written by segcft: it has no 'segcft' entry")
    if checkpoint["segcft"]["version"] != FORMAT:
        raise ValueError(f"{path} has format {checkpoint['segcft']['version']}; this segcft reads format {FORMAT}")
    return checkpoint


def load(path: str | Path, kind: type[Part]) -> Part:
    """Rebuild the part of type ``kind`` with its trained weights (the EMA weights if the run kept an average).

    Raises:
        ValueError: If the checkpoint cannot be read or holds no part of that kind.
    """
    checkpoint = read(path)
    parts = checkpoint["segcft"]["parts"]
    for name, recipe in parts.items():
        if name != EVALUATOR and issubclass(resolve(recipe["class_path"]), kind):
            part: Part = _restored(path, name, recipe, checkpoint["state_dict"])
            return part
    held = ", ".join(recipe["class_path"] for recipe in parts.values())
    raise ValueError(f"{path} is the wrong kind of checkpoint: a {kind.__name__} is needed, it holds {held}")


def search(path: str | Path, kind: type[Part], evaluator: bool = False) -> Part | None:
    """The first module of type ``kind`` in a checkpoint, at any depth; None if it has none.

    Args:
        path: Of the checkpoint or bundle.
        kind: Of the module.
        evaluator: Look in the part called evaluator instead of all others.

    Raises:
        ValueError: If the checkpoint cannot be read.
    """
    checkpoint = read(path)
    parts = checkpoint["segcft"]["parts"].items()
    for name, recipe in ((name, recipe) for name, recipe in parts if (name == EVALUATOR) == evaluator):
        for module in _restored(path, name, recipe, checkpoint["state_dict"]).modules():
            if isinstance(module, kind):
                return module
    return None


def _restored(path: str | Path, name: str, recipe: dict[str, Any], state: dict[str, Any]) -> Any:
    refuse_not_finite(state, str(path))
    part, prefix = build(recipe), f"{name}."
    part.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return part


def refuse_not_finite(weights: dict[str, Any], where: str) -> None:
    """See that weights are numbers.

    Raises:
        ValueError: If one is not; names it, and ``where`` it was.
    """
    for name, weight in weights.items():
        floating = isinstance(weight, torch.Tensor) and weight.is_floating_point()
        if floating and not name.endswith(UNKNOWN) and not bool(weight.isfinite().all()):
            raise ValueError(f"{name} of {where} is not finite")


def seconds(path: str | Path) -> dict[str, float]:
    """Training seconds by stage, of the stage that wrote the checkpoint and the earlier ones it started from."""
    spent: dict[str, float] = read(path)["segcft"]["seconds"]
    return spent
