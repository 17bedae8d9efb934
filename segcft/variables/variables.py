"""The causal parents of an image: what they are called, what they are measured in, and how a network sees them.

Units cross here and nowhere else: batches and interventions carry real units (mm^2, years), ``pa`` and ``cf_pa`` are
the standardised vectors that networks read.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from segcft.core.formatting import meant, number, quantity, resolving
from segcft.core.recipes import Recorded
from segcft.variables.measurements import AXES, MEASUREMENTS
from segcft.variables.regions import Region

QUANTILES = 41  # kept of every variable
Values = Mapping[str, Tensor]  # variable name -> (B,) in the variable's own unit


@dataclass(frozen=True)
class Variable:
    """One parent of the image.

    Attributes:
        kind: ``continuous`` (standardised), ``binary`` (0 or 1 becomes -1 or 1), ``categorical`` (an index, one-hot).
        unit: Unit of the values in tables and results, for instance ``mm^2``.
        structure: Structure that this variable measures, or the union of several: ``left_lung+right_lung``; empty for
            sex, age and the like.
        categories: Names of the categories, in the order of their indices; of a binary variable, of 0 and 1.
        low: Smallest value in the training split.
        high: Largest value in the training split.
        mean: Mean over the training split.
        std: Standard deviation over the training split.
        quantiles: Of a continuous variable over the training split, at equal steps from 0 to 1; empty if unknown.
        measure: What is measured of the structure, by its name in ``measurements.MEASUREMENTS``; ``area`` is the
            volume in 3-D.
        region: Part of the structure that is looked at; all of it unless given.
        over: Structure, or union, whose same measurement (without the region) this one is divided by.
        carries: Structure, or union, that must move along when this variable changes, as its wall does with a lumen;
            confined answers may change it.
        visible: A regressor can read it off the image although it measures no structure: the thickness of a stroke.
    """

    kind: Literal["continuous", "binary", "categorical"] = "continuous"
    unit: str = ""
    structure: str = ""
    categories: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    quantiles: tuple[float, ...] = ()
    measure: str = "area"
    region: Region | None = None
    over: str = ""
    carries: str = ""
    visible: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        object.__setattr__(self, "quantiles", tuple(self.quantiles))
        if self.kind == "binary" and self.categories and len(self.categories) != 2:
            raise ValueError(f"a binary variable has two categories or none, got {self.categories}")
        if self.kind == "categorical" and len(self.categories) < 2:
            raise ValueError(f"a categorical variable needs at least two categories, got {self.categories}")
        if self.structure and self.measure not in MEASUREMENTS:
            raise ValueError(f"unknown measure {self.measure!r}; there are {', '.join(MEASUREMENTS)}")
        if not self.structure and (self.measure != "area" or self.region or self.over or self.carries):
            raise ValueError("measure, region, over and carries are about a structure, and none is named")
        if self.visible and self.kind == "categorical":
            raise ValueError("a regressor reads numbers, no categories: visible is for continuous and binary variables")

    @property
    def moves(self) -> str:
        """Every structure that a change of this variable may move, joined by +; empty of sex, age and the like."""
        return "+".join(filter(None, (self.structure, self.over, self.carries)))

    @property
    def is_size(self) -> bool:
        """Whether it is the area or volume of a whole structure, which data sets bring along."""
        return bool(self.structure) and self.measure == "area" and self.region is None and not self.over

    def check_possible(self, name: str, values: Tensor) -> None:
        """Check that sizes are above 0; 0 itself is one where it occurred in training, and NaN is no value.

        Raises:
            ValueError: If one is not.
        """
        wrong = (values < 0) | ((values == 0) & (self.low > 0))
        if self.structure and MEASUREMENTS[self.measure].positive and wrong.any():
            raise ValueError(f"{name} = {float(values[wrong][0]):g} {self.unit}".rstrip() + ": a size is above 0")

    @property
    def measured_as(self) -> str:
        """What is measured of which structure, in words; empty where nothing is.

        >>> Variable(structure="heart", measure="width", over="left_lung+right_lung").measured_as
        'width of heart over left_lung+right_lung'
        """
        if not self.structure:
            return ""
        part = self.region
        where = f" from {part.low:g} to {part.high:g} of the {part.of}, {part.axis}" if part else ""
        within = f" within {part.within}" if part and part.within else ""
        return f"{self.measure} of {self.structure}{where}{within}" + (f" over {self.over}" if self.over else "")

    def shown(self, value: float, unit: bool = True) -> str:
        """A value as people read it: a category's name, or a number, as precise as the training range calls for.

        A value outside that range gets the decimals that tell it from the range's ends.

        Args:
            value: In the variable's unit.
            unit: Whether the unit is added.

        >>> Variable("binary", categories=("female", "male")).shown(1.0)
        'male'
        >>> width = Variable(unit="mm", low=2.0, high=120.0)
        >>> " ".join(width.shown(value, unit=False) for value in (64.25, 120.0, 120.02))
        '64 120 120.02'
        """
        if self.categories and value in range(len(self.categories)):
            return self.categories[int(value)]
        decimals, ends = self.decimals, {self.low, self.high} - {value}
        while decimals < 12 and number(value, decimals) in {number(end, decimals) for end in ends}:
            if self.low <= value <= self.high:
                break
            decimals += 1
        return quantity(value, self.unit if unit else "", decimals)

    @property
    def decimals(self) -> int:
        """Digits after the decimal point that show a hundredth of the training range."""
        return resolving(self.high - self.low)

    @property
    def range(self) -> str:
        """Smallest and largest value in training, as people read them."""
        if self.categories:
            return ", ".join(self.categories)
        return f"{self.shown(self.low, unit=False)} to {self.shown(self.high)}"

    @property
    def dim(self) -> int:
        """Number of entries in the parents' vector."""
        return len(self.categories) if self.kind == "categorical" else 1

    def fitted(self, values: Tensor) -> "Variable":
        """The same variable with its statistics measured on ``values``, the training split, (N,).

        Raises:
            ValueError: If a value is not finite, a continuous variable is constant, or a binary one is not 0 or 1.
        """
        if not torch.isfinite(values).all():
            raise ValueError(f"{int((~torch.isfinite(values)).sum())} values are not finite")
        if self.kind == "binary" and not ((values == 0) | (values == 1)).all():
            raise ValueError(f"a binary variable must be 0 or 1, got {sorted(set(values.tolist()))[:5]}")
        values = values.double()
        std = float(values.std(correction=0)) if len(values) > 1 else 0.0
        steps = torch.linspace(0, 1, QUANTILES, dtype=values.dtype)
        quantiles = tuple(values.quantile(steps).tolist()) if self.kind == "continuous" else ()
        if self.kind == "continuous" and std == 0:
            raise ValueError(f"all {len(values)} values equal {float(values[0])}: nothing can be learnt about it")
        return replace(
            self,
            low=float(values.min()),
            high=float(values.max()),
            mean=float(values.mean()),
            std=std or 1.0,
            quantiles=quantiles,
        )

    def quantile(self, share: float) -> float:
        """The value that ``share`` of the training subjects do not exceed, by linear interpolation.

        Raises:
            ValueError: If ``share`` is not in [0, 1], or the training distribution is not known.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, got {share:g}")
        if not self.quantiles:
            raise ValueError("quantiles are known of continuous variables alone, and not to older checkpoints")
        place = share * (len(self.quantiles) - 1)
        below = min(int(place), len(self.quantiles) - 2)
        return self.quantiles[below] + (place - below) * (self.quantiles[below + 1] - self.quantiles[below])

    def standardise(self, values: Tensor) -> Tensor:
        """Real units -> zero mean and unit deviation over the training split, same shape."""
        return (values - self.mean) / self.std

    def encode(self, values: Tensor) -> Tensor:
        """Real units (B,) -> network units (B, dim)."""
        if self.kind == "categorical":
            return torch.nn.functional.one_hot(values.long(), self.dim).to(values.dtype)
        return (values * 2 - 1 if self.kind == "binary" else self.standardise(values))[:, None]


class Parents(Recorded):
    """Names, units and training ranges of all parents, in a fixed order.

    Args:
        variables: Name -> variable, with the statistics of the training split.
    """

    def __init__(self, variables: dict[str, Variable]) -> None:
        if not variables:
            raise ValueError("an image needs at least one parent variable")
        self.variables = {name: _named(name, variable) for name, variable in variables.items()}

    def __getitem__(self, name: str) -> Variable:
        if name not in self.variables:
            near = meant(name, self.variables)
            raise ValueError(f"unknown variable {name!r}{near or '; this model knows ' + ', '.join(self.variables)}")
        return self.variables[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parents) and self.variables == other.variables

    __hash__ = None  # type: ignore[assignment]

    @property
    def names(self) -> list[str]:
        """Every variable, in the order of the vector."""
        return list(self.variables)

    @property
    def structural(self) -> dict[str, str]:
        """Variable -> structure, for the variables that can be measured in an image."""
        return {name: variable.structure for name, variable in self.variables.items() if variable.structure}

    @property
    def visible(self) -> list[str]:
        """Variables that a regressor can read off an image: the structural ones, and those declared visible."""
        return [name for name, variable in self.variables.items() if variable.structure or variable.visible]

    @property
    def askable(self) -> list[str]:
        """Variables that questions are about where no judge names them: the visible ones, or all if there are none."""
        return self.visible or self.names

    @property
    def dim(self) -> int:
        """Length P of the parents' vector."""
        return sum(variable.dim for variable in self.variables.values())

    def take(self, batch: Values) -> dict[str, Tensor]:
        """Only the parents of a batch, (B,) each."""
        missing = [name for name in self.variables if name not in batch]
        if missing:
            raise ValueError(f"the batch lacks {', '.join(missing)}; it holds {', '.join(batch)}")
        return {name: batch[name] for name in self.variables}

    def encode(self, values: Values) -> Tensor:
        """Real units, (B,) each -> the vector that networks read, (B, P)."""
        return torch.cat([variable.encode(values[name]) for name, variable in self.variables.items()], dim=1)

    def standardise(self, values: Values, names: Sequence[str]) -> Tensor:
        """Real units -> standardised columns of ``names``, (B, len(names))."""
        return torch.stack([self[name].standardise(values[name]) for name in names], dim=1)

    def check(self, do: Values, strict: bool = False) -> None:
        """See that an intervention names known variables and stays within the training range.

        Raises:
            ValueError: If a variable is unknown, a category does not exist, or (``strict``) a value is out of range.
        """
        for name, values in do.items():
            variable = self[name]
            asked = values[~values.isnan()]  # NaN: this subject is not intervened on
            outside = asked[(asked < variable.low) | (asked > variable.high)]
            if not len(outside):
                continue
            message = f"do({name} = {variable.shown(float(outside[0]))}) leaves the training range, {variable.range}"
            if strict or variable.kind != "continuous":
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)


