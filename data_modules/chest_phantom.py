"""Chest phantom: synthetic frontal radiographs from a known causal model, so that true counterfactuals exist.

Causal model: sex, age -> three areas (log-linear, each with its own noise); areas, sex, age, exogenous noise -> image
and masks.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from data_modules.chest.anatomy import EXOGENOUS, FIELD, Grid, Lung, draw_heart, draw_lung
from data_modules.chest.film import film
from data_modules.chest.tissue import Rest, carried, elastic
from data_modules.common.data_module import Batch
from data_modules.common.phantom import Phantom, PhantomDataset, Values, check_subjects, scaled, take
from data_modules.common.splits import Split
from segcft.core.formatting import number
from segcft.variables.variables import Variable

STRUCTURES = ["left_lung", "right_lung", "heart"]


@dataclass(frozen=True)
class AreaMechanism:
    """log area = log base + sex * (sex - 1/2) + age * (years - 55) / 20 + noise * n, with n standard normal in +-2.2.

    Attributes:
        base: Median area, mm^2.
        sex: Effect of being male.
        age: Effect of 20 years.
        noise: Weight of the exogenous noise.
    """

    base: float
    sex: float
    age: float
    noise: float

    def effect(self, sex: Tensor, age: Tensor) -> Tensor:
        """Contribution of sex and age to the log area, (B,) each -> (B,)."""
        return self.sex * (sex - 0.5) + self.age * (age - 55) / 20


MECHANISMS = {
    "left_lung_area": AreaMechanism(17500, 0.13, -0.03, 0.185),
    "right_lung_area": AreaMechanism(19500, 0.13, -0.03, 0.185),
    "heart_area": AreaMechanism(10500, 0.10, 0.05, 0.185),
}
NOISE_REACH = 2.2  # standard deviations
HEART_PLACES = {"centroid_x": "heart_x", "centroid_y": "heart_y"}  # measure of the heart -> exogenous noise, both in mm
# Correlation of the areas' noise at full confounding, in the order of MECHANISMS. Sex and age affect all three areas
# alike, so the areas themselves correlate by .99 between the lungs and -.77 between a lung and the heart.
CONFOUNDED = ((1.0, 0.99, -0.99), (0.99, 1.0, -0.99), (-0.99, -0.99, 1.0))

Tissue = Literal["elastic", "sliding"]
Texture = Literal["fixed", "carried"]


def all_variables() -> dict[str, Variable]:
    """Every variable the phantom offers: sex, age and the three areas."""
    areas = {f"{name}_area": Variable(unit="mm^2", structure=name) for name in STRUCTURES}
    return {"sex": Variable(kind="binary", categories=("female", "male")), "age": Variable(unit="years"), **areas}


class ChestPhantomDataset(PhantomDataset):
    """One split of the chest phantom; item i of a (seed, split) is the same subject at every size and in every batch.

    Args:
        split: Name of the split; splits use different noise.
        size: Pixels along each side of the film, at least 16.
        subjects: Number of subjects N.
        seed: Seed of the exogenous noise.
        tissue: How the surroundings react to a growing structure. ``elastic``: they are displaced, a smooth deformation
            of the film except for the spine, the other structures' outlines and the grain. ``sliding``: they are
            covered. A change of the heart's position is sliding in both.
        texture: In sliding tissue, whether ribs, lung vessels and the lungs' slow texture move with a growing lung
            (``carried``) or stay in place (``fixed``). In elastic tissue they always move.
        confounding: Correlation of the areas' noise, from 0 (independent) to 1 (``CONFOUNDED``). The distribution of
            each area given sex and age does not change.

    Raises:
        ValueError: If the split, ``tissue`` or ``texture`` is unknown, fixed texture is asked of elastic tissue,
            ``size`` < 16, ``subjects`` < 1, ``seed`` < 0 or ``confounding`` is not in [0, 1].
    """

    def __init__(
        self,
        split: Split,
        size: int,
        subjects: int,
        seed: int = 0,
        tissue: Tissue = "elastic",
        texture: Texture = "carried",
        confounding: float = 0.0,
    ) -> None:
        _check(size, tissue, texture, confounding)
        super().__init__(split, (size, size), subjects, seed)
        self.size, self.tissue, self.texture = size, tissue, texture
        causes = 2 + len(MECHANISMS)  # uniform noise of the variables
        uniform = self.uniform(causes + sum(count for _, _, count in EXOGENOUS.values()))
        self.attributes = _variables(torch.cat([uniform[:, :2], confounded(uniform[:, 2:causes], confounding)], 1))
        self._noise = scaled(uniform[:, causes:], EXOGENOUS)

    @cached_property
    def _lung_fill(self) -> Tensor:
        """Fraction of its bounding box that each lung's outline fills, right then left, (N, 2) float64."""
        parts = torch.split(torch.arange(len(self)), 32)
        noise = [take(self._noise, part) for part in parts]
        return torch.cat([torch.stack([Lung.of(part, side).fill() for side in (0, 1)], 1) for part in noise])

    def draw(self, indices: Tensor, values: Values, shifts: Values) -> tuple[Tensor, Tensor]:
        """Draw films and bit masks (bit k for structure k), (B, S, S) uint8 each; ``shifts`` may move the heart."""
        noise = take(self._noise, indices)
        noise |= {name: noise[name] + shift for name, shift in shifts.items()}
        noise["lung_fill"] = self._lung_fill[indices]
        grid, given = Grid.of_size(self.size), {name: value.double() for name, value in values.items()}
        left, right = (draw_lung(noise, given[f"{STRUCTURES[i]}_area"], 1 - i, grid) for i in range(2))
        organs = [left, right, draw_heart(noise, given["heart_area"], grid)]
        still, moving = self._at_rest(noise, given, grid)
        image = film(noise, organs, given["sex"], given["age"], self.grain(indices), still, moving)
        bits = [organ.inside.to(torch.uint8) << bit for bit, organ in enumerate(organs)]
        return image, bits[0] | bits[1] | bits[2]

    def noise_of(self, variable: Variable) -> str | None:
        """The heart's centroid can be intervened on, by shifting its outline as a whole."""
        plain = variable.structure == "heart" and variable.region is None and not variable.over
        return HEART_PLACES.get(variable.measure) if plain else None

    def _at_rest(self, noise: Values, given: Values, grid: Grid) -> tuple[Rest, Rest]:
        """Reference positions of the tissue, and of ribs, vessels and lung texture, which may move differently."""
        names = ["right_lung_area", "left_lung_area", "heart_area"]
        areas, medians = [given[name] for name in names], [MECHANISMS[name].base for name in names]
        if self.tissue == "elastic":
            tissue = elastic(noise, areas, medians, grid)
            return tissue, tissue
        still = Rest.of(grid)
        return still, carried(noise, areas[:2], medians[:2], grid) if self.texture == "carried" else still

    def to_batch(self, indices: Tensor, levels: Tensor, labels: Tensor, values: Values) -> Batch:
        """See ``PhantomDataset.to_batch``."""
        bits = torch.arange(len(STRUCTURES), dtype=torch.uint8)[:, None, None]
        return {
            "image": levels[:, None].float() * (2 / 255) - 1,  # (B, 1, S, S)
            "mask": ((labels[:, None] >> bits) & 1).float(),  # (B, K, S, S)
            "index": indices,
            **values,
        }

    def intervened(self, observed: Values, do: Values) -> Values:
        """Sex and age affect the areas unless these are intervened on; an area affects no other variable.

        Raises:
            ValueError: If an area is not positive.
        """
        for name, asked in do.items():
            if name in MECHANISMS and (asked <= 0).any():
                raise ValueError(f"do({name} = {number(float(asked[asked <= 0][0]))}): an area must be positive")
        values = {k: torch.where(do[k].isnan(), v, do[k].to(v)) if k in do else v for k, v in observed.items()}
        for name, mechanism in MECHANISMS.items():
            before, after = (mechanism.effect(v["sex"].double(), v["age"].double()) for v in (observed, values))
            moved = observed[name] * (after - before).exp().float()  # same noise; exact where no cause changed
            values[name] = torch.where(do[name].isnan(), moved, values[name]) if name in do else moved
        return values


