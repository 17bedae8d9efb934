"""Base classes of phantoms: subjects drawn from seeded noise, with true counterfactuals under do()."""

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

PIXELS_AT_ONCE = 2**17  # chunk size that fits the CPU's cache

Values = dict[str, Tensor]


class PhantomDataset(ImageDataset, Rerenderable):
    """One split of a phantom; item i of a (seed, split) is always the same subject.

    A subclass sets ``attributes`` and implements ``draw``, ``to_batch`` and ``intervened``.

    Args:
        split: Name of the split; splits use different noise.
        frame: Shape S of an image.
        subjects: Number of subjects N.
        seed: Seed of the exogenous noise.

    Attributes:
        kept: Whether the whole split is drawn at first use and kept in memory, or subjects are drawn when read.

    Raises:
        ValueError: If the split is unknown, ``subjects`` < 1 or ``seed`` < 0.
    """

    kept: bool = True

    def __init__(self, split: Split, frame: tuple[int, ...], subjects: int, seed: int) -> None:
        check_subjects({split: subjects}, seed)
        self.split, self.frame, self.subjects, self.seed = split, frame, subjects, seed

    @abstractmethod
    def draw(self, indices: Tensor, values: Values, shifts: Values) -> tuple[Tensor, Tensor]:
        """Draw subjects ``indices`` (B,) with given values: levels and labels, (B, *S) integers each.

        ``shifts`` (B,) are added to the exogenous noise of that name, which must be one of ``noise_of``.
        """

    @abstractmethod
    def to_batch(self, indices: Tensor, levels: Tensor, labels: Tensor, values: Values) -> Batch:
        """Convert drawn levels and labels to the batch format of ``ImageDataset.read``."""

    @abstractmethod
    def intervened(self, observed: Values, do: Values) -> Values:
        """Counterfactual variables under ``do``, (B,) each, by abduction and action on the observed ones."""

    def noise_of(self, variable: Variable) -> str | None:
        """Name of the noise that shifts a measured variable by the same amount and affects nothing else, or None."""
        return None

    def can_draw(self, name: str) -> bool:
        """Whether ``do`` may contain this variable: any but measured ones that no exogenous noise shifts."""
        return super().can_draw(name) or self._noise_name(name) is not None

    @property
    def _measured(self) -> list[str]:
        return self.measured.parents.names if self.measured else []

    def _noise_name(self, name: str) -> str | None:
        return self.noise_of(self.measured.parents[name]) if self.measured and name in self._measured else None

    def __len__(self) -> int:
        return self.subjects

    def read(self, indices: Tensor) -> Batch:
        """Read subjects ``indices`` (B,) as one batch; with ``kept``, the first call draws the whole split.

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
        """True counterfactuals of subjects ``indices`` (B,) under ``do`` (B,) each, with the same exogenous noise.

        NaN means no intervention on that subject's variable. Other variables follow their causes, and variables
        measured on masks are measured again.

        Raises:
            ValueError: If ``do`` names a variable that is unknown or cannot be drawn, does not have one value per
                subject, or asks for impossible sizes; or if an index is out of range.
        """
        indices = self._checked(indices)
        observed = take(self.attributes, indices)
        for name, asked in do.items():
            if name not in observed:
                raise ValueError(f"unknown variable {name!r}; the phantom has {', '.join(observed)}")
            if not self.can_draw(name):
                raise ValueError(f"{name!r} is measured on masks, and no exogenous noise changes it alone")
            if asked.shape != indices.shape:
                raise ValueError(f"do({name}) holds {tuple(asked.shape)} values for {tuple(indices.shape)} subjects")
        causes = {name: asked for name, asked in do.items() if name not in self._measured}
        values = self.intervened({k: v for k, v in observed.items() if k not in self._measured}, causes)
        batch = self._redrawn(indices, values, {})
        shifts = {}
        for name in do.keys() - causes.keys():
            noise, asked = self._noise_name(name), do[name].to(batch[name])
            assert noise is not None, "checked by can_draw"
            shifts[noise] = torch.where(asked.isnan(), 0, asked - batch[name]).double()
        return self._redrawn(indices, values, shifts) if shifts else batch

    def _redrawn(self, indices: Tensor, values: Values, shifts: Values) -> Batch:
        """A batch with given values and shifted noise; regions are those of the factual masks."""
        batch = self.to_batch(indices, *self._drawn(indices, values, shifts), values)
        if self.measured is None:
            return batch
        anatomy = self.read(indices)["mask"] if self.measured.follows_anatomy else None
        return batch | measure_masks(batch["mask"], batch["image"], self.measured, anatomy)

    @cached_property
    def observed(self) -> tuple[Tensor, Tensor]:
        """Levels and labels of all subjects as observed, (N, *S) each."""
        return self._drawn(torch.arange(len(self)), self.attributes, {})

    def uniform(self, count: int) -> Tensor:
        """``count`` uniform random numbers per subject, (N, count) float64."""
        return torch.from_numpy(np.stack([self._generator(i, 0).random(count) for i in range(len(self))]))

    def grain(self, indices: Tensor) -> Tensor:
        """Uniform noise of every pixel of subjects ``indices`` (B,), (B, *S) float32."""
        drawn = [self._generator(i, 1).random(self.frame, dtype=np.float32) for i in indices.tolist()]
        return torch.from_numpy(np.stack(drawn))

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, stream])

    def _drawn(self, indices: Tensor, values: Values, shifts: Values) -> tuple[Tensor, Tensor]:
        """Draw any number of subjects in chunks; ``values`` and ``shifts`` belong to ``indices``."""
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
    """Data module of a phantom; subjects are drawn before the loader's workers start, which then share the memory.

    The constructor's arguments must be attributes of the same names, among them ``size`` or ``frame``.
    """

    def remade(self, size: int) -> Self:
        """The same subjects drawn from the same noise at another size, one by one as they are read."""
        given: dict[str, Any] = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        if "frame" in given:
            given["frame"] = scaled_frame(given["frame"], size)
        else:
            given["size"] = size
        return type(self)(**given)

    def dataset(self, split: Split) -> ImageDataset:
        """One split, opened once; a resized data module does not keep images in memory."""
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
    """Check splits, their sizes and the seed.

    Raises:
        ValueError: If one of them is invalid.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    for split, count in subjects.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the phantom has {', '.join(SPLITS)}")
        if count < 1:
            raise ValueError(f"the {split} split needs at least one subject, got {count}")


def take(values: Values, indices: Tensor) -> Values:
    """Select rows of every column."""
    return {name: value[indices] for name, value in values.items()}


def scaled(uniform: Tensor, ranges: Mapping[str, tuple[float, float, int]]) -> Values:
    """Uniform noise (N, n) -> named noise in its ranges (low, high, count), (N,) or (N, count)."""
    noise = {}
    parts = torch.split(uniform, [count for _, _, count in ranges.values()], dim=1)
    for (name, (low, high, count)), part in zip(ranges.items(), parts, strict=True):
        drawn = low + (high - low) * part
        noise[name] = drawn[:, 0] if count == 1 else drawn
    return noise
