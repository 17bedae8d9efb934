"""Sources: a data set on disk, listed in a table and read subject by subject; ``prepare`` makes a cache of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segcft.core.recipes import recording
from segcft.io.resampling import scaled_frame


@dataclass
class Sample:
    """One subject, resampled to the source's frame.

    Attributes:
        image: (C, *S) of the source's ``dtype``.
        mask: (K, *S) bool, one channel per structure; structures may overlap.
        values: Variables measured while reading, name -> number; added to the subject's row.
    """

    image: NDArray[Any]
    mask: NDArray[np.bool_]
    values: Mapping[str, float] = field(default_factory=dict)


class Source(ABC):
    """A data set on disk: how to list and read its subjects, and everything that affects the prepared cache.

    A source is built from plain arguments, does not use Lightning, and can be pickled to another process. A new data
    set needs one subclass and one ``data.yaml``.

    Attributes:
        name: Name of the data set, for messages and the cache.
        structures: Mask channels, in order; at most 8.
        frame: Shape S of a prepared image, two or three sides.
        spacing: Pixel size of a prepared image in mm, or such that areas are in ``unit``.
        dtype: Data type of a prepared image.
        window: The two levels that are mapped to -1 and 1.
        unit: Unit of the structures' areas or volumes.
        channels: Image channels C.
    """

    name: ClassVar[str]
    structures: list[str]
    frame: tuple[int, ...]
    spacing: list[float]
    dtype: Literal["uint8", "int16"] = "uint8"
    window: tuple[float, float] = (0.0, 255.0)
    unit: str = "% of image"
    channels: int = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = recording(cls.__init__, "_given", _unchanged)  # type: ignore[method-assign]

    def resized(self, size: int) -> Self:
        """The same source, ``size`` pixels along the longest side of the same field of view.

        Raises:
            ValueError: If the source has neither ``size`` nor ``frame`` among its arguments.
        """
        given: dict[str, Any] = dict(self.__dict__.get("_given", {}))
        frame = scaled_frame(self.frame, size)
        if "size" in given:
            given["size"] = size
        elif "frame" in given:
            given["frame"] = list(frame)
        else:
            raise ValueError(f"{self.name} cannot be prepared at another size")
        if given.get("spacing"):  # mm a pixel
            sides = zip(given["spacing"], self.frame, frame, strict=True)
            given["spacing"] = [step * old / new for step, old, new in sides]
        return type(self)(**given)

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Options that affect the content of a cache, as plain data; a cache with other options is stale."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The tables that are read (not the images); a cache is stale if their content has changed."""

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """One row per subject, read without opening images, in a fixed order.

        Columns ``id`` (unique), ``patient``, ``split`` (train, val or test), ``image`` (path of the file, for
        messages) and ``origin`` (file, row, field and value where it was named); every other numeric column is an
        attribute that may become a variable, NaN where it is unknown. Areas and volumes are called
        ``<structure>_area`` or ``<structure>_volume`` and are NaN where the structure has no mask.

        Raises:
            ValueError: Naming file, row, field and value, if a table is invalid.
        """

    @abstractmethod
    def read(self, row: Mapping[str, Any]) -> Sample:
        """Read one subject; ``row`` is its row of ``table`` as a dict.

        Raises:
            ValueError: Naming the file and the reason.
        """


def _unchanged(value: Any) -> Any:
    return value
