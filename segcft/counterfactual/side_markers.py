"""Side markers and other burned-in letters: small bright shapes of sharp outline, on the film and not in the body."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, find_objects, label
from torch import Tensor

SMALLEST, LARGEST = 0.006, 0.08  # sides of a letter's box, as shares of the image's longest side
CONTRAST = 0.35  # of the image's range: how much darker what surrounds a letter is, at least
BRIGHT = 0.8  # of the image's range


def markers(image: Tensor) -> Tensor:
    """Where letters lie in films (B, C, H, W), (B, 1, H, W) bool; nothing in volumes."""
    found = torch.zeros_like(image[:, :1], dtype=torch.bool)
    if image.dim() == 4:
        for place, film in enumerate(image.mean(1).cpu().numpy()):
            found[place, 0] = torch.from_numpy(_letters(film)).to(image.device)
    return found


def _letters(film: NDArray[np.float32]) -> NDArray[np.bool_]:
    low, high = float(film.min()), float(film.max())
    bright, side = film >= low + BRIGHT * (high - low), max(film.shape)
    kept = np.zeros(film.shape, bool)
    labels, _ = label(bright, np.ones((3, 3)))
    for number, box in enumerate(find_objects(labels), start=1):
        sides = [part.stop - part.start for part in box]
        if not SMALLEST * side <= max(sides) <= LARGEST * side:
            continue
        around = tuple(slice(max(0, part.start - 4), part.stop + 4) for part in box)
        shape = labels[around] == number
        ring = binary_dilation(shape, iterations=4) & ~binary_dilation(shape, iterations=2)
        ring &= ~bright[around]
        if ring.any() and np.quantile(film[around][ring], 0.9) < high - CONTRAST * (high - low):
            kept[around] |= shape
    return kept
