"""What phantoms share: subjects drawn from seeded noise, kept in memory, and drawn again under do()."""

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.common.data_module import Batch, DataModule, ImageDataset, Rerenderable
from data_modules.common.splits import SPLITS, Split
from segcft.io.resampling import scaled_frame
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.variables import Variable

PIXELS_AT_ONCE = 2**17  # a chunk of images that fits the processor's cache

Values = dict[str, Tensor]


class PhantomDataset(ImageDataset, Rerenderable):
    """One split; item i of a (seed, split) is always the same subject.

    A phantom sets ``attributes`` and says how to draw: ``draw``, ``to_batch``, ``intervened``.

    Args:
        split: Which split; splits share no noise.
        frame: Shape S of an image.
        subjects: Number of subjects N.
        seed: Of the exogenous noise.

    Attributes:
        kept: Whether the first reading draws the whole split and keeps it, or each what it reads.

    Raises:
        ValueError: If the split is unknown, ``subjects`` < 1 or ``seed`` < 0.
    """

    kept: bool = True

    def __init__(self, split: Split, frame: tuple[int, ...], subjects: int, seed: int) -> None:
        check_subjects({split: subjects}, seed)
        self.split, self.frame, self.subjects, self.seed = split, frame, subjects, seed

    @abstractmethod
    def draw(self, indices: Tensor, values: Values, shifts: Values) -> tuple[Tensor, Tensor]:
        """Subjects ``indices`` (B,) at given values -> levels and labels, (B, *S) integers each.

        ``shifts`` (B,) are added to the exogenous noise of that name, one that ``noise_of`` knows.
        """

    @abstractmethod
    def to_batch(self, indices: Tensor, levels: Tensor, labels: Tensor, values: Values) -> Batch:
        """Levels and labels as drawn -> what ``ImageDataset.read`` promises."""

    @abstractmethod
    def intervened(self, observed: Values, do: Values) -> Values:
        """Abduction and action: the variables under ``do``, (B,) each, from those observed."""

    def noise_of(self, variable: Variable) -> str | None:
        """Exogenous noise whose shift shifts a measured variable by as much and nothing else; None if there is none."""
        return None

    def can_draw(self, name: str) -> bool:
        """Causes and sizes, and what is measured if an exogenous noise moves it."""
        return super().can_draw(name) or self._noise_name(name) is not None

    @property
    def _measured(self) -> list[str]:
        return self.measured.parents.names if self.measured else []

    def _noise_name(self, name: str) -> str | None:
        return self.noise_of(self.measured.parents[name]) if self.measured and name in self._measured else None

    def __len__(self) -> int:
        return self.subjects

    def read(self, indices: Tensor) -> Batch:
        """Subjects ``indices`` (B,) as one batch; the first call draws the whole split where it is kept.

        Raises:
            ValueError: If an index is out of range.
        """
        indices = self._checked(indices)
        values = take(self.attributes, indices)
        if self.kept:
            levels, labels = (part[indices] for part in self.observed)
        else:
            levels, labels = self._drawn(indices, values, {})
        return self.to_batch(indices, levels, labels, values)

    def counterfactual(self, indices: Tensor, do: Values) -> Batch:
        """Subjects ``indices`` (B,) drawn again under ``do`` (B,) each, with the same exogenous noise.

        NaN leaves that subject's variable as it is; what is not intervened on follows its causes, and what is measured
        on the masks is measured again.

        Raises:
            ValueError: If ``do`` names a variable that is unknown or cannot be drawn, does not hold one value a
                subject, or asks for sizes that cannot be; or if an index is out of range.
        """
        indices = self._checked(indices)
        observed = take(self.attributes, indices)
        for name, asked in do.items():
            if name not in observed:
                raise ValueError(f"unknown variable {name!r}; the phantom has {', '.join(observed)}")
            if not self.can_draw(name):
                raise ValueError(f"{name!r} is measured, and no exogenous noise of the phantom moves it alone")
            if asked.shape != indices.shape:
                raise ValueError(f"do({name}) holds {tuple(asked.shape)} values for {tuple(indices.shape)} subjects")
        causes = {name: asked for name, asked in do.items() if name not in self._measured}
        values = self.intervened({k: v for k, v in observed.items() if k not in self._measured}, causes)
        batch = self._redrawn(indices, values, {})
        shifts = {}
        for name in do.keys() - causes.keys():
            noise, asked = self._noise_name(name), do[name].to(batch[name])
            assert noise is not None, "can_draw has seen to it"
            shifts[noise] = torch.where(asked.isnan(), 0, asked - batch[name]).double()
        return self._redrawn(indices, values, shifts) if shifts else batch

    def _redrawn(self, indices: Tensor, values: Values, shifts: Values) -> Batch:
        """A batch at given values, with shifted noise; regions stay where the factual masks put them."""
        batch = self.to_batch(indices, *self._drawn(indices, values, shifts), values)
        if self.measured is None:
            return batch
        anatomy = self.read(indices)["mask"] if self.measured.follows_anatomy else None
        return batch | measure_masks(batch["mask"], batch["image"], self.measured, anatomy)

    @cached_property
    def observed(self) -> tuple[Tensor, Tensor]:
        """Every subject as observed: levels and labels, (N, *S) each."""
        return self._drawn(torch.arange(len(self)), self.attributes, {})

    def uniform(self, count: int) -> Tensor:
        """``count`` uniform draws of every subject, (N, count) float64."""
        return torch.from_numpy(np.stack([self._generator(i, 0).random(count) for i in range(len(self))]))

    def grain(self, indices: Tensor) -> Tensor:
        """Uniform noise of every pixel of subjects ``indices`` (B,), (B, *S) float32."""
        drawn = [self._generator(i, 1).random(self.frame, dtype=np.float32) for i in indices.tolist()]
        return torch.from_numpy(np.stack(drawn))

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, stream])

    def _drawn(self, indices: Tensor, values: Values, shifts: Values) -> tuple[Tensor, Tensor]:
        """Any number of subjects, a chunk at a time; ``values`` and ``shifts`` are those of ``indices``."""
        parts = torch.split(torch.arange(len(indices)), max(1, PIXELS_AT_ONCE // int(np.prod(self.frame))))
        drawn = [self.draw(indices[part], take(values, part), take(shifts, part)) for part in parts]
        levels, labels = (torch.cat(part) for part in zip(*drawn, strict=True))
        return levels, labels

    def _checked(self, indices: Tensor) -> Tensor:
        indices = torch.as_tensor(indices)
        outside = indices[(indices < 0) | (indices >= len(self))]
        if len(outside):
            raise ValueError(
                f"index {int(outside[0])} is out of range: the {self.split} split has {len(self)} subjects"
            )
        return indices


class Phantom(DataModule):
    """A data module whose subjects are drawn before the loader's processes start, which then share them.

    Its constructor's arguments are attributes of the same names, among them ``size`` or ``frame``.
    """

    def remade(self, size: int) -> Self:
        """Drawn from the same noise, subject by subject as they are read."""
        given: dict[str, Any] = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        if "frame" in given:
            given["frame"] = scaled_frame(given["frame"], size)
        else:
            given["size"] = size
        return type(self)(**given)

    def dataset(self, split: Split) -> ImageDataset:
        """One split, opened once; a resized one keeps no images."""
        dataset = super().dataset(split)
        if self._original is not None and isinstance(dataset, PhantomDataset):
            dataset.kept = False
        return dataset

    def loader(self, split: Split, shuffle: bool = False) -> DataLoader[Batch]:
        """Batches of one split."""
        dataset = self.dataset(split)
        if self.num_workers and isinstance(dataset, PhantomDataset) and dataset.kept:
            _ = dataset.observed
        return super().loader(split, shuffle)


def check_subjects(subjects: Mapping[str, int], seed: int) -> None:
    """See that splits, their sizes and the seed make sense.

    Raises:
        ValueError: If not.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    for split, count in subjects.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the phantom has {', '.join(SPLITS)}")
        if count < 1:
            raise ValueError(f"the {split} split needs at least one subject, got {count}")


def take(values: Values, indices: Tensor) -> Values:
    """The same rows of every column."""
    return {name: value[indices] for name, value in values.items()}


def scaled(uniform: Tensor, ranges: Mapping[str, tuple[float, float, int]]) -> Values:
    """Uniform noise (N, n) -> named noise in its ranges (low, high, count), (N,) or (N, count)."""
    noise = {}
    parts = torch.split(uniform, [count for _, _, count in ranges.values()], dim=1)
    for (name, (low, high, count)), part in zip(ranges.items(), parts, strict=True):
        drawn = low + (high - low) * part
        noise[name] = drawn[:, 0] if count == 1 else drawn
    return noise
