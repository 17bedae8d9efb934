"""Coronary CT angiography: vessels straightened along centrelines, from a manifest of volumes and label maps."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from data_modules.common.sources import Sample, Source
from data_modules.coronary.curved_planar_reformation import Centreline, Frames, longitudinal, straighten
from data_modules.coronary.files import WorldFrame, read_centreline, read_header, read_volume
from data_modules.coronary.manifests import read_manifest
from data_modules.coronary.vessel_regions import measured
from segcft.io.picture import check_alike, corners_of

log = logging.getLogger(__name__)

LABELS = {"lumen": [1], "calcified_plaque": [2], "noncalcified_plaque": [3]}
CALCIUM = "calcified_plaque"
WIDENS = 1.2  # times wider in its last third than in its first: a vessel that is followed backwards


class CoronaryCTA(Source):
    """Vessels from coronary CT angiography, as longitudinal sections (2-D) or straightened volumes (3-D).

    See ``coronary_manifests`` for the manifest, ``coronary_files`` for the files. The first ``length`` mm of every
    vessel are shown; shorter vessels are left out, and counted in the log. Offers ``<structure>_area`` (mm^2) or
    ``..._volume`` (mm^3) of what is shown, the same of its thirds (``proximal_<structure>_area``, ``mid_...``,
    ``distal_...``), ``angle`` (2-D), and the manifest's ``age``, ``sex`` and ``attributes``. Centrelines run from
    proximal to distal; a vessel that widens along its centreline is reported in the log.

    Args:
        manifest: CSV with one row per vessel.
        labels: Structure -> its values in the label maps; the order is that of the mask channels.
        frame: Rows along the vessel, then pixels across it along one axis (2-D) or two (3-D).
        length: Length of vessel shown, mm.
        width: Width of the field of view across the vessel, mm.
        angles: Rotation of the 2-D sections about the vessel, degrees; each is a separate subject of the same patient.
        window: The HU that are mapped to -1 and 1.
        regions: Whether to measure the thirds.
        calcium_threshold: For label maps of the artery only: voxels of at least this many HU within ``calcium_margin``
            of the other structures become ``calcified_plaque`` and are removed from those. Off by default. It must be
            above the HU of the contrast-filled lumen; calcium below it (partial volume) is missed.
        calcium_margin: Margin of that search, mm.
        centerline_frame: World frame of the centrelines' coordinates, RAS or LPS.
        smoothing: Root-mean-square distance, mm, of a smoothed centreline from its points.
        attributes: Further numeric columns of the manifest.
        seed: Seed of the random split of patients without one.
        allow_outside: Accept files outside the manifest's folder.

    Raises:
        ValueError: If an argument is invalid.
    """

    name = "coronary_cta"
    dtype = "int16"

    def __init__(
        self,
        manifest: str,
        labels: dict[str, list[int]] | None = None,
        frame: Sequence[int] = (96, 48),
        length: float = 48.0,
        width: float = 12.0,
        angles: Sequence[float] = (0.0, 90.0),
        window: tuple[float, float] = (-200.0, 1000.0),
        regions: bool = True,
        calcium_threshold: float | None = None,
        calcium_margin: float = 1.0,
        centerline_frame: WorldFrame = "RAS",
        smoothing: float = 0.0,
        attributes: Sequence[str] = (),
        seed: int = 0,
        allow_outside: bool = False,
    ) -> None:
        self.manifest = Path(manifest).expanduser()
        self.labels = dict(LABELS if labels is None else labels)
        if calcium_threshold is not None:
            self.labels = {**self.labels, CALCIUM: []}
        self.structures, self.frame, self.window = list(self.labels), tuple(frame), (window[0], window[1])
        self.length, self.width, self.angles, self.regions = length, width, list(angles), regions
        self.calcium_threshold, self.calcium_margin = calcium_threshold, calcium_margin
        self.centerline_frame, self.smoothing, self.attributes = centerline_frame, smoothing, list(attributes)
        self.seed, self.allow_outside = seed, allow_outside
        self._check()
        self.spacing = [length / self.frame[0], *(width / side for side in self.frame[1:])]
        self.unit = "mm^2" if len(self.frame) == 2 else "mm^3"

    def options(self) -> dict[str, Any]:
        """All arguments except the manifest's path and ``allow_outside``."""
        names = (
            "labels", "length", "width", "angles", "regions", "calcium_threshold", "calcium_margin", "centerline_frame",
            "smoothing", "attributes", "seed",
        )  # fmt: skip
        return {"frame": list(self.frame), "window": list(self.window), **{name: getattr(self, name) for name in names}}

    def files(self) -> list[Path]:
        """The manifest and every centreline."""
        return [self.manifest, *map(Path, sorted(set(self._manifest()["centerline"])))]

    def table(self) -> pd.DataFrame:
        """One row per subject, see ``Source``; reads headers and centrelines, but no voxels.

        Raises:
            ValueError: Naming file, row, field and value, for an invalid cell of the manifest, a missing or unreadable
                file, a label map on another grid than its image, or an invalid centreline.
        """
        table = self._manifest()
        checked: set[tuple[str, str]] = set()
        lengths = []
        for record in table.to_dict("records"):
            row = {str(name): cell for name, cell in record.items()}
            try:
                if (row["image"], row["label"]) not in checked:
                    _check_pair(Path(row["image"]), Path(row["label"]))
                    checked.add((row["image"], row["label"]))
                lengths.append(self._curve(row).length)
            except ValueError as error:
                raise ValueError(f"{row['origin']}: {error}") from error
        long = np.array(lengths) >= self.length
        log.info("%s: %d of %d vessels are at least %g mm long", self.manifest, long.sum(), len(long), self.length)
        if not long.any():
            raise ValueError(
                f"{self.manifest}: no vessel is at least {self.length:g} mm long; the longest: {max(lengths):.1f} mm"
            )
        return self._with_angles(table[long]).reset_index(drop=True)

    def read(self, row: Mapping[str, Any]) -> Sample:
        """One subject: image (1, *S) int16 HU, masks (K, *S), its areas or volumes.

        Raises:
            ValueError: Naming the vessel's row and file, for instance if a centreline leaves the volume or follows no
                structure.
        """
        try:
            return self._read(row)
        except ValueError as error:
            raise ValueError(f"{row['origin']}: {error}") from error

    def _read(self, row: Mapping[str, Any]) -> Sample:
        _check_pair(Path(row["image"]), Path(row["label"]))
        places = (np.arange(self.frame[0]) + 0.5) * self.spacing[0]
        frames = Frames.along(self._curve(row), places)
        hu, values = (self._reformat(Path(row[name]), frames, row, name == "label") for name in ("image", "label"))
        mask = self._masks(hu, values)
        if not mask.any():
            kinds = f"found the values {np.unique(values).tolist()}, labels are {self.labels}"
            raise ValueError(
                f"{row['centerline']}: no structure along this centreline ({kinds}); are its coordinates "
                f"{self.centerline_frame}?"
            )
        first, last = _end_widths(mask, self.spacing)
        if last > WIDENS * first:
            _warn_widening(row["centerline"])
        image = hu.round().clip(-32768, 32767).astype(np.int16)[None]
        return Sample(image, mask, measured(mask, self.structures, self.spacing, self.regions))

    def _reformat(self, path: Path, frames: Frames, row: Mapping[str, Any], labels: bool) -> NDArray[Any]:
        volume = read_volume(path)
        if len(self.frame) == 2:
            angle, side, pixel = float(row["angle"]), self.frame[1], self.spacing[1]
            return longitudinal(volume.data, volume.affine, frames, angle, side, pixel, labels)
        sides, pixels = (self.frame[1], self.frame[2]), (self.spacing[1], self.spacing[2])
        return straighten(volume.data, volume.affine, frames, sides, pixels, labels)

    def _masks(self, hu: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
        """Masks of a label map, (K, *S), with calcium found by its attenuation if a threshold is given."""
        masks = {name: np.isin(values, wanted) for name, wanted in self.labels.items()}
        if self.calcium_threshold is not None:
            artery = np.any(list(masks.values()), axis=0)
            near = distance_transform_edt(~artery, sampling=self.spacing) <= self.calcium_margin
            calcium = (hu >= self.calcium_threshold) & near & artery.any()
            masks = {name: calcium if name == CALCIUM else mask & ~calcium for name, mask in masks.items()}
        return np.stack(list(masks.values()))

    def _curve(self, row: Mapping[str, Any]) -> Centreline:
        path = Path(row["centerline"])
        points = read_centreline(path, self.centerline_frame)
        try:
            return Centreline(points, self.smoothing)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _manifest(self) -> pd.DataFrame:
        return read_manifest(self.manifest, self.attributes, self.seed, self.allow_outside)

    def _with_angles(self, table: pd.DataFrame) -> pd.DataFrame:
        """Repeat each vessel for every angle (2-D)."""
        if len(self.frame) == 3:
            return table
        table = table.loc[table.index.repeat(len(self.angles))].copy()
        table["angle"] = np.tile(np.array(self.angles, np.float64), len(table) // len(self.angles))
        table["id"] = table["id"] + "_" + table["angle"].map("{:g}".format)
        return table

    def _check(self) -> None:
        if len(self.frame) not in (2, 3) or min(self.frame) < 1:
            raise ValueError(f"a frame has two or three sides, got {self.frame}")
        if self.length <= 0 or self.width <= 0 or self.calcium_margin < 0:
            raise ValueError(f"length {self.length:g}, width {self.width:g}, calcium_margin {self.calcium_margin:g} mm")
        if not self.window[0] < self.window[1]:
            raise ValueError(f"window must be [low, high] with low < high, got {self.window}")
        if len(self.frame) == 2 and (not self.angles or len(set(self.angles)) < len(self.angles)):
            raise ValueError(f"angles must all be different, got {self.angles}")
        told = CALCIUM if self.calcium_threshold is not None else ""
        empty = [name for name, values in self.labels.items() if not values and name != told]
        if empty or not set(self.labels) - {told}:
            raise ValueError(f"every structure needs a value in the label maps, got {self.labels}")


def _check_pair(image: Path, label: Path) -> None:
    """Check that a label map has the grid of its image."""
    (shape, affine), (other, elsewhere) = read_header(image), read_header(label)
    if shape != other:
        raise ValueError(f"{label}: its shape {other} is not the image's {shape}")
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    try:
        check_alike(corners_of(elsewhere, shape), corners_of(affine, shape), float(sides.min()))
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


@cache
def _warn_widening(centreline: str) -> None:
    log.warning("%s: the vessel widens by more than a fifth along it: does it run from proximal to distal?", centreline)


def _end_widths(mask: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[float, float]:
    """Median width of a vessel (K, rows, *across) over its first and its last third, mm."""
    across = mask.any(0).reshape(mask.shape[1], -1).sum(1) * np.prod(spacing[1:])
    widths = np.array_split(across ** (1 / (mask.ndim - 2)), 3)
    return float(np.median(widths[0])), float(np.median(widths[-1]))
