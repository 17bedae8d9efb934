"""Chest phantom: schematic frontal radiographs drawn from a known causal model, so true counterfactuals exist.

sex, age -> three areas (log-linear, each with its own noise); areas, sex, age, exogenous noise -> image and masks.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.base import Batch, DataModule, ImageDataset, Rerenderable, Split
from data_modules.chest_anatomy import EXOGENOUS, FIELD, Grid, Lung, Noise, draw_heart, draw_lung
from data_modules.chest_film import film
from segcft.parents import Variable

STRUCTURES = ["left_lung", "right_lung", "heart"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
PIXELS_AT_ONCE = 2**17  # a chunk of films that fits the processor's cache


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
        """What the parents add to the log area, (B,) each -> (B,)."""
        return self.sex * (sex - 0.5) + self.age * (age - 55) / 20


MECHANISMS = {
    "left_lung_area": AreaMechanism(17500, 0.13, -0.03, 0.185),
    "right_lung_area": AreaMechanism(19500, 0.13, -0.03, 0.185),
    "heart_area": AreaMechanism(10500, 0.10, 0.05, 0.185),
}
NOISE_REACH = 2.2  # standard deviations


def all_variables() -> dict[str, Variable]:
    """Every variable the phantom offers: sex, age and the three areas."""
    areas = {f"{name}_area": Variable(unit="mm^2", structure=name) for name in STRUCTURES}
    return {"sex": Variable(kind="binary"), "age": Variable(unit="years"), **areas}


class ChestPhantomDataset(ImageDataset, Rerenderable):
    """One split; item i of a (seed, split) is always the same subject, at every size and in every batch.

    Args:
        split: Which split; splits share no noise.
        size: Pixels along each side of the film, at least 16.
        subjects: Number of subjects N.
        seed: Of the exogenous noise.

    Raises:
        ValueError: If the split is unknown, ``size`` < 16, ``subjects`` < 1 or ``seed`` < 0.
    """

    def __init__(self, split: Split, size: int, subjects: int, seed: int = 0) -> None:
        _check(size, seed, {split: subjects})
        self.split, self.size, self.seed = split, size, seed
        causes = 2 + len(MECHANISMS)  # uniform noise of the variables
        drawn = causes + sum(count for _, _, count in EXOGENOUS.values())
        uniform = torch.from_numpy(np.stack([self._generator(i, 0).random(drawn) for i in range(subjects)]))
        self.attributes = _variables(uniform[:, :causes])
        self._noise = _exogenous(uniform[:, causes:])

    def __len__(self) -> int:
        return len(self.attributes["age"])

    def read(self, indices: Tensor) -> Batch:
        """Subjects ``indices`` (B,) as one batch; the first call draws the whole split.

        Raises:
            ValueError: If an index is out of range.
        """
        indices = self._checked(indices)
        image, mask = self.films
        values = {name: value[indices] for name, value in self.attributes.items()}
        return self._batch(indices, image[indices], mask[indices], values)

    def counterfactual(self, indices: Tensor, do: dict[str, Tensor]) -> Batch:
        """Subjects ``indices`` (B,) drawn again under ``do`` (B,) each, with the same exogenous noise.

        An intervention on sex or age also moves the areas that it causes, unless those are intervened on as well;
        an intervention on an area moves nothing else. NaN leaves that subject's variable as it is.

        Raises:
            ValueError: If ``do`` names an unknown variable or does not hold one value a subject, if an area is not
                positive, or if an index is out of range.
        """
        indices = self._checked(indices)
        values = self._intervened(indices, do)
        parts = torch.split(torch.arange(len(indices)), self._chunk)
        drawn = [self._draw(indices[part], {name: value[part] for name, value in values.items()}) for part in parts]
        image, mask = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return self._batch(indices, image, mask, values)

    @cached_property
    def films(self) -> tuple[Tensor, Tensor]:
        """Every subject as observed: images (N, S, S) uint8, and masks (N, S, S) uint8 with a bit a structure."""
        image = torch.empty(len(self), self.size, self.size, dtype=torch.uint8)
        mask = torch.empty_like(image)
        for index in torch.split(torch.arange(len(self)), self._chunk):
            image[index], mask[index] = self._draw(index, {k: v[index] for k, v in self.attributes.items()})
        return image, mask

    @property
    def _chunk(self) -> int:
        return max(1, PIXELS_AT_ONCE // self.size**2)

    @cached_property
    def _lung_fill(self) -> Tensor:
        """Share of its box that each lung's outline fills, right then left, (N, 2) float64."""
        parts = torch.split(torch.arange(len(self)), 32)
        noise = [{name: value[part] for name, value in self._noise.items()} for part in parts]
        return torch.cat([torch.stack([Lung.of(part, side).fill() for side in (0, 1)], 1) for part in noise])

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, stream])

    def _draw(self, indices: Tensor, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Subjects at given values -> images and packed masks, (B, S, S) uint8 each."""
        noise = {name: value[indices] for name, value in self._noise.items()}
        noise["lung_fill"] = self._lung_fill[indices]
        grid, given = Grid.of_size(self.size), {name: value.double() for name, value in values.items()}
        left, right = (draw_lung(noise, given[f"{STRUCTURES[i]}_area"], 1 - i, grid) for i in range(2))
        organs = [left, right, draw_heart(noise, given["heart_area"], grid)]
        shape = (self.size, self.size)
        grain = np.stack([self._generator(i, 1).random(shape, dtype=np.float32) for i in indices.tolist()])
        image = film(noise, organs, given["sex"], given["age"], torch.from_numpy(grain))
        bits = [organ.inside.to(torch.uint8) << bit for bit, organ in enumerate(organs)]
        return image, bits[0] | bits[1] | bits[2]

    def _batch(self, indices: Tensor, image: Tensor, mask: Tensor, values: dict[str, Tensor]) -> Batch:
        bits = torch.arange(len(STRUCTURES), dtype=torch.uint8)[:, None, None]
        return {
            "image": image[:, None].float() * (2 / 255) - 1,  # (B, 1, S, S)
            "mask": ((mask[:, None] >> bits) & 1).float(),  # (B, K, S, S)
            "index": indices,
            **values,
        }

    def _checked(self, indices: Tensor) -> Tensor:
        indices = torch.as_tensor(indices)
        outside = indices[(indices < 0) | (indices >= len(self))]
        if len(outside):
            raise ValueError(
                f"index {int(outside[0])} is out of range: the {self.split} split has {len(self)} subjects"
            )
        return indices

    def _intervened(self, indices: Tensor, do: dict[str, Tensor]) -> dict[str, Tensor]:
        """Abduction and action: the variables of subjects ``indices`` under ``do``, (B,) float32 each."""
        observed = {name: value[indices] for name, value in self.attributes.items()}
        for name, asked in do.items():
            if name not in observed:
                raise ValueError(f"unknown variable {name!r}; the phantom has {', '.join(observed)}")
            if asked.shape != indices.shape:
                raise ValueError(f"do({name}) holds {tuple(asked.shape)} values for {tuple(indices.shape)} subjects")
            if name in MECHANISMS and (asked <= 0).any():
                raise ValueError(f"do({name} = {float(asked[asked <= 0][0]):g}): an area must be positive")
        values = {k: torch.where(do[k].isnan(), v, do[k].to(v)) if k in do else v for k, v in observed.items()}
        for name, mechanism in MECHANISMS.items():
            before, after = (mechanism.effect(v["sex"].double(), v["age"].double()) for v in (observed, values))
            moved = observed[name] * (after - before).exp().float()  # the same noise; exact where no cause moved
            values[name] = torch.where(do[name].isnan(), moved, values[name]) if name in do else moved
        return values


def _check(size: int, seed: int, subjects: dict[str, int]) -> None:
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    for split, count in subjects.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the phantom has {', '.join(SPLITS)}")
        if count < 1:
            raise ValueError(f"the {split} split needs at least one subject, got {count}")


def _variables(uniform: Tensor) -> dict[str, Tensor]:
    """Exogenous noise of the causal model, (N, 5) uniform -> every variable, (N,) float32."""
    sex, age = (uniform[:, 0] < 0.5).double(), (20 + 70 * uniform[:, 1]).float().double()
    reach = torch.erf(torch.tensor(NOISE_REACH / 2**0.5, dtype=torch.float64))
    normal = 2**0.5 * torch.erfinv((2 * uniform[:, 2:] - 1) * reach)  # (N, 3), truncated
    values = {"sex": sex, "age": age}
    for column, (name, mechanism) in enumerate(MECHANISMS.items()):
        values[name] = mechanism.base * (mechanism.effect(sex, age) + mechanism.noise * normal[:, column]).exp()
    return {name: value.float() for name, value in values.items()}


def _exogenous(uniform: Tensor) -> Noise:
    """Uniform noise (N, n) -> every exogenous variable of the drawing, scaled to its range, (N,) or (N, count)."""
    noise = {}
    parts = torch.split(uniform, [count for _, _, count in EXOGENOUS.values()], dim=1)
    for (name, (low, high, count)), part in zip(EXOGENOUS.items(), parts, strict=True):
        scaled = low + (high - low) * part
        noise[name] = scaled[:, 0] if count == 1 else scaled
    return noise


class ChestPhantom(DataModule):
    """Chest phantoms of 400 mm square films.

    Args:
        variables: Parents of the image; all five by default.
        size: Pixels along each side.
        subjects: Split -> number of subjects; 3000 train, 256 val and 256 test unless given.
        seed: Of the exogenous noise.
        batch_size: Images a step and a process.
        num_workers: Loader processes, which share the films drawn here; reading is a gather, so 0 is fastest.

    Raises:
        ValueError: If ``size`` < 16, a split is unknown or holds no subject, or ``seed`` < 0.
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
    ) -> None:
        super().__init__(variables or all_variables(), batch_size, num_workers)
        self.size, self.seed = size, seed
        self.subjects = {"train": 3000, "val": 256, "test": 256} | (subjects or {})
        _check(size, seed, self.subjects)
        self.spacing = [FIELD / size] * 2

    def make_dataset(self, split: Split) -> ChestPhantomDataset:
        """Draw the noise of one split; its films follow when they are first read."""
        return ChestPhantomDataset(split, self.size, self.subjects[split], self.seed)

    def loader(self, split: Split, shuffle: bool = False) -> DataLoader[Batch]:
        """Batches of one split, drawn before the loader's processes start."""
        dataset = self.dataset(split)
        if self.num_workers and isinstance(dataset, ChestPhantomDataset):
            _ = dataset.films
        return super().loader(split, shuffle)
