"""From the pixels of a file to a frame: pad to a square and resize, or resample to a spacing; no torch here."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

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


def resize_mask(mask: Pixels, size: int) -> Pixels:
    """A square mask (S, S) in {0, 1} -> (size, size) in {0, 1}: inside where at least half of the pixel was."""
    return (resize(mask * np.uint8(255), size) >= 128).astype(np.uint8)


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


def box_weights(old: int, new: int, step: float) -> NDArray[np.float32]:
    """Share of each old pixel in each new one, (new, old); a row sums to how much of the new pixel lies inside."""
    edges = (np.arange(new + 1) - new / 2) * step + old / 2  # in old pixels
    starts, ends = np.arange(old), np.arange(1, old + 1)
    overlap = np.minimum(edges[1:, None], ends) - np.maximum(edges[:-1, None], starts)
    return np.asarray(overlap.clip(0) / step, np.float32)


def spread(change: NDArray[np.float32], shape: Sequence[int], steps: Sequence[float]) -> NDArray[np.float32]:
    """A change in the frame back to the image that ``resample`` drew there, linearly; 0 beyond the frame.

    Args:
        change: (*frame).
        shape: Of the image.
        steps: Length of the frame's pixel along each axis, in the image's pixels.

    Returns:
        (*shape).
    """
    for axis, (size, step) in enumerate(zip(shape, steps, strict=True)):
        weights = tent_weights(change.shape[axis], size, step)
        change = np.moveaxis(np.tensordot(weights, change, (1, axis)), 0, axis)
    return np.ascontiguousarray(change)


def tent_weights(frame: int, image: int, step: float) -> NDArray[np.float32]:
    """Share of each of the frame's pixels in each of the image's, (image, frame).

    Linear between centres, constant within half a pixel of the frame's border, 0 beyond it; where the frame's pixels
    are the smaller ones, their mean.
    """
    if step < 1:
        return box_weights(frame, image, 1 / step)
    place = (np.arange(image) + 0.5 - image / 2) / step + frame / 2  # in the frame's pixels
    centre = (place - 0.5).clip(0, frame - 1)[:, None]
    weights = (1 - np.abs(centre - np.arange(frame))).clip(0)
    return np.asarray(weights * ((place > 0) & (place < frame))[:, None], np.float32)