def _named(name: str, variable: Variable) -> Variable:
    """With the names of its values, if it is a binary ``sex`` that declares none: 0 is female, 1 is male."""
    unnamed = name == "sex" and variable.kind == "binary" and not variable.categories
    return replace(variable, categories=("female", "male")) if unnamed else variable


class DataDescription(Recorded):
    """What a data set measures; everything a model must know about its data before it is built.

    Args:
        variables: Parents with the statistics of the training split.
        structures: Names of the mask channels, in order.
        spacing: Edge length of a pixel or voxel along each spatial axis, mm (or 1 / size for image fractions).
        channels: Image channels C.

    Raises:
        ValueError: If a variable measures a structure that the masks do not hold, or something that images of these
            dimensions do not have, or an edge length is not positive.
    """

    def __init__(
        self, variables: dict[str, Variable], structures: list[str], spacing: list[float], channels: int = 1
    ) -> None:
        for name, variable in variables.items():
            if variable.structure:
                _check_measurable(name, variable, structures, len(spacing))
        if not all(0 < edge < math.inf for edge in spacing):
            raise ValueError(f"spacing {list(spacing)}: positive edge lengths are needed")
        self.parents = Parents(variables)
        self.structures, self.spacing, self.channels = list(structures), list(spacing), channels

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.spacing)

    @property
    def follows_anatomy(self) -> bool:
        """Whether a variable's region depends on the factual masks."""
        regions = [variable.region for variable in self.parents.variables.values()]
        return any(region is not None and region.follows_anatomy for region in regions)

    def channels_of(self, structure: str) -> list[int]:
        """Mask channels of a structure, or of the union of several."""
        return [self.structures.index(part) for part in structure.split("+")]


def _check_measurable(name: str, variable: Variable, structures: list[str], spatial_dims: int) -> None:
    region = variable.region or Region()
    named = {"measures": variable.structure, "over:": variable.over, "carries": variable.carries}
    for field, asked in {**named, "within:": region.within}.items():
        for structure in asked.split("+") if asked else []:
            if structure not in structures:
                raise ValueError(
                    f"variable {name!r} {field} {structure!r}, but the masks hold: {', '.join(structures)}"
                )
    if spatial_dims not in MEASUREMENTS[variable.measure].units:
        raise ValueError(f"variable {name!r}: {spatial_dims}-D images have no measure {variable.measure!r}")
    if AXES.index(region.axis) >= spatial_dims:
        raise ValueError(f"variable {name!r}: the region's axis {region.axis!r} is not one of {spatial_dims}-D images")
