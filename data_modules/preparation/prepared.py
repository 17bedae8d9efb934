"""Data module of any data set on disk, read through its cache."""

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
    """Data module of a source, read from its cache, which is made on first use.

    Every numeric column of the cache's table can be a variable. A variable of another name with a ``structure`` is
    measured on the masks. A subject without a used variable or without the mask of a used structure is skipped and
    counted in the log.

    Args:
        source: The data set on disk.
        variables: Parents of the image, name -> declaration.
        structures: Mask channels, in order, among those of the source; None for all.
        cache: Folder of the cache; None for ``data/cache/NAME-KEY``, where KEY depends on the source's options.
        augment: Augmentation of the training images: False, True for the default strengths, or the strengths.
        seed: Seed of the augmentation.
        workers: Processes that make the cache if it is missing.
        batch_size: Images per step and process.
        num_workers: Loader processes.

    Raises:
        ValueError: If a variable or structure is unknown, a size is declared with another unit, the cache is stale, or
            a subject cannot be read while it is made.
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
        self.spacing, self.frame, self.channels = list(source.spacing), tuple(source.frame), source.channels
        self.folder = Path(cache).expanduser() if cache else default_folder(source)
        self.augmentation = Augmentation() if augment is True else augment or None
        if self.augmentation and (source.dtype != "uint8" or len(source.frame) != 2):
            raise ValueError(f"augment needs 8-bit 2-D images; {source.name} has {source.dtype} of {source.frame}")
        for name, variable in variables.items():
            if variable.is_size and variable.unit not in ("", source.unit):
                raise ValueError(f"variable {name!r}: {source.name} measures in {source.unit!r}, not {variable.unit!r}")
        self._cache: Cache | None = None
        self._given = cache  # folder given by the user

    def remade(self, size: int) -> Self:
        """The same data at another size, from a cache of its own, next to the given folder if there is one."""
        settings = (self.variables, self.structures, f"{self.folder}-{size}" if self._given else None, False)
        rest = (self.seed, self.workers, self.batch_size, self.num_workers)
        return type(self)(self.source.resized(size), *settings, *rest)

    @property
    def cache(self) -> Cache:
        """The opened cache, which is made if it is missing."""
        if self._cache is None:
            self._cache = prepare(self.source, self.folder, self.workers)
        return self._cache

    def make_dataset(self, split: Split) -> "CachedImages":
        """The subjects of one split that have all used variables and masks."""
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
        """Variables that are columns of the table; the others are measured on masks."""
        for name, variable in self.variables.items():
            if variable.structure and name not in table:
                continue
            if name not in table or not pd.api.types.is_numeric_dtype(table[name]):
                offered = attributes(table)
                raise ValueError(f"unknown variable {name!r}; {self.source.name} offers {', '.join(offered)}")
        return [name for name in self.variables if name in table]


def default_folder(source: Source) -> Path:
    """Where the cache of a source is, unless told otherwise: ``data/cache/NAME-KEY``."""
    return CACHES / f"{source.name}-{key(source)}"


class CachedImages(ImageDataset):
    """One split of a cache, read lazily.

    Args:
        cache: The opened cache.
        table: Rows of its table.
        variables: Columns used as variables.
        structures: Mask channels, in order.
        masked: Variables that are measured again after augmentation of the masks.
        augmentation: Augmentation of every image that is read; None for none.
        seed: Seed of the augmentation, together with subject and epoch; independent of the reading process.
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
        """Read subjects ``indices`` (B,) as one batch, with the augmentation of epoch 0; see ``ImageDataset.read``."""
        return self.visit(indices, torch.zeros_like(indices))

    def read_unchanged(self, indices: Tensor) -> Batch:
        """As ``read``, without augmentation."""
        return self._read(indices, None)

    def visit(self, indices: Tensor, visits: Tensor) -> Batch:
        """As ``read``, with the augmentation of the epochs ``visits`` (B,)."""
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
        """Augmented images (B, 1, S, S) and masks (B, K, S, S)."""
        assert self.augmentation is not None
        drawn = []
        for place, visit, image, mask in zip(places.tolist(), visits.tolist(), images, masks, strict=True):
            seed = int(np.random.default_rng([self.seed, place, visit]).integers(2**31))
            drawn.append(self.augmentation(image[0], mask, self._field(place, image.shape[-1]), seed))
        return np.stack([image for image, _ in drawn])[:, None], np.stack([mask for _, mask in drawn])

    def _field(self, place: int, size: int) -> NDArray[np.uint8]:
        """Mask of the film within the padded frame; all ones if that is unknown."""
        if self.shapes is None:
            return np.ones((size, size), np.uint8)
        return field_of_view(self.shapes[place], size)


def _measure_of(structure: str, table: pd.DataFrame) -> str:
    """Name of the column that is NaN where a structure has no mask."""
    names = [f"{structure}_area", f"{structure}_volume"]
    return next((name for name in names if name in table), names[0])
