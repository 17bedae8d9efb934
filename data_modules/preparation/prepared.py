"""Any source, read through its cache: the data module of every data set that lies on disk."""

import logging
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.common.data_module import Batch, DataModule, ImageDataset
from data_modules.common.sources import Source
from data_modules.common.splits import Split
from data_modules.common.transforms import Augmentation, to_signed
from data_modules.preparation.cache import Cache, key
from data_modules.preparation.prepare import prepare
from data_modules.preparation.statistics import attributes
from segcft.io.resampling import field_of_view
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.variables import DataDescription, Variable

log = logging.getLogger(__name__)

CACHES = Path("data/cache")


class Prepared(DataModule):
    """A source's subjects from its cache, which is made on first use.

    Every numeric column of the cache's table may be a variable; a variable of another name that has a ``structure`` is
    measured on the masks in the cache. A subject that lacks a used variable or the mask of a used structure is left
    out, and counted in the log.

    Args:
        source: The data set as it lies on disk.
        variables: Parents of the image, name -> declaration.
        structures: Mask channels, in order, among those of the source; None for all.
        cache: Folder of the cache; None for ``data/cache/NAME-KEY``, another for other options of the source.
        augment: Random changes of the training images: False, True for the usual strengths, or the strengths.
        seed: Decides the augmentation.
        workers: Processes that make the cache, should it not be there.
        batch_size: Images a step and a process.
        num_workers: Loader processes.

    Raises:
        ValueError: If a variable or structure is not offered, a size is declared with another unit, the cache is
            stale, or a subject cannot be read while it is made.
    """

    def __init__(
        self,
        source: Source,
        variables: dict[str, Variable],
        structures: list[str] | None = None,
        cache: str | None = None,
        augment: bool | Augmentation = False,
        seed: int = 0,
        workers: int = 2,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(variables, batch_size, num_workers)
        self.source, self.seed, self.workers = source, seed, workers
        self.structures = list(source.structures if structures is None else structures)
        unknown = [name for name in self.structures if name not in source.structures]
        if unknown or not self.structures:
            raise ValueError(f"structures {self.structures}: {source.name} offers {', '.join(source.structures)}")
        self.spacing, self.channels = list(source.spacing), source.channels
        self.folder = Path(cache).expanduser() if cache else CACHES / f"{source.name}-{key(source)}"
        self.augmentation = Augmentation() if augment is True else augment or None
        if self.augmentation and (source.dtype != "uint8" or len(source.frame) != 2):
            raise ValueError(f"augment works on 8-bit films; {source.name} holds {source.dtype} of {source.frame}")
        for name, variable in variables.items():
            if variable.is_size and variable.unit not in ("", source.unit):
                raise ValueError(f"variable {name!r}: {source.name} measures in {source.unit!r}, not {variable.unit!r}")
        self._cache: Cache | None = None
        self._given = cache  # folder that the user chose

    def remade(self, size: int) -> Self:
        """From a cache of its own, which is made on first use: beside the chosen folder if there is one."""
        settings = (self.variables, self.structures, f"{self.folder}-{size}" if self._given else None, False)
        rest = (self.seed, self.workers, self.batch_size, self.num_workers)
        return type(self)(self.source.resized(size), *settings, *rest)

    @property
    def cache(self) -> Cache:
        """The opened cache; made first if it is not there."""
        if self._cache is None:
            self._cache = prepare(self.source, self.folder, self.workers)
        return self._cache

    def make_dataset(self, split: Split) -> "CachedImages":
        """The subjects of one split that have all that is used."""
        table = self.cache.table
        here = table[table["split"] == split]
        offered = self._offered(table)
        used = [*offered, *(_measure_of(name, table) for name in self.structures)]
        kept = here.dropna(subset=used)
        lacking = {name: int(here[name].isna().sum()) for name in used}
        missing = ", ".join(f"{name} of {count}" for name, count in lacking.items() if count) or "nothing"
        note = f"{len(kept)} of {len(here)} subjects are kept; missing: {missing}"
        log.info("%s, %s: %s", self.folder, split, note)
        if not len(kept):
            raise ValueError(f"{self.folder}: no subject is left for {split}: {note}")
        augmentation = self.augmentation if split == "train" else None
        measurable = {name: v for name, v in self.variables.items() if v.structure}
        masked = self.describe(measurable) if measurable else None
        return CachedImages(self.cache, kept, offered, self.structures, masked, augmentation, self.seed)

    def _offered(self, table: pd.DataFrame) -> list[str]:
        """Variables that are columns; the others are measured."""
        for name, variable in self.variables.items():
            if variable.structure and name not in table:
                continue
            if name not in table or not pd.api.types.is_numeric_dtype(table[name]):
                offered = attributes(table)
                raise ValueError(f"unknown variable {name!r}; {self.source.name} offers {', '.join(offered)}")
        return [name for name in self.variables if name in table]


class CachedImages(ImageDataset):
    """One split of a cache; only what is indexed is read.

    Args:
        cache: The opened cache.
        table: Rows of its table.
        variables: Columns to offer.
        structures: Mask channels, in order.
        masked: Variables that are measured anew where augmentation moves the masks.
        augmentation: Random changes of every reading; None leaves images as they are.
        seed: Decides the augmentation, together with the subject and its visit: whatever process reads it.
    """

    def __init__(
        self,
        cache: Cache,
        table: pd.DataFrame,
        variables: list[str],
        structures: list[str],
        masked: DataDescription | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.cache, self.structures, self.masked = cache, structures, masked
        self.attributes = {name: torch.from_numpy(table[name].to_numpy(np.float32, copy=True)) for name in variables}
        self.rows = table["row"].to_numpy(np.int64)
        self.augmentation, self.seed = augmentation, seed
        shapes = table[["image_height", "image_width"]] if {"image_height", "image_width"} <= set(table) else None
        self.shapes = None if shapes is None else shapes.to_numpy(np.int64)  # of the films before padding, (N, 2)
        self.window = cache.facts["plan"]["window"]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Tensor) -> Batch:
        """Subjects ``indices`` (B,) as one batch, on their first visit; see ``ImageDataset.read``."""
        return self.visit(indices, torch.zeros_like(indices))

    def read_unchanged(self, indices: Tensor) -> Batch:
        """As the cache holds them."""
        return self._read(indices, None)

    def visit(self, indices: Tensor, visits: Tensor) -> Batch:
        """The same on their visits (B,), each augmented in its own way."""
        return self._read(indices, visits if self.augmentation else None)

    def _read(self, indices: Tensor, visits: Tensor | None) -> Batch:
        places = indices.numpy()
        rows = self.rows[places]
        images, masks = self.cache.read_images(rows), self.cache.read_masks(rows, self.structures)
        values = {name: column[indices] for name, column in self.attributes.items()}
        if visits is not None:
            images, masks = self._augment(places, visits, images, masks)
        image, mask = to_signed(torch.from_numpy(images), self.window), torch.from_numpy(masks).float()
        if visits is not None and self.masked is not None:
            values |= measure_masks(mask, image, self.masked)
        return {"image": image, "mask": mask, "index": indices, **values}

    def _augment(
        self,
        places: NDArray[np.int64],
        visits: Tensor,
        images: NDArray[np.uint8],
        masks: NDArray[np.uint8],
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Films (B, 1, S, S) and masks (B, K, S, S), each moved in its own way."""
        assert self.augmentation is not None
        drawn = []
        for place, visit, image, mask in zip(places.tolist(), visits.tolist(), images, masks, strict=True):
            seed = int(np.random.default_rng([self.seed, place, visit]).integers(2**31))
            drawn.append(self.augmentation(image[0], mask, self._field(place, image.shape[-1]), seed))
        return np.stack([image for image, _ in drawn])[:, None], np.stack([mask for _, mask in drawn])

    def _field(self, place: int, size: int) -> NDArray[np.uint8]:
        """Where the film lies in the padded frame; all of it where that is unknown."""
        if self.shapes is None:
            return np.ones((size, size), np.uint8)
        return field_of_view(self.shapes[place], size)


def _measure_of(structure: str, table: pd.DataFrame) -> str:
    """The column that is NaN where a structure has no mask."""
    names = [f"{structure}_area", f"{structure}_volume"]
    return next((name for name in names if name in table), names[0])
