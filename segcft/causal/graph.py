"""The causal graph: a directed acyclic graph given as effect -> causes."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter


def causes_first(graph: Mapping[str, Sequence[str]], names: Sequence[str]) -> dict[str, list[str]]:
    """Sort a graph topologically: every variable with its causes, causes before effects.

    Args:
        graph: Variable -> its causes; a variable that is not listed has none. Its order does not matter.
        names: All variables; their order breaks ties.

    Raises:
        ValueError: If a variable is unknown, causes itself, or lies on a cycle.

    >>> causes_first({"area": ["sex", "age"]}, ["area", "age", "sex"])
    {'age': [], 'sex': [], 'area': ['age', 'sex']}
    """
    for effect, causes in graph.items():
        for name in (effect, *causes):
            if name not in names:
                raise ValueError(f"unknown variable {name!r} in the graph; the data have {', '.join(names)}")
        if effect in causes:
            raise ValueError(f"{effect!r} cannot cause itself")
    complete = {name: [cause for cause in names if cause in graph.get(name, ())] for name in names}
    try:
        return {name: complete[name] for name in TopologicalSorter(complete).static_order()}
    except CycleError as error:
        raise ValueError(f"the graph has a cycle: {' -> '.join(error.args[1])}") from error
