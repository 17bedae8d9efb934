"""Mapping between an image of any size and the model's fixed frame of pixels, in 2-D and 3-D.

Both have the same centre. Going to the frame, the image is averaged over each pixel of the frame. Going back, the
model's fields, which are smooth, are enlarged by cubic convolution (Keys, 1981).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcft.spatial.resize import shrink

ROUNDS = 2  # of back-projection; more cause ringing


@dataclass(frozen=True)
class Geometry:
    """Shapes of an image and of the model's frame, and their scale.

    Attributes:
        shape: Shape of the image, (*N).
        frame: Shape of the model's frame, (*S), with as many axes.
        steps: Size of a frame pixel along each axis, in image pixels.
    """

    shape: tuple[int, ...]
    frame: tuple[int, ...]
    steps: tuple[float, ...]

    @classmethod
    def of(cls, shape: Sequence[int], frame: Sequence[int]) -> "Geometry":
        """The geometry of an image that the frame covers exactly."""
        steps = tuple(n / s for n, s in zip(shape, frame, strict=True))
        return cls(tuple(shape), tuple(frame), steps)

    @property
    def same(self) -> bool:
        """Whether the image and the frame have the same grid."""
        return self.shape == self.frame and all(step == 1 for step in self.steps)

    def reduced(self, limit: int) -> "Geometry":
        """The geometry of the same image averaged to at most ``limit`` pixels per side."""
        share = min(1.0, limit / max(self.shape))
        small = tuple(max(1, round(n * share)) for n in self.shape)
        axes = zip(self.steps, small, self.shape, strict=True)
        return Geometry(small, self.frame, tuple(step * new / old for step, new, old in axes))

    def shrink(self, image: Tensor) -> Tensor:
        """Image (B, C, *N) -> frame (B, C, *S): the mean over each frame pixel, 0 outside the image."""
        if self.same:
            return image
        whole = [n // s for n, s in zip(self.shape, self.frame, strict=True)]
        if all(
            step == n and n * s == side
            for step, n, s, side in zip(self.steps, whole, self.frame, self.shape, strict=True)
        ):
            return shrink(image, self.frame)
        return _along_axes(image, self._means)

    def enlarge(self, field: Tensor, rows: slice = slice(None)) -> Tensor:
        """Frame (B, C, *S) -> image (B, C, *N), or only some rows of its first axis; 0 outside the frame."""
        if self.same:
            return field[:, :, rows]
        return _along_axes(field, [self._cubic[0][rows], *self._cubic[1:]])

    def restore(self, values: Tensor) -> Tensor:
        """As ``enlarge``, with back-projection so that ``shrink`` returns about ``values`` (Irani and Peleg, 1991)."""
        found = self.enlarge(values)
        if self.same:
            return found
        inside = self.shrink(torch.ones(1, 1, *self.shape, device=values.device))
        for _ in range(ROUNDS):
            found = found + self.enlarge(inside * (values - self.shrink(found)))
        return found

    @cached_property
    def _means(self) -> list[Tensor]:
        axes = zip(self.shape, self.frame, self.steps, strict=True)
        return [torch.from_numpy(box_weights(n, s, step)) for n, s, step in axes]

    @cached_property
    def _cubic(self) -> list[Tensor]:
        axes = zip(self.shape, self.frame, self.steps, strict=True)
        return [torch.from_numpy(cubic_weights(s, n, step)) for n, s, step in axes]


def box_weights(old: int, new: int, step: float) -> NDArray[np.float32]:
    """Weight of each old pixel in each new one, (new, old); a row sums to the fraction of the new pixel inside."""
    edges = (np.arange(new + 1) - new / 2) * step + old / 2  # in old pixels
    starts, ends = np.arange(old), np.arange(1, old + 1)
    overlap = np.minimum(edges[1:, None], ends) - np.maximum(edges[:-1, None], starts)
    return np.asarray(overlap.clip(0) / step, np.float32)


def cubic_weights(frame: int, image: int, step: float) -> NDArray[np.float32]:
    """Weight of each frame pixel in each image pixel, (image, frame).

    Cubic convolution between pixel centres, the edge value within half a pixel of the frame's border, 0 beyond it.
    Where the frame's pixels are smaller than the image's, their mean.
    """
    if step < 1:
        return box_weights(frame, image, 1 / step)
    place = (np.arange(image) + 0.5 - image / 2) / step + frame / 2  # in the frame's pixels
    centre = (place - 0.5).clip(0, frame - 1)
    first = np.floor(centre).astype(int)
    weights = np.zeros((image, frame), np.float32)
    for offset in (-1, 0, 1, 2):
        at = (first + offset).clip(0, frame - 1)
        np.add.at(weights, (np.arange(image), at), _keys(np.abs(first + offset - centre)))
    return np.asarray(weights * ((place > 0) & (place < frame))[:, None], np.float32)


def _keys(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _along_axes(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply each axis by its matrix, the last axis first, since the first matrix may have only a few rows."""
    for axis in reversed(range(len(matrices))):
        matrix = matrices[axis].to(values)
        values = torch.tensordot(values, matrix, ([2 + axis], [1])).movedim(-1, 2 + axis)
    return values.contiguous()
