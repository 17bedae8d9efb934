"""Which question to ask of each subject while fine-tuning."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segcft.parents import Values


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
