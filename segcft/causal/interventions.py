"""Which question to ask of each subject while fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segcft.variables.variables import Parents, Values, Variable


@dataclass(frozen=True)
class Questions:
    """One variable per subject, at random, and where its target comes from; always inside the training range.

    Binary and categorical variables take another subject's value whatever ``targets`` says.

    Attributes:
        targets: ``marginal``: the value of another subject of the batch. ``uniform``: anywhere in the training range.
            ``relative``: the subject's own value, changed by up to ``reach`` either way, evenly.
        reach: Largest relative change.

    Raises:
        ValueError: If ``targets`` is unknown or ``reach`` is not positive.
    """

    targets: Literal["marginal", "uniform", "relative"] = "marginal"
    reach: float = 0.3

    def __post_init__(self) -> None:
        if self.targets not in ("marginal", "uniform", "relative"):
            raise ValueError(f"targets must be marginal, uniform or relative, got {self.targets!r}")
        if self.reach <= 0:
            raise ValueError(f"reach must be positive, got {self.reach}")

    def draw(self, values: Values, names: Sequence[str], parents: Parents) -> dict[str, Tensor]:
        """Targets by name, (B,) in real units; NaN where a subject is not intervened on.

        Args:
            values: Observed parents in real units, (B,) each.
            names: Variables that may be intervened on.
            parents: Their kinds and ranges.
        """
        do = sample_do(values, names)
        if self.targets == "marginal":
            return do
        return {name: self._moved(target, values[name], parents[name]) for name, target in do.items()}

    def _moved(self, target: Tensor, value: Tensor, variable: Variable) -> Tensor:
        """Another target wherever there is one."""
        if variable.kind != "continuous":
            return target
        share = torch.rand_like(value)
        uniform = variable.low + share * (variable.high - variable.low)
        relative = value * (1 + self.reach * (2 * share - 1))
        chosen = uniform if self.targets == "uniform" else relative.clamp(variable.low, variable.high)
        return torch.where(target.isnan(), target, chosen)


def sample_do(values: Values, names: Sequence[str]) -> dict[str, Tensor]:
    """One variable per subject, at the value that another subject of the batch has: the marginal distribution.

    Args:
        values: Observed parents in real units, (B,) each.
        names: Variables that may be intervened on.

    Returns:
        (B,) per name; NaN where a subject is not intervened on.
    """
    first = values[names[0]]
    chosen = torch.randint(len(names), first.shape, device=first.device)
    partner = torch.randperm(len(first), device=first.device)
    return _ask(values, names, chosen, partner)


def fixed_do(values: Values, names: Sequence[str]) -> dict[str, Tensor]:
    """As ``sample_do`` without chance, for validation: variables in turn, the neighbour's value."""
    first = values[names[0]]
    subjects = torch.arange(len(first), device=first.device)
    return _ask(values, names, subjects % len(names), subjects.roll(1))


def _ask(values: Values, names: Sequence[str], chosen: Tensor, partner: Tensor) -> dict[str, Tensor]:
    return {
        name: torch.where(chosen == k, values[name][partner], torch.nan).to(values[name])
        for k, name in enumerate(names)
    }
