"""Base class of chest radiograph data sets with CheXmask masks; a data set implements ``films``."""

import logging
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.chest.chexmask import PREPROCESSED_SIDE, Masks, Variant, coverage, read_chexmask
from data_modules.common.sources import Sample, Source
from segcft.io.picture import Pixels
from segcft.io.readers import read_grey
from segcft.io.resampling import field_of_view, pad_square, resize

log = logging.getLogger(__name__)

LUNGS = ("left_lung", "right_lung")


class ChestFilms(Source):
    """Frontal chest radiographs with lung and heart masks, padded to a square and resized.

    Films are padded with black to a centred square. Areas are in % of that square, since the pixel size of these films
    is unknown. ``OriginalResolution`` masks have the film's shape, or that of a larger copy with the same aspect ratio.
    ``Preprocessed`` masks were made on the same square, resized to 1024 x 1024, so they are only resized. If CheXmask
    first removed a film's black borders (``strips_borders``), they are removed here by the same rule: the film is
    cropped to the smallest rectangle that contains every level above 1.

    A film is listed if it has a mask of sufficient quality; the area of a structure without mask is NaN. Attributes of
    all data sets: ``<structure>_area``, and ``dice_rca``, CheXmask's own estimate of quality. Reading adds
    ``image_height`` and ``image_width`` in pixels and ``lung_contrast``, the mean grey level close around the lungs
    minus that inside: positive unless a film is inverted, its mask is misplaced or its lungs are white.

    Args:
        root: Folder of the data set.
        masks: CheXmask table of the data set.
        structures: Mask channels, in order, among left_lung, right_lung and heart.
        size: Side of the square frame, pixels.
        min_dice: Smallest ``Dice RCA (Mean)`` of a mask.
        variant: Variant of the masks: ``original``, ``preprocessed``, or ``auto`` to infer it from the table's sizes.
        seed: Seed of the random split of patients if the data set has none.
    """

    strips_borders: ClassVar[bool] = False

    def __init__(
        self,
        root: str,
        masks: str,
        structures: list[str] | None = None,
        size: int = 192,
        min_dice: float = 0.7,
        variant: Variant = "auto",
        seed: int = 0,
    ) -> None:
        self.root, self.masks = Path(root).expanduser(), Path(masks).expanduser()
        self.structures = structures or [*LUNGS, "heart"]
        self.size, self.min_dice, self.variant, self.seed = size, min_dice, variant, seed
        self.frame = (size, size)
        self.spacing = [10 / size, 10 / size]  # a pixel is 100 / size^2 % of the image

    @abstractmethod
    def films(self) -> pd.DataFrame:
        """All frontal films: ``id`` (CheXmask's), ``patient``, ``split``, ``image``, ``origin`` and attributes."""

    def options(self) -> dict[str, Any]:
        """See ``Source.options``."""
        names = ("structures", "size", "min_dice", "variant", "seed")
        return {name: getattr(self, name) for name in names}

    def table(self) -> pd.DataFrame:
        """See ``Source.table``; in the order of the data set's own tables."""
        return self._loaded[0].copy(deep=False)

    def read(self, row: Mapping[str, Any]) -> Sample:
        """See ``Source.read``: image (1, S, S) uint8, masks (K, S, S)."""
        place = int(self._loaded[1].ids.get_indexer(pd.Index([row["id"]]))[0])
        try:
            if place < 0:
                raise ValueError(f"{self.masks} has no mask of sufficient quality for {row['id']!r}")
            return self._read(Path(row["image"]), place, row)
        except ValueError as error:
            raise ValueError(f"{row['origin']}: {error}") from error

    def grey(self, pixels: Pixels, row: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Convert the pixels of a file, (H, W), to 8 bits.

        Raises:
            ValueError: If they have more than 8 bits and the data set does not override this method.
        """
        if pixels.dtype != np.uint8:
            raise ValueError(f"{row['image']} has {pixels.dtype} pixels; 8-bit grey is needed")
        return pixels

    def border(self, pixels: Pixels) -> tuple[slice, slice]:
        """Rows and columns of a film (H, W) that CheXmask kept before padding it."""
        inside = pixels > 1
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if not len(rows):
            raise ValueError("the image is black")
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    @cached_property
    def _loaded(self) -> tuple[pd.DataFrame, Masks]:
        films = self.films()
        films.index = pd.Index(films["id"], name=None)
        twice = films.index.duplicated()
        if twice.any():
            raise ValueError(f"{films['origin'].iloc[int(twice.argmax())]}: this image occurs twice")
        masks = read_chexmask(self.masks, self.structures, films.index, self.min_dice, self.variant)
        order = np.sort(films.index.get_indexer(masks.ids))
        table = films.iloc[order].assign(dice_rca=masks.dice[masks.ids.get_indexer(films.index[order])])
        areas = masks.areas()[masks.ids.get_indexer(table.index)]
        table = table.assign(**{f"{name}_area": areas[:, k] for k, name in enumerate(self.structures)})
        log.info("%s: %d frontal films, %d with a mask", self.root, len(films), len(table))
        return table.reset_index(drop=True), masks

    def _read(self, path: Path, place: int, row: Mapping[str, Any]) -> Sample:
        masks, pixels = self._loaded[1], read_grey(path)
        if masks.preprocessed and self.strips_borders:
            pixels = pixels[self.border(pixels)]
        if not masks.preprocessed:
            check_shape(pixels.shape, tuple(masks.shapes[place].tolist()))
        image = resize(pad_square(self.grey(pixels, row)), self.size)
        runs = [masks.runs(place, channel) for channel in range(len(self.structures))]
        drawn = [(coverage(run, masks.shapes[place], self.size) >= 0.5).astype(np.uint8) for run in runs]
        values = {"image_height": float(pixels.shape[0]), "image_width": float(pixels.shape[1])}
        field = field_of_view(np.array(pixels.shape), self.size)
        lungs = [mask for name, mask in zip(self.structures, drawn, strict=True) if name in LUNGS]
        values["lung_contrast"] = _contrast(image, field, np.max([np.zeros_like(field), *lungs], axis=0))
        return Sample(image[None], np.stack(drawn).astype(bool), values)


def check_shape(image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Check that a mask (height, width) fits an image: same shape, or same aspect ratio within a pixel.

    Raises:
        ValueError: If it does not, with the likely reason.
    """
    scale = max(image) / max(mask)
    if all(abs(side - scale * other) <= max(1, scale) for side, other in zip(image, mask, strict=True)):
        return
    shapes = f"the image is {image[0]} x {image[1]} (height x width), its CheXmask row says {mask[0]} x {mask[1]}"
    if mask == (PREPROCESSED_SIDE, PREPROCESSED_SIDE):
        hint = "this looks like a row of the Preprocessed variant (padded, 1024 x 1024) among others"
    elif abs(image[0] - scale * mask[1]) <= 1 and abs(image[1] - scale * mask[0]) <= 1:
        hint = "Height and Width seem to be exchanged"
    else:
        hint = "the OriginalResolution variant fits only images with the same ratio of sides"
    raise ValueError(f"{shapes}; {hint}")


def _contrast(image: NDArray[np.uint8], field: NDArray[np.uint8], lungs: NDArray[np.uint8]) -> float:
    """Mean level of a ring around the lungs, 3 % of the frame wide, minus that inside; NaN without lungs."""
    wide = 2 * max(1, round(len(image) / 32)) + 1
    ring = (cv2.dilate(lungs, np.ones((wide, wide), np.uint8)) > lungs) & (field == 1)
    return float(image[ring].mean() - image[lungs == 1].mean()) if lungs.any() and ring.any() else float("nan")
