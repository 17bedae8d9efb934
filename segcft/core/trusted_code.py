"""Safety of configuration files: no YAML file may import code from a package that the user has not trusted."""

import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from segcft.core.recipes import TRUST, TRUSTED_PACKAGES, declared, trusts

NAMEABLE = (*TRUSTED_PACKAGES, "lightning", "monai", "smp", "torch.optim", "torch.nn")
MAKERS = ("typing", "jsonargparse")  # of types that options are declared with
MOST_ALIASES, MOST_BYTES = 100, 2**21  # of a YAML file
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
OPTION, CONFIG = "--trust", "--config="


def admit(arguments: Sequence[str]) -> list[str]:
    """Remove ``--trust PACKAGE`` from a command line, and check every YAML file that the command line names.

    Other ways of naming a class, such as an option, are decided on where the name becomes an object, see ``guard``.

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
    for before, argument in zip(["", *others], others, strict=False):
        named = argument.startswith(CONFIG) or before in ("--config", "-c")
        _look(Path(argument.partition("=")[2] if argument.startswith("-") else argument), set(), named)
    return others


def guard() -> None:
    """Let jsonargparse make objects of trusted code alone, whichever file, string or checkpoint names it.

    It is decided where a name becomes an object: the name must lie in a trusted package before its module is imported,
    and the object that it leads to must have been made there, so no path walks from a trusted module to another one.
    """
    from jsonargparse import _util  # lazily: light commands do without

    original = _util.import_object
    if hasattr(original, "guarded"):
        return

    @functools.wraps(original)
    def import_object(name: str, check_path: bool = True) -> Any:
        if not check_path:  # it comes from an annotation in code
            return original(name, check_path=False)
        _refuse_foreign(name, name)
        found = original(name)
        _refuse_foreign(str(getattr(found, "__module__", "") or type(found).__module__), name)
        return found

    import_object.guarded = True  # type: ignore[attr-defined]
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "jsonargparse"]:
        if getattr(module, "import_object", None) is original:
            module.import_object = import_object  # type: ignore[attr-defined]


def _refuse_foreign(place: str, name: str) -> None:
    if not trusts(place, (*NAMEABLE, *MAKERS)):
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
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path):
        raise ValueError(f"{path!r} is an address: a file on this machine is needed")
    return path


def inside(name: str) -> str:
    """A name of a folder below the one that it is put into.

    Raises:
        ValueError: If it leads elsewhere.
    """
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"experiment = {name!r} leads out of its folder")
    return name


def _look(path: Path, seen: set[Path], named: bool = False) -> None:
    """Check one YAML file, which is ``named`` as a configuration or ends like one, and the files it refers to."""
    if not (named or path.suffix in (".yaml", ".yml")) or path in seen or not path.is_file():
        return
    seen.add(path)
    try:
        content = _content(path)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid YAML file: {error}") from error
    for key, text in _texts(content):
        if DOTTED.fullmatch(text) and not trusts(text, NAMEABLE) and _runs_code(text):
            package = text.partition(".")[0]
            raise ValueError(
                f"{path}: {key}: {text!r} would run code of {package!r}, which is not part of segcft; "
                f"if you trust that code, add {OPTION} {package}"
            )
        _look(path.parent / text, seen)


def _content(path: Path) -> Any:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} holds {path.stat().st_size} bytes: too much for a configuration")
    text = path.read_text(encoding="utf-8")
    aliases = sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
    if aliases > MOST_ALIASES:
        raise ValueError(f"{path} holds {aliases} YAML aliases: more than {MOST_ALIASES} may fill the memory")
    return yaml.safe_load(text)


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