def confounded(uniform: Tensor, confounding: float) -> Tensor:
    """Gaussian copula: independent uniform noise of the three areas -> correlated, each column still uniform.

    Args:
        uniform: (N, 3) float64, in [0, 1).
        confounding: Factor in [0, 1] on the correlations of ``CONFOUNDED``; 0 returns the noise unchanged.

    Returns:
        (N, 3) float64; the first column is unchanged up to rounding.
    """
    if not confounding:
        return uniform
    correlations = torch.tensor(CONFOUNDED, dtype=torch.float64) * confounding
    root = torch.linalg.cholesky(correlations.fill_diagonal_(1))
    normal = torch.special.ndtri(uniform.clamp(1e-15, 1 - 1e-15))
    mixed = [
        sum(weight * column for weight, column in zip(row, normal.unbind(1), strict=True)) for row in root.tolist()
    ]
    noise: Tensor = torch.special.ndtr(torch.stack(mixed, 1))
    return noise


def _check(size: int, tissue: str, texture: str, confounding: float) -> None:
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    for name, asked, known in (("tissue", tissue, get_args(Tissue)), ("texture", texture, get_args(Texture))):
        if asked not in known:
            raise ValueError(f"unknown {name} {asked!r}; the phantom has {', '.join(known)}")
    if (tissue, texture) == ("elastic", "fixed"):
        raise ValueError("elastic tissue always moves its texture: texture: fixed needs tissue: sliding")
    if not 0 <= confounding <= 1:
        raise ValueError(f"confounding must lie in [0, 1], got {confounding:g}")


