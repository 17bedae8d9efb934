"""How the parents cause each other: the structural causal model above the image."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from segcft.parents import Values
from segcft.recipes import Recorded

Noise = Mapping[str, Tensor]  # variable name -> (B,) exogenous noise


class Mechanism(nn.Module, Recorded, ABC):
    """Abduction, action, prediction on the parents. A graph with edges is another subclass."""

    @abstractmethod
    def abduct(self, values: Values) -> Noise:
        """Exogenous noise of every variable, (B,) each, from observed values in real units."""

    @abstractmethod
    def predict(self, noise: Noise, do: Values) -> dict[str, Tensor]:
        """Values under ``do``, (B,) each; NaN in ``do`` leaves that subject's variable to its mechanism."""

    def counterfactual(self, values: Values, do: Values) -> dict[str, Tensor]:
        """The parents of the same subjects had ``do`` been so."""
        return self.predict(self.abduct(values), do)


class Independent(Mechanism):
    """Every variable is a root: do(one) moves no other, as in Seg-CFT (Xia et al., 2025, arXiv:2509.24913)."""

    def abduct(self, values: Values) -> Noise:
        """A root is its own noise."""
        return dict(values)

    def predict(self, noise: Noise, do: Values) -> dict[str, Tensor]:
        """Replace what is intervened on."""
        return {name: intervene(value, do.get(name)) for name, value in noise.items()}


def intervene(value: Tensor, do: Tensor | None) -> Tensor:
    """``do`` where it is a number, ``value`` where it is NaN or absent, (B,)."""
    if do is None:
        return value
    do = do.to(value)
    return torch.where(do.isnan(), value, do)
