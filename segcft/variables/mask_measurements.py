"""From outlines to variables: what data sets, judges and evaluators measure alike."""

import torch
from torch import Tensor

from segcft.variables.measurements import MEASUREMENTS
from segcft.variables.regions import Region, weights
from segcft.variables.variables import DataDescription


def measure_masks(
    masks: Tensor, image: Tensor, description: DataDescription, factual_masks: Tensor | None = None
) -> dict[str, Tensor]:
    """Every structural variable in real units, (B,) each, differentiable in masks and image.

    Args:
        masks: Hard or soft, (B, K, *S).
        image: What they are the masks of, (B, C, *S).
        description: Variables, structures and spacing.
        factual_masks: Anatomy that regions are laid into, (B, K, *S); the masks themselves unless given. Regions carry
            no gradient and so do not move with a counterfactual.
    """
    anatomy = masks if factual_masks is None else factual_masks
    found = {}
    for name in description.parents.structural:
        variable, spacing = description.parents[name], description.spacing
        measure, mask = MEASUREMENTS[variable.measure].function, _union(masks, variable.structure, description)
        if variable.region is not None:
            mask = mask * share(variable.region, anatomy, variable.structure, description)
        found[name] = measure(mask, image, spacing)[:, 0]
        if variable.over:
            whole = measure(_union(masks, variable.over, description), image, spacing)[:, 0]
            found[name] = found[name] / torch.where(whole.abs() < 1e-6, 1e-6, whole)
    return found


def located(
    masks: Tensor, structure: str, region: Region | None, anatomy: Tensor, description: DataDescription
) -> Tensor:
    """Where structures lie, or that part of them which a region holds, (B, *S), bool.

    Args:
        masks: Hard, (B, K, *S).
        structure: One, or several joined by +.
        region: That part alone.
        anatomy: Factual masks that the region is laid into, (B, K, *S).
        description: Order of the structures and spacing.
    """
    there = masks[:, description.channels_of(structure)].any(1)
    if region is None:
        return there
    return there & (share(region, anatomy, structure, description)[:, 0] > 0)


def share(region: Region, anatomy: Tensor, structure: str, description: DataDescription) -> Tensor:
    """Weight of every pixel in the region of a structure, (B, 1, *S), without gradient; masks are (B, K, *S)."""
    divided = _union(anatomy.detach(), region.within or structure, description)
    band = weights(region, divided[:, 0], description.spacing)[:, None]
    return band * (divided > 0.5) if region.within else band


def _union(masks: Tensor, structure: str, description: DataDescription) -> Tensor:
    """Probability of any of the structures that ``structure`` joins by +, (B, 1, *S)."""
    channels = description.channels_of(structure)
    if len(channels) == 1:
        return masks[:, channels].float()
    return 1 - (1 - masks[:, channels].float()).prod(1, keepdim=True)