def _variables(uniform: Tensor) -> dict[str, Tensor]:
    """Uniform exogenous noise (N, 5) -> all variables of the causal model, (N,) float32 each."""
    sex, age = (uniform[:, 0] < 0.5).double(), (20 + 70 * uniform[:, 1]).float().double()
    reach = torch.erf(torch.tensor(NOISE_REACH / 2**0.5, dtype=torch.float64))
    normal = 2**0.5 * torch.erfinv((2 * uniform[:, 2:] - 1) * reach)  # (N, 3), truncated
    values = {"sex": sex, "age": age}
    for column, (name, mechanism) in enumerate(MECHANISMS.items()):
        values[name] = mechanism.base * (mechanism.effect(sex, age) + mechanism.noise * normal[:, column]).exp()
    return {name: value.float() for name, value in values.items()}


class ChestPhantom(Phantom):
    """Data module of the chest phantom; films are 400 mm square.

    Args:
        variables: Parents of the image; by default all five. Others may be measured on the masks, see ``Variable``; of
            these, only the heart's ``centroid_x`` and ``centroid_y`` have true counterfactuals.
        size: Pixels along each side.
        subjects: Split -> number of subjects; by default 3000 train, 256 val and 256 test.
        seed: Seed of the exogenous noise.
        batch_size: Images per step and process.
        num_workers: Loader processes; films are kept in memory, so 0 is fastest.
        tissue: ``elastic`` or ``sliding``, see ``ChestPhantomDataset``.
        texture: ``carried`` or ``fixed``, see ``ChestPhantomDataset``.
        confounding: Correlation of the areas' noise, 0 to 1, in every split.

    Raises:
        ValueError: If ``size`` < 16, a split, ``tissue`` or ``texture`` is unknown, fixed texture is asked of elastic
            tissue, a split holds no subject, ``seed`` < 0 or ``confounding`` is not in [0, 1].
    """

    structures = STRUCTURES

    def __init__(
        self,
        variables: dict[str, Variable] | None = None,
        size: int = 64,
        subjects: dict[str, int] | None = None,
        seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 0,
        tissue: Tissue = "elastic",
        texture: Texture = "carried",
        confounding: float = 0.0,
    ) -> None:
        super().__init__(variables or all_variables(), batch_size, num_workers)
        self.size, self.seed = size, seed
        self.tissue: Tissue = tissue
        self.texture: Texture = texture
        self.confounding = confounding
        self.subjects = {"train": 3000, "val": 256, "test": 256} | (subjects or {})
        _check(size, tissue, texture, confounding)
        check_subjects(self.subjects, seed)
        self.spacing, self.frame = [FIELD / size] * 2, (size, size)

    def make_dataset(self, split: Split) -> ChestPhantomDataset:
        """Draw the noise of one split; its films are drawn when first read."""
        return ChestPhantomDataset(
            split, self.size, self.subjects[split], self.seed, self.tissue, self.texture, self.confounding
        )
