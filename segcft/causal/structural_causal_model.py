"""The structural causal model of the image's parents: abduction, action and prediction on the variables."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from segcft.causal.graph import causes_first
from segcft.causal.mechanisms import Conditional, GumbelMax, SplineFlow
from segcft.core import checkpoints
from segcft.core.recipes import Recorded
from segcft.variables.variables import Parents, Values, Variable

Noise = Mapping[str, Tensor]  # variable name -> (B,) or (B, k) exogenous noise


class Mechanism(nn.Module, Recorded, ABC):
    """Abduction, action and prediction on the parents.

    Attributes:
        graph: Variable -> its causes, in topological order; a variable that is not listed has none.
    """

    graph: Mapping[str, list[str]] = MappingProxyType({})

    @abstractmethod
    def abduct(self, values: Values) -> Noise:
        """Abduction: exogenous noise of every variable, (B,) or (B, k) each, from observed values in real units."""

    @abstractmethod
    def predict(self, noise: Noise, do: Values) -> dict[str, Tensor]:
        """Prediction: values under ``do``, (B,) each; where ``do`` is NaN the variable follows its mechanism."""

    def counterfactual(self, values: Values, do: Values) -> dict[str, Tensor]:
        """Counterfactual parents of the same subjects under ``do``, (B,) each in real units."""
        return self.predict(self.abduct(values), do)

    def check_fit(self, parents: Parents) -> None:
        """Check that the mechanism was built for these parents.

        Raises:
            ValueError: If names or kinds differ.
        """


class Independent(Mechanism):
    """No causal relations: do() changes no other variable, as in Seg-CFT (Xia et al., 2025, arXiv:2509.24913)."""

    def abduct(self, values: Values) -> Noise:
        """The noise of a root variable is its value."""
        return dict(values)

    def predict(self, noise: Noise, do: Values) -> dict[str, Tensor]:
        """Replace the values that are intervened on."""
        return {name: intervene(value, do.get(name)) for name, value in noise.items()}


class StructuralCausalModel(Mechanism):
    """A deep structural causal model with learnt mechanisms (Pawlowski et al., 2020, arXiv:2006.06485).

    In a counterfactual an observed value stays exactly the same unless one of its causes changed. For this, the noise
    of a root is its value, and the noise of an effect is (B, 1 + k): the observed value, then the exogenous noise of
    its mechanism. The noise of a binary or categorical effect is sampled from its posterior.

    Before abduction, a missing value (NaN) is sampled from its mechanism given its causes.

    Args:
        parents: Kinds, units and training statistics of all variables.
        graph: Variable -> its causes; a variable that is not listed has none. The order does not matter.
        positive: Continuous variables whose logarithm is modelled, which keeps them positive; by default those that are
            measured in the image (areas, volumes) and never 0 in the training split.
        hidden: Width of the networks that read the causes.
        bins: Number of bins of each spline.

    Raises:
        ValueError: If the graph names an unknown variable or has a cycle, or if a variable listed as positive is not.
    """

    def __init__(
        self,
        parents: Parents,
        graph: dict[str, list[str]],
        positive: list[str] | None = None,
        hidden: int = 16,
        bins: int = 8,
    ) -> None:
        super().__init__()
        self.parents, self.graph = parents, causes_first(graph, parents.names)
        if positive is None:
            positive = [name for name in parents.structural if _can_be_logarithmic(parents[name])]
        for name in positive:
            if not _can_be_logarithmic(parents[name]):
                raise ValueError(f"{name!r} is not positive: its smallest training value is {parents[name].low:g}")
        self.conditionals = nn.ModuleList()  # in topological order
        for name, causes in self.graph.items():
            variable, length = parents[name], sum(parents[cause].dim for cause in causes)
            if variable.kind == "continuous":
                self.conditionals.append(SplineFlow(variable, length, name in positive, hidden, bins))
            else:
                self.conditionals.append(GumbelMax(max(2, variable.dim), length, hidden))

    def abduct(self, values: Values) -> Noise:
        """Abduction: roots (B,), effects (B, 1 + k) with the observed value first; see the class."""
        noise, values = {}, self.completed(values)
        for name, conditional in self._mechanisms():
            observed = values[name]
            if not self.graph[name]:
                noise[name] = observed
                continue
            exogenous = conditional.abduct(observed, self._causes(name, values))
            noise[name] = torch.cat([observed.to(exogenous)[:, None], exogenous], dim=1)
        return noise

    def predict(self, noise: Noise, do: Values) -> dict[str, Tensor]:
        """Prediction: values under ``do``, (B,) each, with the observed data type; in topological order.

        Raises:
            ValueError: If ``do`` names an unknown variable.
        """
        for name in do:
            self.parents[name]
        like = next(noise[name] for name, causes in self.graph.items() if not causes)
        observed = {name: part if part.dim() == 1 else part[:, 0].to(like) for name, part in noise.items()}
        values: dict[str, Tensor] = {}
        for name, conditional in self._mechanisms():
            value, causes = observed[name], self.graph[name]
            if causes:
                moved = torch.stack([values[cause] != observed[cause] for cause in causes]).any(0)
                predicted = conditional.predict(noise[name][:, 1:], self._causes(name, values))
                value = torch.where(moved, predicted.to(value), value)
            values[name] = intervene(value, do.get(name))
        return {name: values[name] for name in self.parents.names}

    def completed(self, values: Values) -> dict[str, Tensor]:
        """``values`` with every NaN sampled from its mechanism given its causes, (B,) each."""
        full = {name: values[name] for name in self.parents.names}
        for name, conditional in self._mechanisms():
            missing = full[name].isnan()
            if missing.any():
                causes = self._causes(name, full)
                drawn = conditional.predict(conditional.prior(causes), causes).to(full[name])
                full[name] = torch.where(missing, drawn, full[name])
        return full

    @torch.no_grad()
    def sample(self, count: int) -> dict[str, Tensor]:
        """Sample new subjects from the model, (count,) each in real units."""
        nothing = next(self.parameters()).new_full((count,), torch.nan)
        return self.completed(dict.fromkeys(self.graph, nothing))

    def log_prob(self, values: Values) -> Tensor:
        """Log density of every subject, (B,): the sum of ``log_probs``."""
        return torch.stack(list(self.log_probs(values).values())).sum(0)

    def log_probs(self, values: Values) -> dict[str, Tensor]:
        """Log density (nats per real unit) or probability of every variable given its causes, (B,) each.

        Missing values (NaN) are not integrated out: a variable contributes 0 if it or one of its causes is missing.
        """
        missing = {name: values[name].isnan() for name in self.graph}
        filled = {name: torch.where(missing[name], self.parents[name].low, values[name]) for name in self.graph}
        found = {}
        for name, conditional in self._mechanisms():
            density = conditional.log_prob(filled[name], self._causes(name, filled))
            unknown = torch.stack([missing[each] for each in (name, *self.graph[name])]).any(0)
            found[name] = density.masked_fill(unknown, 0.0)
        return found

    def check_fit(self, parents: Parents) -> None:
        """Check that it was fitted on variables of these names and kinds; their ranges may differ."""
        ours, theirs = ({n: v.kind for n, v in each.variables.items()} for each in (self.parents, parents))
        if ours != theirs:
            raise ValueError(f"the mechanism relates {_listed(ours)}; the image's parents are {_listed(theirs)}")

    def _mechanisms(self) -> Iterator[tuple[str, Conditional]]:
        """Every variable's name and mechanism, in topological order."""
        for name, conditional in zip(self.graph, self.conditionals, strict=True):
            assert isinstance(conditional, Conditional)
            yield name, conditional

    def _causes(self, name: str, values: Values) -> Tensor:
        """The encoded causes of a variable, (B, C)."""
        causes = self.graph[name]
        if not causes:
            return values[name].new_empty(len(values[name]), 0)
        return torch.cat([self.parents[cause].encode(values[cause]) for cause in causes], dim=1)


def opened(mechanism: Mechanism | str | None) -> Mechanism | None:
    """A mechanism, loaded from its checkpoint if a path is given.

    Raises:
        ValueError: If the checkpoint cannot be read or holds no mechanism.
    """
    if isinstance(mechanism, str):
        return checkpoints.load(mechanism, Mechanism)  # type: ignore[type-abstract]
    return mechanism


def intervene(value: Tensor, do: Tensor | None) -> Tensor:
    """``do`` where it is a number, ``value`` where it is NaN or absent, (B,)."""
    if do is None:
        return value
    do = do.to(value)
    return torch.where(do.isnan(), value, do)


def _can_be_logarithmic(variable: Variable) -> bool:
    return variable.kind == "continuous" and variable.low > 0


def _listed(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
