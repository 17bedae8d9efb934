"""Configuration files may come from anybody: none of them imports code of a package that the user did not name."""

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
    """Take ``--trust PACKAGE`` out of a command line, and look into every YAML file that it names.

    Packages on the command line itself were typed by the user and may be anything.

    Returns:
        The other arguments.

    Raises:
        ValueError: If a file names code of a package that is neither ours nor trusted; nothing is imported before.
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
    """Into one YAML file and those that it names."""
    if path.suffix not in (".yaml", ".yml") or path in seen or not path.is_file():
        return
    seen.add(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    for key, text in _texts(content):
        if DOTTED.fullmatch(text) and not trusts(text, NAMEABLE) and _runs_code(text):
            package = text.partition(".")[0]
            raise ValueError(
                f"{path}: {key}: {text!r} would run code of {package!r}, which is no part of segcft; "
                f"if you know that code, add {OPTION} {package}"
            )
        _look(path.parent / text, seen)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string, with the key that it stands under."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str):
        yield key, value


def _runs_code(dotted: str) -> bool:
    """Whether a module stands at the beginning of the path; folders without code are looked into."""
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
