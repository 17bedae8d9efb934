"""Safety of configuration files: no YAML file may import code from a package that the user has not trusted."""

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from segcft.core.recipes import TRUST, TRUSTED_PACKAGES, declared, trusts

NAMEABLE = (*TRUSTED_PACKAGES, "lightning", "monai", "smp")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
OPTION = "--trust"


def admit(arguments: Sequence[str]) -> list[str]:
    """Remove ``--trust PACKAGE`` from a command line, and check every YAML file that the command line names.

    Class paths typed on the command line itself are not checked: the user chose them.

    Returns:
        The remaining arguments.

    Raises:
        ValueError: If a file names code of a package that is not trusted. The check runs before anything is imported.
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
    for argument in others:
        _look(Path(argument.rpartition("=")[2]), set())
    return others


def _look(path: Path, seen: set[Path]) -> None:
    """Check one YAML file and the YAML files it refers to."""
    if path.suffix not in (".yaml", ".yml") or path in seen or not path.is_file():
        return
    seen.add(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a valid YAML file: {error}") from error
    for key, text in _texts(content):
        if DOTTED.fullmatch(text) and not trusts(text, NAMEABLE) and _runs_code(text):
            package = text.partition(".")[0]
            raise ValueError(
                f"{path}: {key}: {text!r} would run code of {package!r}, which is not part of segcft; "
                f"if you trust that code, add {OPTION} {package}"
            )
        _look(path.parent / text, seen)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a nested structure, with the key it is stored under."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str):
        yield key, value


def _runs_code(dotted: str) -> bool:
    """Whether some prefix of a dotted path is an importable module; namespace folders without code are searched."""
    parts = dotted.split(".")
    for count in range(1, len(parts) + 1):
        try:
            found = importlib.util.find_spec(".".join(parts[:count]))
        except (ImportError, AttributeError, ValueError):
            return False
        if found is None:
            return False
        if found.origin is not None:
            return True
    return False
