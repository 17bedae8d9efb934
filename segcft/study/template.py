"""``data.yaml`` of an experiment of one's own: that of another one, and below it every choice that there is."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from docstring_parser import parse

from segcft.core.recipes import imported
from segcft.study.experiment import Config
from segcft.variables.variables import Variable

WIDTH = 118
MEASURED = ("low", "high", "mean", "std", "quantiles")  # of a variable: found in the data, not declared
STAGES = """What differs in one stage goes into STAGE.yaml beside this file: segcft.yaml with the line
trainer: {max_steps: 1000}, for instance. The stages are those of the recipe; segcft study NAME --dry-run lists them."""


def choices(config: Config) -> str:
    """Comments that explain a ``data.yaml``: the data set, what each of its classes takes, and what a variable may say.

    Args:
        config: The content of the file, with the class of the data under ``data``.

    Raises:
        ValueError: If a class does not exist or belongs to a package that is not trusted.
    """
    blocks = [_wrapped(_plain(STAGES), "", "")]
    for place, class_path in _classes("data", config.get("data")):
        kind = imported(class_path)
        about = _paragraphs(parse(inspect.getdoc(kind) or "").description or "")
        blocks.append([f"---- {place}: {kind.__name__} ----", "", *about, "", *_fields(kind)])
    blocks.append(["---- A variable ----", "", *_fields(Variable, MEASURED)])
    lines = [line for block in blocks for line in [*block, ""]]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines[:-1])


def _classes(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every ``class_path`` in a configuration, with the key that its arguments stand under."""
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        yield f"{place}.init_args", value["class_path"]
        for name, inner in (value.get("init_args") or {}).items():
            yield from _classes(f"{place}.init_args.{name}", inner)


def _fields(kind: type, left_out: tuple[str, ...] = ()) -> list[str]:
    """Every argument of a constructor with its default and what is said about it."""
    lines, documented = [], _documented(kind)
    for name, parameter in inspect.signature(kind).parameters.items():
        if name not in left_out:
            given = parameter.default
            default = "needed" if given is inspect.Parameter.empty else f"default {json.dumps(given, default=str)}"
            lines += _wrapped(f"{name} ({default}): {documented.get(name, '')}", "  ", "      ")
    return lines


def _documented(kind: type) -> dict[str, str]:
    """Argument or attribute -> what the docstrings of a class and of those that it extends say."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        for each in parse(inspect.cleandoc(base.__dict__.get("__doc__") or "")).params:
            about = _plain(each.description or "")
            found[each.arg_name] = found.get(each.arg_name, about) if about.startswith("See ") else about
    return found


def _paragraphs(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines += ["", *_wrapped(_plain(paragraph), "", "")]
    return lines[1:]


def _plain(text: str) -> str:
    return " ".join(text.replace("``", "").split())


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
