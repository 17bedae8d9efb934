"""Self-describing checkpoints: weights plus the recipe of every part, opened with ``weights_only=True``.

A training checkpoint holds, besides Lightning's state, ``"segcft": {"version", "parts": {name: recipe}, "seconds"}``;
the weights of part ``name`` are the entries ``name.*`` of its ``state_dict``. A bundle, the folder that
``segcft export`` writes, can be given wherever a checkpoint is expected.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from segcft.core import manifests
from segcft.core.formatting import one_line
from segcft.core.recipes import Recorded, build, is_recipe, resolve

FORMAT = 1
BUNDLED = "model.ckpt"  # name of the checkpoint file in a bundle
EVALUATOR = "evaluator"  # name of the part that judges answers; it is taken for no other part
UNKNOWN = ("constraint.bound", "shape.coefficients")  # NaN until they are measured, if ever
MOST_NODES, MOST_DEPTH = 1_000_000, 60  # of a checkpoint's content, everything that is held twice counted twice
SPARE = 2**24  # numbers that a part may hold beside its weights: grids and the like
BROKEN = (TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError, AssertionError, MemoryError)
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
    if not Path(path).exists():
        raise ValueError(f"checkpoint {path} does not exist")
    file = manifests.verified(Path(path), BUNDLED) if Path(path).is_dir() else Path(path)
    try:
        _refuse_packed(file)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        _refuse_unlimited(checkpoint)
    except Exception as error:  # torch raises all kinds of errors on damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".splitlines()[:1])
        raise ValueError(f"{path} is not a checkpoint that can be opened safely: {reason}") from error
    if not isinstance(checkpoint, dict) or not isinstance(about := checkpoint.get("segcft"), dict):
        raise ValueError(f"{path} was not written by segcft: it has no 'segcft' entry")
    if about.get("version") != FORMAT:
        raise ValueError(f"{path} has format {about.get('version')!r:.20}; this segcft reads format {FORMAT}")
    if not _complete(checkpoint):
        raise ValueError(f"{path} is damaged: its parts, seconds or weights are not what segcft writes")
    return checkpoint


def _refuse_packed(file: Path) -> None:
    """See that a file is an archive as torch writes it, whose content is no larger than the file.

    Raises:
        ValueError: If it is of another format, or compressed: a small file could fill the memory.
    """
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > file.stat().st_size:
            raise ValueError("its entries are compressed")


def _refuse_unlimited(content: Any) -> None:
    """See that nothing is larger than it seems: nested too deep, held many times, or repeated by strides.

    Raises:
        ValueError: If something is.
    """
    left, seen = [(content, 0)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > MOST_DEPTH or seen > MOST_NODES:
            raise ValueError(f"it holds more than {MOST_DEPTH} levels or {MOST_NODES} values")
        if isinstance(value, dict):
            left += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list | tuple | set):
            left += [(inner, depth + 1) for inner in value]
        elif isinstance(value, torch.Tensor) and not _held(value):
            raise ValueError("it holds a tensor that claims more numbers than the file has")


def _held(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a plain one whose numbers are all there."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _complete(checkpoint: dict[str, Any]) -> bool:
    """Whether recipes, seconds and weights are there, each of its type."""
    about, state = checkpoint["segcft"], checkpoint.get("state_dict")
    parts, spent = about.get("parts"), about.get("seconds")
    if not (isinstance(parts, dict) and isinstance(spent, dict) and isinstance(state, dict)):
        return False
    recipes = all(isinstance(name, str) and is_recipe(recipe) for name, recipe in parts.items())
    numbers = all(isinstance(name, str) and type(value) in (int, float) for name, value in spent.items())
    return recipes and numbers and all(isinstance(weight, torch.Tensor) for weight in state.values())


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
    """Build a part and load its weights; a recipe that asks for more weights than there are is refused at once."""
    refuse_not_finite(state, str(path))
    weights = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    try:
        with _no_larger_than(sum(weight.numel() for weight in weights.values())):
            part = build(recipe)
        part.load_state_dict(weights)
    except (ValueError, *BROKEN) as error:
        kind = "" if isinstance(error, ValueError) else f" cannot be rebuilt, {type(error).__name__}"
        raise ValueError(f"{path}: {name}{kind}: {one_line(error)}") from error
    return part


@contextmanager
def _no_larger_than(numbers: int) -> Iterator[None]:
    """Refuse modules that register many more numbers, before these are drawn and take memory.

    Raises:
        ValueError: If a module does.
    """
    total = 0

    def count(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
        nonlocal total
        total += 0 if value is None else value.numel()
        if total > 2 * numbers + SPARE:
            raise ValueError(f"{type(module).__name__}.{name} is far larger than the weights that the file holds")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
