"""Safety of configurations: no file, option or checkpoint makes an object of code that the user has not trusted."""

import functools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from segcft.core import bounded_yaml
from segcft.core.recipes import TRUST, TRUSTED_PACKAGES, declared, made_in, trusts

_PARTS = ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")
NAMEABLE = (
    *TRUSTED_PACKAGES,
    *(f"lightning.{package}.{part}" for package in ("pytorch", "fabric") for part in _PARTS),
    *("torch.optim", "torch.nn"),
)
OPTION = "--trust"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def admit(arguments: Sequence[str]) -> list[str]:
    """Remove ``--trust PACKAGE`` from a command line, trust these packages, and see that configurations can be read.

    Returns:
        The remaining arguments.

    Raises:
        ValueError: If the name of the package is missing, or a file is not YAML or exceeds the limits.
    """
    others, given = [], iter(arguments)
    for argument in given:
        if argument == OPTION or argument.startswith(f"{OPTION}="):
            package = argument.partition("=")[2] or next(given, "")
            if not package:
                raise ValueError(f"{OPTION} needs the name of a package")
            os.environ[TRUST] = ",".join([*declared(), package])
        else:
            others.append(argument)
    for before, argument in zip(["", *others], others, strict=False):
        if argument.startswith("--config=") or before in ("--config", "-c"):
            _check(Path(argument.removeprefix("--config=")))
    return others


def _check(path: Path) -> None:
    """Whether a file is YAML within the limits; what jsonargparse says of one does not name it."""
    try:
        if path.is_file():
            bounded_yaml.check(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a valid YAML file: {' '.join(str(error).split())}") from error


def guard() -> None:
    """Let jsonargparse make objects of trusted code alone, whichever file, string or option names it.

    It is decided where a name becomes an object: the name must lie in a trusted package before its module is imported,
    and the object that it leads to must have been made there, so no path walks from a trusted module to another one.
    YAML is bounded where it is parsed, see ``bounded_yaml``.
    """
    from jsonargparse import _loaders_dumpers, _util  # lazily: light commands do without

    original = _util.import_object
    if hasattr(original, "guarded"):
        return

    @functools.wraps(original)
    def import_object(name: str, check_path: bool = True) -> Any:
        if not check_path:  # it comes from an annotation in code
            return original(name, check_path=False)
        _refuse_foreign(name, name)
        found = original(name)
        _refuse_foreign(made_in(found), name)
        return found

    import_object.guarded = True  # type: ignore[attr-defined]
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "jsonargparse"]:
        if getattr(module, "import_object", None) is original:
            module.import_object = import_object  # type: ignore[attr-defined]

    class Bounded(_loaders_dumpers.get_yaml_default_loader()):  # type: ignore[misc]
        def __init__(self, stream: str) -> None:
            bounded_yaml.check(stream)
            super().__init__(stream)

    _loaders_dumpers.yaml_default_loader = Bounded


def _refuse_foreign(place: str, name: str) -> None:
    """Refuse what is not in a trusted package.

    Args:
        place: Dotted path of a module or object.
        name: What was written.

    Raises:
        ValueError: If ``place`` lies elsewhere.
    """
    if not trusts(place, NAMEABLE):
        package = place.partition(".")[0]
        raise ValueError(
            f"{name!r} would run code of {package!r}, which is not part of segcft; "
            f"if you trust that code, add {OPTION} {package}"
        )


def local(path: str) -> str:
    """A path of a file on this machine.

    Raises:
        ValueError: If it is an address of another kind.
    """
    if ADDRESS.match(path):
        raise ValueError(f"{path!r} is an address: a file on this machine is needed")
    return path


def all_local(config: Any) -> None:
    """See that no value of a configuration is an address, which a library might open.

    Raises:
        ValueError: If one is.
    """
    for text in _texts(config):
        local(text)


def inside(name: str, field: str = "experiment") -> str:
    """A name of a folder below the one that it is put into.

    Raises:
        ValueError: If it leads elsewhere.
    """
    if not name or Path(name).is_absolute() or ".." in Path(name).parts or set(name) & set("\0\\"):
        raise ValueError(f"{field} = {name!r} leads out of its folder")
    return name


def _texts(value: Any) -> Iterator[str]:
    """Every string in nested plain data."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
