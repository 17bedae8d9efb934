"""Replies as pictures for a browser: PNG, and contours as lines."""

import io
from typing import Any

import numpy as np
import torch
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from segcft.app.opened_image import Subject
from segcft.inference.answer_file import plane
from segcft.plots.panels import LIMIT

LARGE = 448  # pixels: what is smaller is enlarged, smoothly
FINE = 192  # of contours
BRIGHTER, DARKER = (255, 122, 69), (64, 150, 255)  # colours of a change, which becomes opaque at LIMIT
UNSURE = (255, 214, 102)
Plane = NDArray[Any]  # (H, W)


def grey(subject: Subject, levels: Plane) -> bytes:
    """Grey levels of the subject's window, (H, W), as PNG."""
    low, high = subject.framing.window
    return _png(np.rint(255 * (_enlarged(levels) - low) / (high - low)).clip(0, 255).astype(np.uint8))


def small(levels: Plane) -> bytes:
    """Grey levels from 0 to 255, (H, W), as PNG of at most 96 pixels a side."""
    image = Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))
    image.thumbnail((96, 96))
    return _png(np.asarray(image))


def change(subject: Subject, levels: Plane) -> bytes:
    """A signed change in grey levels, (H, W), as PNG that is clear where nothing changes."""
    low, high = subject.framing.window
    share = (_enlarged(levels) / (LIMIT * (high - low))).clip(-1, 1)
    return _png(_tinted(np.abs(share), np.where(share[..., None] > 0, BRIGHTER, DARKER)))


def deviation(subject: Subject, values: Plane, limit: float) -> bytes:
    """A deviation in image units, (H, W), as PNG; opaque at ``limit``."""
    return _png(_tinted((_enlarged(values) / max(limit, 1e-6)).clip(0, 1), UNSURE))


def contours(subject: Subject, masks: Tensor, index: int | None) -> dict[str, list[list[list[float]]]]:
    """Structure -> outlines where its mask (1, K, *frame) is 1/2, as lines of (x, y) in shares of width and height."""
    found = {}
    for name, mask in zip(subject.opened.structures, torch.split(masks, 1, 1), strict=False):
        flat = plane(subject.enlarge(mask), index)
        fine = _enlarged(flat, FINE)
        factor = fine.shape[1] / flat.shape[1]
        smooth = gaussian_filter(fine, 0.6 * factor) if factor > 1 else fine  # no stairs of the model's pixels
        lines = contour_generator(z=smooth).lines(0.5)
        scale = (factor * flat.shape[1], factor * flat.shape[0])
        found[name] = [np.round((np.asarray(line) + 0.5) / scale, 4).tolist() for line in lines if len(line) > 3]
    return found


def _enlarged(values: Plane, side: int = LARGE) -> Plane:
    """At least about ``side`` pixels a side, by bicubic interpolation."""
    factor = max(1, round(side / max(values.shape)))
    flat = np.ascontiguousarray(values, np.float32)
    if factor == 1:
        return flat
    high, wide = flat.shape
    return np.asarray(Image.fromarray(flat).resize((wide * factor, high * factor), Image.Resampling.BICUBIC))


def _tinted(opacity: Plane, colours: Any) -> Plane:
    pixels = np.empty((*opacity.shape, 4), np.uint8)
    pixels[..., :3] = colours
    pixels[..., 3] = np.rint(255 * opacity)
    return pixels


def _png(pixels: Plane) -> bytes:
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, format="PNG", compress_level=1)
    return kept.getvalue()
