"""Numbers that say whether a counterfactual is right: pure functions of images and measurements, a subject a number.

Axioms after Monteiro et al. (2023, arXiv:2303.01274); leakage and locality are what structure-specific means. Every
function keeps subjects apart, so that ``statistics`` can resample them.
"""

import torch
from torch import Tensor

from segcft.regions import blur, dilate


def percent(difference: Tensor, reference: Tensor) -> Tensor:
    """|difference| in percent of |reference|, (N,) each."""
    return 100 * difference.abs() / reference.abs().clamp(min=1e-12)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, *S) over the true positions of each subject, (B,); 0 where there are none."""
    flat, chosen = values.flatten(1), mask.flatten(1).float()
    return (flat * chosen).sum(1) / chosen.sum(1).clamp(min=1)


def change(image: Tensor, cf_image: Tensor) -> Tensor:
    """Minimality: mean |x* - x| over the whole image, (B, C, *S) -> (B,)."""
    return (cf_image - image).abs().flatten(1).mean(1)


def change_outside(image: Tensor, cf_image: Tensor, neighbourhood: Tensor) -> Tensor:
    """Locality: mean |x* - x| outside the neighbourhood (B, *S) of the structure, images (B, C, *S) -> (B,)."""
    return masked_mean((cf_image - image).abs().mean(1), ~neighbourhood)


def truth_errors(cf_image: Tensor, truth: Tensor, neighbourhood: Tensor) -> dict[str, Tensor]:
    """Distance to the true counterfactual, (B,) each: whole image, neighbourhood (B, *S), PSNR in dB, SSIM.

    Args:
        cf_image: Answers, (B, C, *S) in [-1, 1].
        truth: True counterfactuals, of the same shape.
        neighbourhood: Where the truth changed.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim  # lazily: slow to import

    error = cf_image - truth
    similarity = ssim(cf_image, truth, data_range=2.0, reduction="none")
    return {
        "mae": error.abs().flatten(1).mean(1),
        "mae_neighbourhood": masked_mean(error.abs().mean(1), neighbourhood),
        "psnr": 10 * torch.log10(4 / error.square().flatten(1).mean(1).clamp(min=1e-10)),
        "ssim": torch.as_tensor(similarity).reshape(len(cf_image), -1).mean(1),
    }


def mask_difference(mask: Tensor, other: Tensor) -> Tensor:
    """Positions that only one of two boolean masks (B, *S) holds, (B,)."""
    return (mask ^ other).flatten(1).float().sum(1)


def old_border(image: Tensor, mask: Tensor, cf_mask: Tensor, reach: int = 2) -> Tensor:
    """How sharp that part of a structure's former border is which the counterfactual's structure has left, (B,).

    The derivative of ``image`` along the inward normal of ``mask`` (the gradient of the mask, blurred), on the border
    minus beside it, outside ``cf_mask`` grown by ``reach``. Texture and ribs cross a border either way and average out,
    what brightens steadily is as steep beside the border; an edge remains. Of the factual image this is the edge that
    was there, of a counterfactual what is left of it: their ratio is 1 where the old outline still shows through as a
    veil or ghost, and 0 where it is gone.

    Args:
        image: (B, C, *S).
        mask: Structure in the factual image, (B, *S), bool.
        cf_mask: Structure in the counterfactual, (B, *S), bool.
        reach: Pixels around ``cf_mask`` that belong to its own border.

    Returns:
        In image units a pixel; NaN where the structure has left no border.
    """
    axes = tuple(range(1, mask.dim()))
    normal = torch.stack(torch.gradient(blur(mask, 7), dim=axes))  # (axes, B, *S), towards the inside
    length = normal.square().sum(0).sqrt()
    slope = (normal * torch.stack(torch.gradient(image.mean(1), dim=axes))).sum(0) / length.clamp(min=1e-6)

    def within(pixels: int) -> Tensor:
        return dilate(mask, pixels) & dilate(~mask, pixels)

    left = ~dilate(cf_mask, reach) & (length > 1e-3)
    border, beside = within(1) & left, within(4) & ~within(2) & left
    there = (border.flatten(1).sum(1) > 1) & (beside.flatten(1).sum(1) > 1)
    return torch.where(there, masked_mean(slope, border) - masked_mean(slope, beside), torch.nan)
