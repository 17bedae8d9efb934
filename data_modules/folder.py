"""Images and masks listed in a CSV: radiographs, slices or volumes of any data set."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_modules.common.sources import Sample, Source
from data_modules.common.splits import hashed_splits
from segcft.io.csv_tables import (
    bad_cell,
    categories,
    header,
    numbers,
    origins,
    read_table,
    refuse,
    refuse_outside,
    refuse_twice,
)
from segcft.io.orientation import UPRIGHT
from segcft.io.picture import Picture, Window, check_alike
from segcft.io.readers import read_labels, read_mask, read_picture
from segcft.io.resampling import resample

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "test"}
SEXES = {"F": 0.0, "M": 1.0, "Female": 0.0, "Male": 1.0}
LEVELS = (-(2**15), 2**15 - 1)  # of int16
WRITTEN = r"(?i)[<>~]?[+-]?\d+([.,]\d+)?\s*([dwmy]|yrs?|years?|months?|days?|mm2?|cm2?|ml|kg|%)?"  # a number, in words
SLACK = 0.5  # pixels by which a structure may exceed the frame


class Folder(Source):
    """Images and masks listed in a manifest; paths are relative to the manifest's folder.

    Columns of the manifest: ``image``; either ``mask_<structure>`` for every structure (a file with two levels, the
    lower one being background; blank if there is no mask) or ``label`` (one label map). Optional: ``id`` (default: the
    image's path), ``patient`` (default: the id), ``split`` (train, val, test; default: 80/10/10 by a hash of (seed,
    patient)) and ``sex`` (F or M, read as 0 or 1). Every other numeric column is an attribute, with blank cells as
    missing values; text columns are ignored.

    Files are PNG, JPEG, DICOM or NIfTI, see ``readers.read_picture``. ``frame`` has two sides for images and three for
    volumes. Without ``spacing``, images are padded with black to a centred square (cube) and resized; areas are pixel
    counts in % of that square. With ``spacing``, images are resampled to it about their centre and cropped or padded to
    the frame; areas in mm^2 (volumes in mm^3) are measured before resampling, and a structure that the frame would crop
    is an error. Reading measures ``<structure>_area`` (in 3-D ``<structure>_volume``).

    Args:
        manifest: Path of the CSV.
        structures: Names of the mask channels, in order.
        labels: Structure -> its values in the label map; required with a column ``label``.
        frame: Shape of a prepared image, pixels.
        spacing: Pixel size of a prepared image in mm, one per axis of ``frame``.
        window: Levels shown as black and as white; required for more than 8 bits (HU, 16-bit PNG). The cache stores
            int16 with a window, and uint8 without.
        allow_outside: Accept files outside the manifest's folder.
        seed: Seed of the random split of patients if the manifest has no ``split``.

    Raises:
        ValueError: If frame, spacing, window or labels are invalid.
    """

    name = "folder"

    def __init__(
        self,
        manifest: str,
        structures: list[str],
        labels: dict[str, list[int]] | None = None,
        frame: list[int] | None = None,
        spacing: list[float] | None = None,
        window: list[float] | None = None,
        allow_outside: bool = False,
        seed: int = 0,
    ) -> None:
        self.manifest, self.structures, self.labels = Path(manifest).expanduser(), structures, labels
        self.frame, self.resolution = tuple(frame or [192, 192]), spacing
        self.allow_outside, self.seed = allow_outside, seed
        _check_geometry(self.frame, spacing)
        if not structures or (labels is not None and set(labels) != set(structures)):
            raise ValueError(f"labels must name exactly the structures {structures}, got {labels}")
        dims = len(self.frame)
        self.measure = "area" if dims == 2 else "volume"
        self.unit = "% of image" if spacing is None else f"mm^{dims}"
        self.spacing = spacing or [100 ** (1 / dims) / self.frame[0]] * dims
        self.levels: Window | None = None
        self.offset = 0.0
        if window is not None:
            self._set_window(window)

    def options(self) -> dict[str, Any]:
        """See ``Source.options``."""
        return {
            "structures": self.structures,
            "labels": self.labels,
            "frame": list(self.frame),
            "spacing": self.resolution,
            "window": list(self.levels) if self.levels else None,
            "seed": self.seed,
        }

    def files(self) -> list[Path]:
        """See ``Source.files``."""
        return [self.manifest]

    def table(self) -> pd.DataFrame:
        """See ``Source.table``; areas are measured by ``read``, the columns ``image``, ``label`` hold full paths."""
        return self._table.copy(deep=False)

    def read(self, row: Mapping[str, Any]) -> Sample:
        """See ``Source.read``: image (1, *S), masks (K, *S), measured areas or volumes."""
        try:
            return self._read(row)
        except ValueError as error:
            raise ValueError(f"{row['origin']}: {error}") from error

    @cached_property
    def _table(self) -> pd.DataFrame:
        path, known = self.manifest, header(self.manifest)
        masks = ["label"] if self.labels else [f"mask_{name}" for name in self.structures]
        frame = read_table(path, ["image", *masks], [name for name in known if not name.startswith("mask_")])
        refuse(frame, "image", path, frame["image"].isna().to_numpy(), "every row needs an image")
        table = pd.DataFrame({name: self._paths(frame, name) for name in ["image", *masks]})
        table["id"] = frame["id"] if "id" in frame else frame["image"]
        refuse_twice(table, "id", path, "id")
        table["patient"] = frame["patient"].fillna(table["id"]) if "patient" in frame else table["id"]
        table["split"] = self._splits(frame, table["patient"])
        table["origin"] = origins(frame, "image", path)
        given = ["image", "label", "id", "patient", "split"]
        return table.assign(**self._attributes(frame.drop(columns=given, errors="ignore"))).reset_index(drop=True)

    def _paths(self, frame: pd.DataFrame, field: str) -> "pd.Series[str]":
        folder = self.manifest.parent
        if not self.allow_outside:
            refuse_outside(frame, field, self.manifest, folder)
        paths = [str(folder / cell) if cell == cell else "" for cell in frame[field].tolist()]
        return pd.Series(paths, frame.index, dtype="str")

    def _splits(self, frame: pd.DataFrame, patients: "pd.Series[str]") -> "pd.Series[str]":
        if "split" not in frame:
            return hashed_splits(patients, self.seed)
        splits = frame["split"].map(SPLITS)
        refuse(frame, "split", self.manifest, splits.isna().to_numpy(), "train, val or test")
        return splits

    def _attributes(self, frame: pd.DataFrame) -> dict[str, NDArray[np.float32]]:
        measured = [f"{name}_{self.measure}" for name in self.structures]
        columns = {}
        for name in (name for name in map(str, frame.columns) if not name.startswith("mask_")):
            if name in (*measured, "origin"):
                raise ValueError(f"{self.manifest}: the column {name!r} would be overwritten: rename it")
            if name == "sex":
                columns[name] = categories(frame, name, self.manifest, SEXES)
            elif frame[name].isna().all() or pd.to_numeric(frame[name], errors="coerce").notna().any():
                columns[name] = numbers(frame, name, self.manifest, blank=True)
            else:
                _name_words(frame, name, self.manifest)
        return {name: values.astype(np.float32) for name, values in columns.items()}

    def _read(self, row: Mapping[str, Any]) -> Sample:
        picture = read_picture(Path(row["image"]), self.levels)
        shape = picture.levels.shape
        if len(shape) != len(self.frame):
            raise ValueError(f"{row['image']} has shape {shape}, which does not fit the frame {self.frame}")
        steps = self._steps(picture, row["image"])
        low = self.levels[0] if self.levels else 0.0
        image = resample(picture.levels.astype(np.float32) - low, self.frame, steps) + low
        masks, values = [], dict[str, float]()
        pixel = float(np.prod(picture.spacing or ())) if self.resolution else 100 / max(shape) ** len(shape)
        for name, mask in self._masks(row, picture).items():
            native = np.zeros(shape, np.bool_) if mask is None else mask
            _refuse_cropped(native, self.frame, steps, name)
            masks.append(resample(native, self.frame, steps) >= 0.5)
            values[f"{name}_{self.measure}"] = float("nan") if mask is None else float(native.sum()) * pixel
        return Sample(self._stored(image)[None], np.stack(masks), values)

    def _steps(self, picture: Picture, path: str) -> list[float]:
        """Size of a frame pixel along each axis, in image pixels."""
        if self.resolution is None:
            return [max(picture.levels.shape) / self.frame[0]] * len(self.frame)
        if picture.spacing is None:
            raise ValueError(f"{path} does not state its spacing in mm: use spacing: null, then areas are in %")
        return [new / old for new, old in zip(self.resolution, picture.spacing, strict=True)]

    def _masks(self, row: Mapping[str, Any], image: Picture) -> dict[str, NDArray[np.bool_] | None]:
        if self.labels:
            labels = _fitting(row["label"], image, read_labels)
            _refuse_other_labels(row["label"], labels, self.labels)
            return {name: None if labels is None else np.isin(labels, self.labels[name]) for name in self.structures}
        return {name: _binary(row[f"mask_{name}"], image) for name in self.structures}

    def _set_window(self, window: Sequence[float]) -> None:
        if len(window) != 2 or not 1 <= window[1] - window[0] <= LEVELS[1] - LEVELS[0]:
            raise ValueError(f"window {list(window)}: [low, high] is needed, 1 to {LEVELS[1] - LEVELS[0]} levels apart")
        self.levels, self.dtype = (float(window[0]), float(window[1])), "int16"
        if window[0] < LEVELS[0] or window[1] > LEVELS[1]:
            self.offset = float(np.ceil(window[0] - LEVELS[0]))  # shift unsigned levels into int16
        self.window = (self.levels[0] - self.offset, self.levels[1] - self.offset)

    def _stored(self, image: NDArray[np.float32]) -> NDArray[Any]:
        limits = LEVELS if self.dtype == "int16" else (0, 255)
        return np.asarray(np.rint(image - self.offset).clip(*limits), self.dtype)


def _name_words(frame: pd.DataFrame, field: str, path: Path) -> None:
    """Warn of a column of words, which is left out.

    Raises:
        ValueError: If all its cells are numbers that are written otherwise, such as 60,5 or 061Y.
    """
    cells = frame[field].dropna()
    if cells.str.strip().str.fullmatch(WRITTEN).all():
        wrong = frame[field].notna().to_numpy()
        refuse(frame, field, path, wrong, "a number is needed here, with a point and without its unit, such as 60.5")
    first = bad_cell(
        path, int(cells.index[0]), field, cells.iloc[0], "words; the column is no variable and is left out"
    )
    log.warning("%s", first)


def _check_geometry(frame: tuple[int, ...], spacing: list[float] | None) -> None:
    if len(frame) not in (2, 3) or min(frame) < 1:
        raise ValueError(f"frame {list(frame)}: give two or three sides in pixels")
    if spacing is None and len(set(frame)) > 1:
        raise ValueError(f"frame {list(frame)}: without spacing, all sides must be equal")
    if spacing is not None and (len(spacing) != len(frame) or not all(0 < side < np.inf for side in spacing)):
        raise ValueError(f"spacing {spacing}: give one value in mm per side of the frame {list(frame)}")


def _fitting(path: str, image: Picture, read: Callable[[Path], Picture]) -> NDArray[Any] | None:
    """Labels or mask of a file, which must be on the image's grid; None if there is no file.

    A file that does not state its orientation in the patient, such as a PNG, lies on the stored pixels of a DICOM.
    """
    if not path:
        return None
    found = read(Path(path))
    if found.turn != UPRIGHT and found.anatomical and not image.anatomical:
        raise ValueError(f"{path} states its orientation in the patient, but its image does not: which side is left?")
    if image.turn != UPRIGHT and image.anatomical and not found.anatomical:
        _warn_of_stored_masks(Path(path).parent)
        found.levels = image.turn.show(found.levels)
    if found.levels.shape != image.levels.shape:
        raise ValueError(f"{path} has shape {found.levels.shape}, its image {image.levels.shape}")
    if found.spacing and image.spacing and not np.allclose(found.spacing, image.spacing, rtol=1e-3):
        raise ValueError(f"{path} has spacing {found.spacing} mm, its image {image.spacing} mm")
    if found.corners is not None and image.corners is not None and image.spacing:
        try:
            check_alike(found.corners, image.corners, min(image.spacing))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return found.levels


@cache
def _warn_of_stored_masks(folder: Path) -> None:
    message = (
        "%s: masks that do not state their orientation are taken to lie on the stored pixels of their DICOM images"
    )
    log.warning(message + ", which are shown turned", folder)


def _binary(path: str, image: Picture) -> NDArray[np.bool_] | None:
    return _fitting(path, image, read_mask)


def _refuse_other_labels(path: str, labels: NDArray[Any] | None, wanted: Mapping[str, Sequence[int]]) -> None:
    """A map that holds labels, and none of those that are wanted, is another map."""
    if labels is None:
        return
    every = {label for several in wanted.values() for label in several}
    found = set(np.unique(labels).tolist())
    if found - {0} and not found & every:
        held, asked = (", ".join(map(str, sorted(some)[:6])) for some in (found, every))
        raise ValueError(f"{path} holds the labels {held} and none of {asked}: is it a label map of these structures?")


def _refuse_cropped(mask: NDArray[np.bool_], frame: tuple[int, ...], steps: list[float], name: str) -> None:
    for axis, (side, step) in enumerate(zip(frame, steps, strict=True)):
        inside = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        if len(inside):
            reach = max(mask.shape[axis] / 2 - inside[0], inside[-1] + 1 - mask.shape[axis] / 2)
            if reach > side * step / 2 + SLACK:
                need = int(np.ceil(2 * reach / step))
                raise ValueError(f"the frame would crop {name} along axis {axis}: {need} pixels are needed, not {side}")
