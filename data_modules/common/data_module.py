"""Base classes of data modules: a batch is a dict, and the data module describes its variables and structures."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.common.loaders import TrainingLoader, alone, deaf, evaluation_loader
from data_modules.common.splits import Split
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.measurements import MEASUREMENTS
from segcft.variables.variables import DataDescription, Variable

Batch = dict[str, Tensor]


class ImageDataset(Dataset[Batch], ABC):
    """Images, masks and parents of one split, read in batches.

    Attributes:
        attributes: All variables of all subjects, name -> (N,) float32 in real units, available without reading images.
        measured: Description of the variables among them that were measured on masks; None if there are none.
    """

    attributes: dict[str, Tensor]
    measured: DataDescription | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of subjects N."""

    @abstractmethod
    def read(self, indices: Tensor) -> Batch:
        """Read subjects ``indices`` (B,) as one batch.

        Returns:
            ``image`` (B, C, *S) float32 in [-1, 1]; ``mask`` (B, K, *S) float32 in {0, 1}, one channel per
            structure; ``index`` (B,); and every variable by its name, (B,) float32 in real units.
        """

    def read_unchanged(self, indices: Tensor) -> Batch:
        """As ``read``, without augmentation."""
        return self.read(indices)

    def measure(self, description: DataDescription, at_once: int = 64) -> None:
        """Measure the variables of ``description`` on the masks of all subjects, and add them to ``attributes``."""
        parts = []
        for indices in torch.split(torch.arange(len(self)), at_once):
            batch = self.read_unchanged(indices)
            parts.append(measure_masks(batch["mask"], batch["image"], description))
        columns = {name: torch.cat([part[name] for part in parts]) for name in description.parents.names}
        self.attributes, self.measured = {**self.attributes, **columns}, description

    def visit(self, indices: Tensor, visits: Tensor) -> Batch:
        """As ``read``, for training.

        Args:
            indices: Subjects, (B,).
            visits: The epoch in which each is read, (B,); it determines the augmentation.
        """
        return self.read(indices)

    def __getitem__(self, index: int) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, entries: Sequence[int]) -> Batch:
        """Entry ``index + len(self) * visit``, see ``loaders.Shuffled``."""
        chosen = torch.as_tensor(entries)
        return self.visit(chosen % len(self), chosen // len(self))


class AttributeDataset(Dataset[Batch]):
    """The variables of one split without its images.

    Args:
        images: The split with images.
    """

    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, entries: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(entries) % len(self)
        return {"index": chosen, **{name: column[chosen] for name, column in self.images.attributes.items()}}


class Rerenderable(ABC):
    """A synthetic data set with a known causal model, which can draw a subject's true counterfactual."""

    measured: DataDescription | None = None  # see ``ImageDataset``

    @abstractmethod
    def counterfactual(self, indices: Tensor, do: dict[str, Tensor]) -> Batch:
        """True counterfactuals of subjects ``indices`` (B,) under ``do`` (B,) each, with the same exogenous noise.

        NaN in ``do`` means no intervention on that subject's variable. The batch has the format of
        ``ImageDataset.read``.
        """

    def can_draw(self, name: str) -> bool:
        """Whether ``do`` may contain this variable; by default all but those measured on masks."""
        return self.measured is None or name not in self.measured.parents.names


class DataModule(LightningDataModule, ABC):
    """Base class with loaders, seeds and description; a data set adds ``make_dataset`` and its attributes.

    Args:
        variables: Parents of the image, name -> declaration (kind, unit, structure, measure). Their statistics are
            measured on the training split. A variable with a structure that is not a column of the data set is measured
            on the masks.
        batch_size: Images per step and process.
        num_workers: Loader processes; 0 reads in the training process.

    Attributes:
        attributes_only: Load variables without images.
        structures: Names of the mask channels, in order.
        spacing: Edge length of a pixel along each spatial axis, mm (or 1 / size for image fractions).
        frame: Shape S of an image; the first stage of the HVAE has these sides.
        channels: Image channels C.
    """

    attributes_only: bool = False
    structures: list[str]
    spacing: list[float]
    frame: tuple[int, ...]
    channels: int = 1

    def __init__(self, variables: dict[str, Variable], batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__()
        self.variables, self.batch_size, self.num_workers = variables, batch_size, num_workers
        self._datasets: dict[Split, ImageDataset] = {}
        self._original: DataModule | None = None  # set if this one is resized

    @abstractmethod
    def make_dataset(self, split: Split) -> ImageDataset:
        """Open one split."""

    def dataset(self, split: Split) -> ImageDataset:
        """One split, opened once and cached.

        Raises:
            ValueError: If a variable is neither a column of the data set nor measured on a structure.
        """
        if split not in self._datasets:
            dataset = self.make_dataset(split)
            derived = {name: v for name, v in self.variables.items() if name not in dataset.attributes}
            for name, variable in derived.items():
                if not variable.structure:
                    offered = ", ".join(dataset.attributes)
                    raise ValueError(f"unknown variable {name!r}; this data set offers {offered}, or name a structure")
            if self._original is not None:
                _adopt(dataset, self._original.dataset(split), self.describe(derived) if derived else None)
            elif derived:
                dataset.measure(self.describe(derived))
            self._datasets[split] = dataset
        return self._datasets[split]

    def resized(self, size: int) -> Self:
        """The same subjects and variables, with images and masks of another size.

        Training images are not augmented; images are read or drawn only when needed.

        Args:
            size: Pixels along the longest side of the frame; the field of view is unchanged.

        Raises:
            ValueError: If these data are available in one size only.
        """
        twin = self.remade(size)
        twin._original = self
        return twin

    def remade(self, size: int) -> Self:
        """Create a data module of the same data at another size, see ``resized``; overridden by data sets that can.

        Raises:
            ValueError: If these data are available in one size only.
        """
        raise ValueError(f"{type(self).__name__} offers its images in one size only, not at {size} pixels")

    def describe(self, variables: dict[str, Variable]) -> DataDescription:
        """Description of these images with the given variables."""
        return DataDescription(variables, self.structures, self.spacing, self.channels)

    @cached_property
    def description(self) -> DataDescription:
        """Structures, spacing, and the parents with ranges measured on the training split."""
        attributes = self.dataset("train").attributes
        fitted = {}
        for name, variable in self.variables.items():
            try:
                fitted[name] = variable.fitted(attributes[name])
            except ValueError as error:
                raise ValueError(f"variable {name!r}, training split: {error}") from error
            if not variable.unit and variable.structure and not variable.is_size and not variable.over:
                fitted[name] = replace(fitted[name], unit=MEASUREMENTS[variable.measure].units[len(self.spacing)])
        return self.describe(fitted)

    def loader(self, split: Split, shuffle: bool = False) -> DataLoader[Batch]:
        """Batches of one split; the incomplete last one is dropped only while shuffling."""
        return self._batches(self.dataset(split), shuffle, self.num_workers)

    def attribute_loader(self, split: Split, shuffle: bool = False) -> DataLoader[Batch]:
        """The same batches without image and mask."""
        return self._batches(AttributeDataset(self.dataset(split)), shuffle, workers=0)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled training split."""
        return self._feed("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation split, used for all choices."""
        return self._feed("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test split, for the final evaluation only."""
        return self._feed("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Test split."""
        return alone(self._feed("test"))

    def _feed(self, split: Split, shuffle: bool = False) -> DataLoader[Batch]:
        return self.attribute_loader(split, shuffle) if self.attributes_only else self.loader(split, shuffle)

    def _batches(self, dataset: Dataset[Batch], shuffle: bool, workers: int) -> DataLoader[Batch]:
        options = {"num_workers": workers, "persistent_workers": workers > 0, "worker_init_fn": deaf}
        options |= {"pin_memory": torch.cuda.is_available(), "collate_fn": _as_read}
        return (TrainingLoader if shuffle else evaluation_loader)(dataset, self.batch_size, **options)


def _as_read(batch: Any) -> Any:
    return batch


def _adopt(dataset: ImageDataset, original: ImageDataset, measured: DataDescription | None) -> None:
    """Copy the variables of the original data set to a resized one.

    Raises:
        ValueError: If the numbers of subjects differ.
    """
    if len(dataset) != len(original):
        raise ValueError(f"{len(dataset)} subjects at the other size, {len(original)} at the original one")
    dataset.attributes, dataset.measured = dict(original.attributes), measured
