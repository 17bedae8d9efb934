"""Radiographs with CheXmask run lengths: checked as tables, decoded once, then kept in memory as bytes.

Areas are in % of the image after it was padded to a square, so with ``spacing = [10 / size, 10 / size]`` the number of
mask pixels times the area of a pixel is the same number.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm  # type: ignore[import-untyped]

from data_modules.base import Batch, ImageDataset
from data_modules.chexmask import Masks, decode
from data_modules.transforms import (
    Augmentation,
    Pixels,
    field_of_view,
    pad_square,
    read_grey,
    resize,
    resize_mask,
    to_signed,
)

SLOW = 3.0  # seconds until a progress bar is worth its line


@dataclass
class Films:
    """Everything known about N radiographs before one is opened.

    Attributes:
        images: File of each, (N,).
        origins: Where each was named, ``train.csv, row 5, Path = ...``, (N,).
        masks: Their run lengths, in the same order.
        attributes: Every used variable, name -> (N,) in real units.
        measured: Variables that are areas, name -> mask channel.
        note: How many were left out, and why.
    """

    images: list[str]
    origins: list[str]
    masks: Masks
    attributes: dict[str, NDArray[np.float32]]
    measured: dict[str, int]
    note: str

    def check_files(self) -> None:
        """See that every image exists.

        Raises:
            ValueError: If one is missing.
        """
        missing = [place for place, image in enumerate(self.images) if not os.path.isfile(image)]
        if missing:
            first, others = missing[0], len(missing) - 1
            raise ValueError(f"{self.origins[first]}: no image at {self.images[first]} ({others} others are missing)")


class Radiographs(ImageDataset):
    """One split, held in memory from the first ``read`` on.

    Args:
        films: What to read.
        size: Side of the frame, pixels.
        augmentation: Random changes of every reading; the areas are then measured anew. None leaves images as they are.
        seed: Decides the augmentation, together with the loader process and the order of reading.

    Raises:
        ValueError: If an image file is missing.
    """

    def __init__(self, films: Films, size: int, augmentation: Augmentation | None = None, seed: int = 0) -> None:
        films.check_files()
        self.attributes = {name: torch.from_numpy(values) for name, values in films.attributes.items()}
        self.measured, self.shapes = films.measured, films.masks.shapes
        self.size, self.augmentation, self.seed = size, augmentation, seed
        self._films: Films | None = films
        self._images: Pixels = np.empty((0, size, size), np.uint8)
        self._masks: Pixels = np.empty((0, films.masks.counts.shape[1], size, size), np.uint8)
        self._reads = 0

    def __len__(self) -> int:
        return len(self.shapes)

    def decode(self) -> None:
        """Fill the memory, once; later calls do nothing. Loader processes share what was decoded before they start.

        Raises:
            ValueError: If an image cannot be read, or its shape is not that of its mask.
        """
        if self._films is None:
            return
        films, count = self._films, len(self)
        images = np.empty((count, self.size, self.size), np.uint8)
        masks = np.empty((count, self._masks.shape[1], self.size, self.size), np.uint8)
        workers = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            frames = pool.map(lambda place: _frame(films, place, self.size), range(count))
            bar = tqdm(frames, "decoding radiographs", count, disable=None, delay=SLOW, unit=" films")
            for place, (image, mask) in enumerate(bar):
                images[place], masks[place] = image, mask
        self._images, self._masks, self._films = images, masks, None  # the run lengths may take gigabytes: let go

    def read(self, indices: Tensor) -> Batch:
        """Subjects ``indices`` (B,) as one batch, see ``ImageDataset.read``; areas in % of the image."""
        self.decode()
        places = indices.numpy()
        images, masks = self._images[places], self._masks[places]
        values = {name: column[indices] for name, column in self.attributes.items()}
        if self.augmentation is not None:
            images, masks = self._augment(self.augmentation, places, images, masks)
            areas = torch.from_numpy(100 * masks.mean((2, 3), dtype=np.float32))  # (B, K)
            values |= {name: areas[:, channel] for name, channel in self.measured.items()}
        image = to_signed(torch.from_numpy(images))[:, None]  # (B, 1, S, S)
        return {"image": image, "mask": torch.from_numpy(masks).float(), "index": indices, **values}

    def _augment(
        self, augmentation: Augmentation, places: NDArray[np.int64], images: Pixels, masks: Pixels
    ) -> tuple[Pixels, Pixels]:
        worker = get_worker_info()
        self._reads += 1
        stream = np.random.default_rng([self.seed, worker.id if worker else 0, self._reads])
        seeds = stream.integers(2**31, size=len(places)).tolist()
        drawn = [
            augmentation(image, mask, field_of_view(self.shapes[place], self.size), seed)
            for place, image, mask, seed in zip(places, images, masks, seeds, strict=True)
        ]
        return np.stack([image for image, _ in drawn]), np.stack([mask for _, mask in drawn])


def _frame(films: Films, place: int, size: int) -> tuple[Pixels, Pixels]:
    """One film as (S, S) and its masks as (K, S, S)."""
    try:
        image = read_grey(films.images[place])
    except ValueError as error:
        raise ValueError(f"{films.origins[place]}: {error}") from error
    height, width = films.masks.shapes[place]
    if image.shape != (height, width):
        raise ValueError(f"{films.origins[place]}: {_mismatch(image.shape, (height, width))}")
    runs = [films.masks.runs(place, channel) for channel in range(films.masks.counts.shape[1])]
    masks = [resize_mask(pad_square(decode(run, (height, width))), size) for run in runs]
    return resize(pad_square(image), size), np.stack(masks)


def _mismatch(image: tuple[int, ...], mask: tuple[int, int]) -> str:
    shapes = f"the image is {image[0]} x {image[1]} (height x width), its CheXmask row says {mask[0]} x {mask[1]}"
    if mask == (1024, 1024):
        hint = "this looks like the Preprocessed variant (padded, 1024 x 1024): use the OriginalResolution table"
    elif mask == image[::-1]:
        hint = "Height and Width look exchanged"
    else:
        hint = "the OriginalResolution variant fits only the full-size images, Preprocessed only its own 1024 x 1024"
    return f"{shapes}; {hint}"
