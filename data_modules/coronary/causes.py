"""Causal model of the coronary phantom: sex, age -> plaques -> lumen, in each third of the vessel."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_modules.coronary.anatomy import STRUCTURES
from data_modules.coronary.vessel_regions import REGIONS
from segcft.core.formatting import number
from segcft.variables.variables import Variable

NOISE_REACH = 2.2  # standard deviations

Values = dict[str, Tensor]  # variable -> (B,) float32


@dataclass(frozen=True)
class SizeMechanism:
    """log(size / median) = sex (sex - 1/2) + age (years - 60) / 20 - sum narrowed_by log(plaque / median) + noise n.

    One in each third; n is standard normal within +-2.2.

    Attributes:
        area: Medians of the thirds in a longitudinal section, mm^2.
        volume: Medians of the thirds in 3-D, mm^3.
        sex: Effect of being male.
        age: Effect of 20 years.
        noise: Weight of the exogenous noise.
        narrowed_by: Plaque of the same third -> exponent.
    """

    area: tuple[float, float, float]
    volume: tuple[float, float, float]
    sex: float
    age: float
    noise: float
    narrowed_by: Mapping[str, float] = field(default_factory=dict)

    def medians(self, kind: str) -> Tensor:
        """Medians of the thirds, (3,) float64; ``kind`` is area or volume."""
        return torch.tensor(self.area if kind == "area" else self.volume, dtype=torch.float64)


NARROWED_BY = {"noncalcified_plaque": 0.12, "calcified_plaque": 0.06}
MECHANISMS = {  # causes before effects
    "noncalcified_plaque": SizeMechanism((8.0, 7.0, 5.5), (34.0, 26.0, 18.0), 0.15, 0.15, 0.25),
    "calcified_plaque": SizeMechanism((4.7, 4.0, 3.2), (14.0, 11.5, 9.0), 0.25, 0.30, 0.30),
    "lumen": SizeMechanism((54.0, 46.0, 38.0), (143.0, 104.0, 71.0), 0.08, 0.0, 0.18, NARROWED_BY),
}

# outer structures move along
CARRIED = {
    "lumen": "noncalcified_plaque+calcified_plaque",
    "noncalcified_plaque": "calcified_plaque",
    "calcified_plaque": "",
}


class CoronaryCauses:
    """The structural causal model of sex, age and sizes.

    Args:
        spatial_dims: 2 (areas of a longitudinal section, mm^2) or 3 (volumes, mm^3).
        narrowing: Strength of the causal effect plaque -> lumen; 0 for none.
    """

    draws = 2 + len(MECHANISMS) * len(REGIONS)  # exogenous variables of a subject

    def __init__(self, spatial_dims: int, narrowing: float = 1.0) -> None:
        self.kind, self.unit = ("area", "mm^2") if spatial_dims == 2 else ("volume", "mm^3")
        self.narrowing = narrowing

    def variables(self) -> dict[str, Variable]:
        """All variables: sex, age, and each structure's size in the whole vessel and in each third."""
        whole = {
            self.whole(name): Variable(unit=self.unit, structure=name, carries=CARRIED[name]) for name in STRUCTURES
        }
        thirds = {part: Variable(unit=self.unit) for name in STRUCTURES for part in self.thirds(name)}
        return {
            "sex": Variable(kind="binary", categories=("female", "male")),
            "age": Variable(unit="years"),
            **whole,
            **thirds,
        }

    def whole(self, structure: str) -> str:
        """Name of the variable for a structure's size in the whole vessel."""
        return f"{structure}_{self.kind}"

    def thirds(self, structure: str) -> list[str]:
        """Names of the variables for a structure's sizes in the thirds."""
        return [f"{region}_{structure}_{self.kind}" for region in REGIONS]

    def sizes(self, values: Mapping[str, Tensor], structure: str) -> Tensor:
        """A structure's sizes in the thirds, (B, 3)."""
        return torch.stack([values[part] for part in self.thirds(structure)], 1)

    def sample(self, uniform: Tensor) -> Values:
        """Uniform exogenous noise (N, draws) -> all variables, (N,) float32 each."""
        values = {"sex": (uniform[:, 0] < 0.5).float(), "age": (35 + 50 * uniform[:, 1]).float()}
        reach = torch.erf(torch.tensor(NOISE_REACH / 2**0.5, dtype=torch.float64))
        normal = 2**0.5 * torch.erfinv((2 * uniform[:, 2:] - 1) * reach)  # truncated
        for (name, mechanism), noise in zip(MECHANISMS.items(), torch.split(normal, len(REGIONS), 1), strict=True):
            log = self.effect(name, values) + mechanism.noise * noise
            values |= self._named(name, (mechanism.medians(self.kind) * log.exp()).float())
        return {name: values[name] for name in self.variables()}

    def effect(self, structure: str, values: Mapping[str, Tensor]) -> Tensor:
        """Contribution of the causes to the log sizes of ``structure``, (B, 3) float64."""
        mechanism = MECHANISMS[structure]
        person = mechanism.sex * (values["sex"].double() - 0.5) + mechanism.age * (values["age"].double() - 60) / 20
        total = person[:, None].expand(-1, len(REGIONS))
        for plaque, exponent in mechanism.narrowed_by.items():
            relative = self.sizes(values, plaque).double() / MECHANISMS[plaque].medians(self.kind)
            total = total - self.narrowing * exponent * relative.log()
        return total

    def counterfactual(self, observed: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> Values:
        """Counterfactual variables under ``do``, (B,) each; exactly as observed where no cause changed.

        An intervention on a whole vessel scales all of its thirds by the same factor, except those intervened on.

        Args:
            observed: Every variable, (B,).
            do: Variable -> (B,); NaN means no intervention on that subject's variable.

        Raises:
            ValueError: If ``do`` asks for sizes that are not positive or do not add up.
        """
        for name, asked in do.items():
            if name not in ("sex", "age") and (asked <= 0).any():
                raise ValueError(f"do({name} = {number(float(asked[asked <= 0][0]))}): a size must be positive")
        values = {name: _asked(value, do.get(name)) for name, value in observed.items()}
        for name in MECHANISMS:
            before, after = self.effect(name, observed), self.effect(name, values)
            moved = self.sizes(observed, name) * (after - before).exp().float()  # the same noise
            sizes = self._named(name, self._held(name, moved, do))
            values |= {part: _asked(size, do.get(part)) for part, size in sizes.items()}  # exact: a sum rounds
        return values

    def _held(self, structure: str, moved: Tensor, do: Mapping[str, Tensor]) -> Tensor:
        """Sizes in the thirds, (B, 3): ``moved`` are those given the causes, to which ``do`` is applied."""
        empty = torch.full_like(moved[:, 0], torch.nan)
        thirds = torch.stack([do.get(part, empty).to(empty) for part in self.thirds(structure)], 1)
        whole = do.get(self.whole(structure), empty).to(empty)
        held = ~thirds.isnan()
        sizes = torch.where(held, thirds, moved)
        fixed = (thirds.nan_to_num() * held).sum(1)
        free = moved.sum(1) - (moved * held).sum(1)
        ratio = torch.where(whole.isnan(), 1.0, (whole - fixed) / free)
        full = held.all(1)
        wrong = ~whole.isnan() & torch.where(full, (whole - fixed).abs() > 1e-3 * whole, ~(ratio > 0))
        if wrong.any():
            asked = f"do({self.whole(structure)} = {number(float(whole[wrong][0]))})"
            parts = ", ".join(number(float(v)) for v in thirds[wrong][0])
            raise ValueError(f"{asked}: the requested thirds, {parts}, do not add up to it")
        return torch.where(held | full[:, None], sizes, sizes * ratio[:, None])

    def _named(self, structure: str, sizes: Tensor) -> Values:
        """Sizes in the thirds (B, 3) as variables, with the whole."""
        thirds = dict(zip(self.thirds(structure), sizes.unbind(1), strict=True))
        return {self.whole(structure): sizes.sum(1), **thirds}


def _asked(value: Tensor, asked: Tensor | None) -> Tensor:
    return value if asked is None else torch.where(asked.isnan(), value, asked.to(value))
