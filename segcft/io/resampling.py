"""From the pixels of a file to a frame: pad to a square and resize, or resample to a spacing; no torch here."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from segcft.spatial.geometry import box_weights

cv2.setNumThreads(0)  # OpenCV's own threads hang in forked loader workers; parallelism lies in ours

Pixels = NDArray[np.uint8]


def pad_square(image: Pixels) -> Pixels:
    """Centre (H, W) in a black square whose side is the longer one, (S, S)."""
    height, width = image.shape
    side = max(height, width)
    square = np.zeros((side, side), image.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def resize(image: Pixels, size: int) -> Pixels:
    """A square (S, S) -> (size, size): the mean over each new pixel when it shrinks, linear when it grows."""
    method = cv2.INTER_AREA if size < len(image) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=method), np.uint8)


def scaled_frame(frame: Sequence[int], size: int) -> tuple[int, ...]:
    """The same frame with ``size`` pixels along its longest side.

    Raises:
        ValueError: If ``size`` is not positive.

    >>> scaled_frame((96, 48), 512)
    (512, 256)
    """
    if size < 1:
        raise ValueError(f"a size is a number of pixels, got {size}")
    return tuple(max(1, round(side * size / max(frame))) for side in frame)


def field_of_view(shape: NDArray[np.int64], size: int) -> Pixels:
    """Where an image of shape (height, width) lies once padded and resized, (size, size) in {0, 1}."""
    height, width = (size * shape / shape.max()).tolist()
    field = np.zeros((size, size), np.uint8)
    rows, columns = (slice(round((size - side) / 2), round((size + side) / 2)) for side in (height, width))
    field[rows, columns] = 1
    return field


def resample(image: NDArray[np.generic], frame: Sequence[int], steps: Sequence[float]) -> NDArray[np.float32]:
    """Image or volume (*S) -> (*frame) about the same centre: the mean over each new pixel, 0 beyond the image.

    Args:
        image: (*S).
        frame: New shape.
        steps: Length of a new pixel along each axis, in old pixels.
    """
    result = image.astype(np.float32)
    for axis, (size, step) in enumerate(zip(frame, steps, strict=True)):
        weights = box_weights(image.shape[axis], size, step)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    return np.ascontiguousarray(result)
