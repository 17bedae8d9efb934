"""Morpho-MNIST (Castro et al., 2019, arXiv:1809.10780): handwritten digits of known thickness and intensity.

A folder of IDX files with a table, plain or ``.gz``, as published with deep structural causal models (Pawlowski et al.,
2020): ``{train,t10k}-images-idx3-ubyte``, ``-labels-idx1-ubyte`` and ``-morpho.csv``.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from data_modules.common.data_module import Batch, DataModule, ImageDataset
from data_modules.common.splits import Split
from data_modules.common.transforms import to_signed
from segcft.io.csv_tables import find_table, header, numbers, read_table, refuse, refuse_twice
from segcft.variables.variables import Variable

DIGITS = tuple("0123456789")
UNSIGNED_BYTES = 8  # type code of the IDX format
MOST_BYTES = 2**28  # of pixels; a file that holds more is damaged or malicious


class MorphoMNIST(DataModule):
    """Data module of Morpho-MNIST: digits with thickness, intensity and other columns of the table; no structures.

    If the ``train`` files exist they are the training split, and the ``t10k`` subjects are divided randomly into
    validation and test. Otherwise all ``t10k`` subjects but ``held_out`` are the training split.

    Args:
        root: Folder of the files.
        variables: Parents of the image: ``digit``, and columns of the table; thickness (pixels), intensity (levels) and
            digit by default.
        frame: Sides of the square that the images are centred in, pixels; the margin is black.
        augment: Place training images at random positions in the square instead of the centre.
        held_out: Number of subjects for validation and test, half each, if there are no ``train`` files.
        seed: Seed of the split and of the positions.
        batch_size: Images per step and process.
        num_workers: Loader processes.

    Raises:
        ValueError: If a file is missing or invalid, the images are larger than the frame, or
            ``held_out`` leaves a split empty.
    """

    def __init__(
        self,
        root: str,
        variables: dict[str, Variable] | None = None,
        frame: int = 32,
        augment: bool = False,
        held_out: int = 2000,
        seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(all_variables() if variables is None else variables, batch_size, num_workers)
        self.root, self.frame, self.augment = Path(root).expanduser(), (frame, frame), augment
        self.held_out, self.seed = held_out, seed
        self.structures, self.spacing = [], [1.0, 1.0]
        self._files: dict[str, Digits] = {}

    def make_dataset(self, split: Split) -> "MorphoImages":
        """Read the files of one split, once."""
        official = any(self.root.glob("train-images-idx3-ubyte*"))
        name = "train" if official and split == "train" else "t10k"
        if name not in self._files:
            self._files[name] = read_digits(self.root, name)
        digits = self._files[name]
        if name != "train":
            digits = digits.take(self._rows(len(digits.images), split, 0 if official else None))
        return MorphoImages(digits, self.frame[0], self.augment and split == "train", self.seed)

    def _rows(self, count: int, split: Split, training: int | None) -> NDArray[np.int64]:
        """Indices of a split among ``count`` subjects; ``training`` (or all but ``held_out``) are for training."""
        if training is None and not 2 <= self.held_out < count:
            raise ValueError(f"held_out = {self.held_out} of {count} subjects leaves a split empty")
        first = count - self.held_out if training is None else training
        middle = first + (count - first) // 2
        shuffled = np.random.default_rng(self.seed).permutation(count)
        ends = {"train": (0, first), "val": (first, middle), "test": (middle, count)}
        return np.sort(shuffled[slice(*ends[split])])


def all_variables() -> dict[str, Variable]:
    """Thickness and intensity, both visible in an image, and the digit."""
    return {
        "thickness": Variable(unit="pixels", visible=True),
        "intensity": Variable(unit="levels", visible=True),
        "digit": Variable(kind="categorical", categories=DIGITS),
    }


class Digits(NamedTuple):
    """Images with their attributes.

    Attributes:
        images: (N, H, W).
        attributes: Name -> (N,) float32.
    """

    images: NDArray[np.uint8]
    attributes: dict[str, NDArray[np.float32]]

    def take(self, rows: NDArray[np.int64]) -> "Digits":
        """Select subjects."""
        return Digits(self.images[rows], {name: column[rows] for name, column in self.attributes.items()})


class MorphoImages(ImageDataset):
    """Images of one split, in memory.

    Args:
        digits: The split.
        frame: Side of the square they are placed in, pixels.
        augment: Place them at random positions.
        seed: Seed of the positions, together with the loader process and the order of reading.

    Raises:
        ValueError: If the images are larger than the frame.
    """

    def __init__(self, digits: Digits, frame: int, augment: bool, seed: int) -> None:
        height, width = digits.images.shape[1:]
        if max(height, width) > frame:
            raise ValueError(f"frame = {frame} is smaller than the images of {height} x {width}")
        self.images, self.frame, self.augment, self.seed, self._reads = digits.images, frame, augment, seed, 0
        self.attributes = {name: torch.from_numpy(column) for name, column in digits.attributes.items()}

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Tensor) -> Batch:
        """Subjects ``indices`` (B,) as one batch, see ``ImageDataset.read``; masks are (B, 0, *S)."""
        return self._read(indices, self.augment)

    def read_unchanged(self, indices: Tensor) -> Batch:
        """As ``read``, with images in the centre of the frame."""
        return self._read(indices, False)

    def _read(self, indices: Tensor, anywhere: bool) -> Batch:
        images = self.images[indices.numpy()]
        room = self.frame - np.array(images.shape[1:])
        places = np.broadcast_to(room // 2, (len(images), 2))
        if anywhere:
            worker = get_worker_info()
            self._reads += 1
            stream = np.random.default_rng([self.seed, worker.id if worker else 0, self._reads])
            places = stream.integers(room + 1, size=(len(images), 2))
        framed = np.zeros((len(images), 1, self.frame, self.frame), np.uint8)
        for square, image, (top, left) in zip(framed[:, 0], images, places, strict=True):
            square[top : top + len(image), left : left + image.shape[1]] = image
        values = {name: column[indices] for name, column in self.attributes.items()}
        image = to_signed(torch.from_numpy(framed), (0.0, 255.0))
        return {"image": image, "mask": image.new_zeros(len(image), 0, *image.shape[2:]), "index": indices, **values}


def read_digits(root: Path, name: str) -> Digits:
    """Images, labels and table ``name`` (``train`` or ``t10k``) of a folder.

    Raises:
        ValueError: Naming the file, and row, field and value, if one is missing, damaged, or does not fit the others.
    """
    files = [find_table(root, f"{name}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    images, labels = read_idx(files[0], 3), read_idx(files[1], 1)
    path = find_table(root, f"{name}-morpho.csv")
    fields = [field for field in header(path) if field not in ("index", "digit")]
    table = read_table(path, ["index", *fields])
    for other, count in ((files[1], len(labels)), (path, len(table))):
        if count != len(images):
            raise ValueError(f"{other} holds {count} subjects, {files[0]} {len(images)}")
    wrong = np.flatnonzero(labels >= len(DIGITS))
    if len(wrong):
        raise ValueError(f"{files[1]}: label {labels[wrong[0]]} of image {wrong[0]} is no digit")
    index = numbers(table, "index", path)
    refuse(table, "index", path, ~np.isin(index, np.arange(len(images))), f"images are 0 to {len(images) - 1}")
    refuse_twice(table, "index", path, "image")
    order = np.argsort(index)
    columns = {field: numbers(table, field, path)[order].astype(np.float32) for field in fields}
    return Digits(images, {**columns, "digit": labels.astype(np.float32)})


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """An array of unsigned bytes in the IDX format, plain or ``.gz``.

    Args:
        path: The file: two zero bytes, a type code, the number of axes, four bytes a length (big-endian), the values.
        axes: How many axes there should be.

    Raises:
        ValueError: If the file cannot be read, is of another type, or ends early or late.
    """
    start = 4 + 4 * axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(start + MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
    if len(content) > start + MOST_BYTES:
        raise ValueError(f"{path}: it holds more than {MOST_BYTES} bytes")
    if content[:4] != bytes([0, 0, UNSIGNED_BYTES, axes]) or len(content) < start:
        raise ValueError(f"{path}: no IDX file of unsigned bytes along {axes} axes, it starts with {content[:4]!r}")
    shape = tuple(int.from_bytes(content[at : at + 4]) for at in range(4, start, 4))
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path}: {len(content) - start} values, {math.prod(shape)} are needed for {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
