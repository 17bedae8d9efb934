"""Numbers that say whether a counterfactual is right: pure functions of images and measurements.

Axioms after Monteiro et al. (2023, arXiv:2303.01274); leakage and locality are what structure-specific means.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Effectiveness(NamedTuple):
    """Distance between what was asked for and what an evaluator measures.

    Attributes:
        mape: Mean absolute error in percent of the target.
        mae: Mean absolute error in the variable's unit.
        slope: Achieved over requested change, by least squares; 1 is perfect, 0 is no change.
    """

    mape: float
    mae: float
    slope: float


def effectiveness(measured: Tensor, target: Tensor, measured_before: Tensor, before: Tensor) -> Effectiveness:
    """How well do(variable = target) worked, all (N,) in real units.

    Args:
        measured: Evaluator on the counterfactual images.
        target: What was asked for.
        measured_before: Evaluator on the factual images.
        before: The factual value.
    """
    error, requested = (measured - target).abs(), target - before
    achieved = measured - measured_before
    slope = (achieved * requested).sum() / requested.square().sum().clamp(min=1e-12)
    return Effectiveness(float(100 * (error / target.abs().clamp(min=1e-12)).mean()), float(error.mean()), float(slope))


def leakage(measured: Tensor, measured_before: Tensor) -> float:
    """Mean absolute change, in percent, of a structure that was not intervened on, (N,) each."""
    return float(100 * ((measured - measured_before).abs() / measured_before.abs().clamp(min=1e-12)).mean())


def dilate(mask: Tensor, pixels: int) -> Tensor:
    """Grow a boolean mask (B, *S) by ``pixels`` along every axis."""
    pool = {2: F.max_pool2d, 3: F.max_pool3d}[mask.dim() - 1]
    return pool(mask[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, *S) over the true positions of each subject, (B,); 0 where there are none."""
    flat, chosen = values.flatten(1), mask.flatten(1).float()
    return (flat * chosen).sum(1) / chosen.sum(1).clamp(min=1)


def change_outside(image: Tensor, cf_image: Tensor, neighbourhood: Tensor) -> float:
    """Locality: mean |x* - x| outside the neighbourhood (B, *S) of the structure, images (B, C, *S)."""
    return float(masked_mean((cf_image - image).abs().mean(1), ~neighbourhood).mean())


def truth_errors(cf_image: Tensor, truth: Tensor, neighbourhood: Tensor) -> dict[str, float]:
    """Distance to the true counterfactual: whole image, neighbourhood, PSNR in dB, SSIM; images in [-1, 1]."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim  # lazily: slow to import

    error = cf_image - truth
    psnr = 10 * torch.log10(4 / error.square().flatten(1).mean(1).clamp(min=1e-10))
    return {
        "mae": float(error.abs().mean()),
        "mae_neighbourhood": float(masked_mean(error.abs().mean(1), neighbourhood).mean()),
        "psnr": float(psnr.mean()),
        "ssim": float(torch.as_tensor(ssim(cf_image, truth, data_range=2.0))),
    }
