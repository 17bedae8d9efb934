"""YAML files of limited size: aliases and nesting of a small file may otherwise fill the memory or the stack."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

MOST_BYTES, MOST_NODES, MOST_DEPTH = 2**21, 200_000, 60  # of a file, of its content with every alias written out


def read(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        yaml.YAMLError: If it is not valid YAML, or exceeds the limits, see ``check``.
    """
    check(text)
    with _in_one_line():
        return yaml.safe_load(text)


def check(text: str) -> None:
    """Count the nodes of a YAML text without constructing any.

    Raises:
        yaml.YAMLError: If it is not valid YAML, is longer than ``MOST_BYTES``, is nested deeper than ``MOST_DEPTH``, or
            has more than ``MOST_NODES`` nodes once every alias is written out.
    """
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"more than {MOST_BYTES} characters")
    with _in_one_line():
        _count(text)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Errors of the parser quote lines of the file below each other; all of ours are one sentence."""
    try:
        yield
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # of a date or number that does not exist
        raise yaml.YAMLError(" ".join(str(error).replace('"<unicode string>", ', "").split())) from error


def _count(text: str) -> None:
    sizes = _Sizes()
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        sizes.take(event, getattr(event, "anchor", None) or "")
        if len(sizes.open) > MOST_DEPTH or sum(sizes.open) > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_DEPTH} levels or {MOST_NODES} nodes, aliases written out")


class _Sizes:
    """Numbers of nodes: of the open collections, and of every anchor that is complete."""

    def __init__(self) -> None:
        self.open, self.anchors, self.known = [0], [""], dict[str, int]()

    def take(self, event: yaml.Event, anchor: str) -> None:
        if isinstance(event, yaml.CollectionStartEvent):
            self.open.append(1)
            self.anchors.append(anchor)
            self.known.pop(anchor, None)  # an alias inside would contain itself
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(self.anchors.pop(), self.open.pop())
        elif isinstance(event, yaml.ScalarEvent):
            self._close(anchor, 1)
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in self.known:
                raise yaml.YAMLError(f"alias *{anchor} is unknown or contains itself")
            self.open[-1] += self.known[anchor]

    def _close(self, anchor: str, nodes: int) -> None:
        self.open[-1] += nodes
        self.known[anchor] = nodes
