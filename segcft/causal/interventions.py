"""Drawing the interventions do() of fine-tuning: one variable and target per subject."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segcft.variables.variables import Parents, Values, Variable


@dataclass(frozen=True)
class Questions:
    """How interventions are drawn: one random variable per subject, and a target within the training range.

    Binary and categorical variables always take another subject's value.

    Attributes:
        targets: ``marginal``: the value of another subject of the batch. ``uniform``: uniform over the training range.
            ``relative``: the subject's own value times a factor, uniform in 1 - ``reach`` to 1 + ``reach``.
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
        """Draw targets by name, (B,) in real units; NaN where a subject is not intervened on.

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
        """The drawn target, where a subject has one, replaced as ``targets`` asks."""
        if variable.kind != "continuous":
            return target
        share = torch.rand_like(value)
        uniform = variable.low + share * (variable.high - variable.low)
        relative = value * (1 + self.reach * (2 * share - 1))
        chosen = uniform if self.targets == "uniform" else relative.clamp(variable.low, variable.high)
        return torch.where(target.isnan(), target, chosen)


def sample_do(values: Values, names: Sequence[str]) -> dict[str, Tensor]:
    """Draw one random variable per subject, set to the value of another subject of the batch (marginal distribution).

    Args:
        values: Observed parents in real units, (B,) each.
        names: Variables that may be intervened on.

    Returns:
        (B,) per name; NaN where a subject is not intervened on.
    """
    first = values[names[0]]
    chosen = torch.randint(len(names), first.shape, device=first.device)
    partner = torch.randperm(len(first), device=first.device)
    return {
        name: torch.where(chosen == k, values[name][partner], torch.nan).to(values[name])
        for k, name in enumerate(names)
    }


def fixed_do(values: Values, names: Sequence[str], others: Values | None = None) -> dict[str, Tensor]:
    """Deterministic version of ``sample_do`` for validation: variables in turn, each set to the neighbour's value.

    Args:
        values: Observed parents in real units, (B,) each; ``index``, if it is among them, decides the variable.
        names: Variables that may be intervened on.
        others: Values of each subject's neighbour, (B,) each; by default those of the subject before it in the batch.

    Returns:
        (B,) per name; NaN where a subject is not intervened on.
    """
    subjects = values["index"] if "index" in values else torch.arange(len(values[names[0]]))
    chosen = subjects.to(values[names[0]].device) % len(names)
    others = others or {name: values[name].roll(1) for name in names}
    return {name: torch.where(chosen == k, others[name], torch.nan).to(values[name]) for k, name in enumerate(names)}
