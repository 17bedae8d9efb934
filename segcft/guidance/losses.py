"""What fine-tuning minimises: distance to the targets, under a bound on the ELBO, with the smallest change."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcft.core import distributed
from segcft.core.recipes import Recorded
from segcft.spatial.resize import spread
from segcft.variables.regions import dilate, reach
from segcft.variables.variables import Parents, Values

MARGINS = 6  # of ``regions.reach`` from what is to move, at which the full price of a displacement is due


def guidance_loss(
    measured: Values,
    target: Values,
    parents: Parents,
    weights: Mapping[str, float],
    kept: Values | None = None,
    specificity: float | Tensor = 1.0,
) -> Tensor:
    """Mean absolute distance in training deviations, summed over all guided variables.

    The intervened variable is held to its target and every other to where the causal model says it stays, so that
    leaking into another structure costs as much as missing the target, or more.

    Args:
        measured: Guided variables of the counterfactual images in real units, (B,) each.
        target: Where they should be, (B,) each.
        parents: Units and deviations.
        weights: Factor per variable, 1 where it is not named.
        kept: True where the causal model leaves a variable as it was, (B,) each; nowhere unless given.
        specificity: Factor on the distance of what is kept.
    """
    names = [name for name in parents.visible if name in measured]
    if not names:
        return torch.zeros(())
    distance = (parents.standardise(measured, names) - parents.standardise(target, names)).abs()  # (B, names)
    if kept is not None:
        still = torch.stack([kept[name] for name in names], dim=1)
        distance = torch.where(still, specificity * distance, distance)
    return (distance.mean(0) * distance.new_tensor([weights.get(name, 1.0) for name in names])).sum()


def minimality_loss(cf_image: Tensor, image: Tensor) -> Tensor:
    """Mean absolute change of a pixel, in image units."""
    return (cf_image - image).abs().mean()


def displacement_elsewhere(displacement: Tensor, mask: Tensor) -> Tensor:
    """Mean squared displacement, weighted by the distance from the structure that is to move, a scalar.

    Args:
        displacement: (B, D, *S) in pixels.
        mask: Of the structure, (B, *S), bool; a subject without any is left out.
    """
    with torch.no_grad():
        step, near = reach(displacement), mask
        weight = torch.zeros_like(mask, dtype=displacement.dtype)
        for _ in range(MARGINS):
            weight = weight + (~near).to(weight) / MARGINS
            near = dilate(near, step)
        weight = weight * spread(mask.flatten(1).any(1)[:, None], mask[:, None])[:, 0]
    return (weight * displacement.square().sum(1)).mean()


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice, averaged over structures; logits and mask (B, K, *S), mask in [0, 1].

    Dice takes the overlap of p and m as (p + m - |p - m|) / 2: p m where m is 0 or 1, and least at p = m where it lies
    between (Wang et al., Dice Semimetric Losses, 2023). It is that of all processes' subjects together: no mean over
    subjects.
    """
    logits, axes = logits.float(), (0, *range(2, logits.dim()))
    probability = torch.sigmoid(logits)
    sums = torch.stack([(probability - mask).abs().sum(axes), (probability + mask).sum(axes)])  # (2, K)
    apart, size = distributed.total(sums)
    dice = (size - apart + 1) / (size + 1)
    loss: Tensor = F.binary_cross_entropy_with_logits(logits, mask) + 1 - dice.mean()
    return loss


class ElboConstraint(nn.Module, Recorded):
    """Keep the HVAE a good model of the data: NELBO <= bound, by an augmented Lagrangian.

    The coefficient of the NELBO is max(0, multiplier + damping * (NELBO - bound)), the standard form for an inequality
    (Nocedal and Wright, 2006, chapter 17): it never pushes a satisfied bound upwards.

    Args:
        multiplier: Initial multiplier, or the constant weight when ``fixed``.
        step: Step of the multiplier's ascent after every training step.
        damping: Weight of the quadratic term.
        slack: Added to the measured NELBO of the pretrained model to give the bound, nats per dimension.
        fixed: Use a constant weight and no bound.
    """

    multiplier: Tensor
    bound: Tensor

    def __init__(
        self,
        multiplier: float = 1.0,
        step: float = 0.05,
        damping: float = 10.0,
        slack: float = 0.0,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self.step, self.damping, self.slack, self.fixed = step, damping, slack, fixed
        self.register_buffer("multiplier", torch.tensor(float(multiplier)))
        self.register_buffer("bound", torch.tensor(float("nan")))
        self._checked = False

    @property
    def measured(self) -> bool:
        """Whether the bound is known, or not needed."""
        return self.fixed or bool(torch.isfinite(self.bound))

    def measure(self, nelbo: Tensor) -> None:
        """Set the bound from the pretrained model's NELBO on training data, a scalar."""
        self.bound = (nelbo + self.slack).detach().to(self.bound)

    def forward(self, nelbo: Tensor, level: Tensor | None = None) -> Tensor:
        """Penalty on the batch's NELBO, a scalar.

        Args:
            nelbo: Of this process's subjects.
            level: Mean over all processes, without gradient; ``nelbo`` itself unless given.
        """
        if self.fixed:
            return self.multiplier * nelbo
        if not self._checked:  # once: to look at it is to wait for the device
            assert self.measured, "measure the bound before training"
            self._checked = True
        level = nelbo.detach() if level is None else level
        coefficient = (self.multiplier + self.damping * (level - self.bound)).clamp(min=0)
        return coefficient * (nelbo - self.bound)

    @torch.no_grad()
    def ascend(self, nelbo: Tensor) -> None:
        """Raise the multiplier while the bound is broken, lower it, not below 0, while it holds.

        One batch that bursts, whose step is left out, must not weigh for the rest of the training: beyond one nat per
        dimension, or where there is no number, the excess counts as one.

        Args:
            nelbo: Mean over all processes, a scalar: they have to stay agreed.
        """
        if not self.fixed:
            excess = torch.nan_to_num(nelbo.detach() - self.bound, nan=1.0).clamp(max=1)
            self.multiplier = (self.multiplier + self.step * excess).clamp(min=0)
