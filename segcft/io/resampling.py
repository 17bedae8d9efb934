"""Resampling a file's pixels to the model's frame: pad to a square and resize, or resample to a spacing (NumPy)."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from segcft.spatial.geometry import box_weights

cv2.setNumThreads(0)  # OpenCV's threads hang in forked workers; the loader's workers are parallel

Pixels = NDArray[np.uint8]


def pad_square(image: Pixels) -> Pixels:
    """Pad (H, W) with black to a centred square (S, S), S the longer side."""
    height, width = image.shape
    side = max(height, width)
    square = np.zeros((side, side), image.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def resize(image: Pixels, size: int) -> Pixels:
    """Resize a square (S, S) to (size, size): area averaging when shrinking, linear interpolation when enlarging."""
    method = cv2.INTER_AREA if size < len(image) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=method), np.uint8)


def scaled_frame(frame: Sequence[int], size: int) -> tuple[int, ...]:
    """Scale a frame so that its longest side has ``size`` pixels.

    Raises:
        ValueError: If ``size`` is not positive.

    >>> scaled_frame((96, 48), 512)
    (512, 256)
    """
    if size < 1:
        raise ValueError(f"size must be a positive number of pixels, got {size}")
    return tuple(max(1, round(side * size / max(frame))) for side in frame)


def field_of_view(shape: NDArray[np.int64], size: int) -> Pixels:
    """Mask of the pixels that show the image, not padding, after padding and resizing (height, width): (size, size)."""
    height, width = (size * shape / shape.max()).tolist()
    field = np.zeros((size, size), np.uint8)
    rows, columns = (slice(round((size - side) / 2), round((size + side) / 2)) for side in (height, width))
    field[rows, columns] = 1
    return field


def resample(image: NDArray[np.generic], frame: Sequence[int], steps: Sequence[float]) -> NDArray[np.float32]:
    """Resample an image or volume (*S) to (*frame) with the same centre: area averages, 0 outside the image.

    Args:
        image: (*S).
        frame: New shape.
        steps: Size of a new pixel along each axis, in old pixels.
    """
    result = image.astype(np.float32)
    for axis, (size, step) in enumerate(zip(frame, steps, strict=True)):
        weights = box_weights(image.shape[axis], size, step)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    return np.ascontiguousarray(result)
