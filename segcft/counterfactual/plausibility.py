"""Does an image look like one that the model knows? What is measured in a foreign picture means nothing.

Checked are contrast, correlation of neighbouring pixels, and the segmentor's outlines: whether each structure is there,
and in one piece.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 0.02  # deviation in image units of [-1, 1]: films have .3 and more
ALIKE = 0.5  # correlation of neighbouring pixels: films have .9 and more, noise has none
PIECES = 8  # looked at: a structure in more is in pieces
WHOLE = 0.85  # share of a structure that its largest piece holds
POOL = {2: F.max_pool2d, 3: F.max_pool3d}


@torch.no_grad()
def doubts(image: Tensor, structures: Sequence[str], masks: Tensor) -> list[str]:
    """A sentence for everything that is unlike an image of the training, of the first image.

    Args:
        image: As the model sees it, (B, C, *S).
        structures: Names of K structures.
        masks: The segmentor's probabilities, (B, K, *S).
    """
    found = _of_image(image[:1].float())
    for name, mask in zip(structures, masks[0] > 0.5, strict=True):
        if not mask.any():
            found.append(f"{name} is not found in the image")
        elif (share := largest_piece(mask)) < WHOLE:
            found.append(f"{name} is outlined in several pieces, the largest holds {100 * share:.0f} % of it")
    return found


def largest_piece(mask: Tensor) -> float:
    """Share of a mask (*S), bool, that its largest connected piece holds; pieces touch at sides and corners.

    Of a mask in more than ``PIECES`` pieces, the largest of that many.
    """
    left, most = mask.clone(), 0
    for _ in range(PIECES):
        if int(left.sum()) <= most:
            break
        piece = _grown(left)
        most = max(most, int(piece.sum()))
        left &= ~piece
    return most / max(1, int(mask.sum()))


def _grown(mask: Tensor) -> Tensor:
    """The connected piece of the first pixel of a mask (*S)."""
    pool, inside = POOL[mask.dim()], mask[None, None].float()
    piece = torch.zeros_like(inside)
    piece.view(-1)[int(mask.flatten().int().argmax())] = 1
    while True:
        grown = pool(piece, 3, 1, 1) * inside
        if torch.equal(grown, piece):
            return piece[0, 0] > 0
        piece = grown


def _of_image(image: Tensor) -> list[str]:
    deviation = float(image.std())
    if deviation < FLAT:
        return ["the image is nearly constant: window, file or frame may be wrong"]
    likeness = min(neighbours(image, axis) for axis in range(2, image.dim()))
    if likeness < ALIKE:
        return [f"neighbouring pixels hardly resemble each other (correlation {likeness:.2f}): is this such an image?"]
    return []


def neighbours(image: Tensor, axis: int) -> float:
    """Correlation of pixels and their neighbours along an axis."""
    size = image.shape[axis]
    one, other = (image.narrow(axis, start, size - 1).flatten() for start in (0, 1))
    pairs = torch.stack([one, other])
    return float(torch.corrcoef(pairs)[0, 1].nan_to_num(1.0))
