"""Losses of fine-tuning: guidance, minimality, segmentation, and the constraint on the NELBO."""

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
    """Mean absolute error in training standard deviations, summed over all guided variables.

    The target of the intervened variable is the do() value; that of every other is the value which the causal model
    predicts. So leakage into another structure costs as much as missing the target, or more with ``specificity``.

    Args:
        measured: Guided variables of the counterfactual images in real units, (B,) each.
        target: Target values in real units, (B,) each.
        parents: Statistics used to standardise the values.
        weights: Factor per variable, 1 where it is not named.
        kept: True where the causal model does not change a variable, (B,) each; by default nowhere.
        specificity: Factor on the error of these unchanged variables.
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
    """Mean absolute difference between counterfactual and factual image, in image units."""
    return (cf_image - image).abs().mean()


def displacement_elsewhere(displacement: Tensor, mask: Tensor) -> Tensor:
    """Mean squared displacement, weighted by the distance from the intervened structure, a scalar.

    Args:
        displacement: (B, D, *S) in pixels.
        mask: Mask of the structure, (B, *S), bool; subjects with an empty mask are left out.
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

    Dice uses the overlap (p + m - |p - m|) / 2, which equals p m for m in {0, 1} and makes the loss minimal at p = m
    for soft masks (Wang et al., Dice Semimetric Losses, 2023). Its sums run over the subjects of all processes; it
    is not a mean over subjects.
    """
    apart, size = distributed.total(_overlap(logits, mask, (0, *range(2, logits.dim()))))
    dice = (size - apart + 1) / (size + 1)
    loss: Tensor = F.binary_cross_entropy_with_logits(logits.float(), mask) + 1 - dice.mean()
    return loss


def segmentation_losses(logits: Tensor, mask: Tensor) -> Tensor:
    """The same for every subject by itself, (B,): a mean over subjects does not depend on their batches."""
    apart, size = _overlap(logits, mask, tuple(range(2, logits.dim())))
    dice = (size - apart + 1) / (size + 1)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), mask, reduction="none")
    losses: Tensor = entropy.flatten(1).mean(1) + 1 - dice.mean(1)
    return losses


def _overlap(logits: Tensor, mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sums over ``axes`` of |p - m| and p + m, stacked."""
    probability = torch.sigmoid(logits.float())
    return torch.stack([(probability - mask).abs().sum(axes), (probability + mask).sum(axes)])


class ElboConstraint(nn.Module, Recorded):
    """Constraint NELBO <= bound, which keeps the HVAE a good model of the data, by an augmented Lagrangian.

    The coefficient of the NELBO is max(0, multiplier + damping * (NELBO - bound)), the standard form for an inequality
    (Nocedal and Wright, 2006, chapter 17). It is 0 where the NELBO is below the bound by multiplier / damping or more.

    Args:
        multiplier: Initial multiplier, or the constant weight when ``fixed``.
        step: Step of the multiplier's ascent after every training step.
        damping: Weight of the quadratic term.
        slack: The bound is the pretrained model's measured NELBO plus this, nats per dimension.
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
        """Whether the bound has been set or is not needed."""
        return self.fixed or bool(torch.isfinite(self.bound))

    def measure(self, nelbo: Tensor) -> None:
        """Set the bound from the pretrained model's NELBO on training data, a scalar."""
        self.bound = (nelbo + self.slack).detach().to(self.bound)

    def forward(self, nelbo: Tensor, level: Tensor | None = None) -> Tensor:
        """Penalty on the batch's NELBO, a scalar.

        Args:
            nelbo: NELBO of this process's subjects, a scalar.
            level: Its mean over all processes, without gradient; by default ``nelbo``.
        """
        if self.fixed:
            return self.multiplier * nelbo
        if not self._checked:  # only once, since reading it synchronises with the device
            assert self.measured, "measure the bound before training"
            self._checked = True
        level = nelbo.detach() if level is None else level
        coefficient = (self.multiplier + self.damping * (level - self.bound)).clamp(min=0)
        return coefficient * (nelbo - self.bound)

    @torch.no_grad()
    def ascend(self, nelbo: Tensor) -> None:
        """Dual ascent: raise the multiplier while the bound is violated, lower it (not below 0) while it holds.

        The excess is clipped to one nat per dimension (also if it is not finite), so that a single diverged batch,
        whose step is skipped, does not dominate the rest of the training.

        Args:
            nelbo: Mean over all processes, a scalar, so that all processes keep the same multiplier.
        """
        if not self.fixed:
            excess = torch.nan_to_num(nelbo.detach() - self.bound, nan=1.0).clamp(max=1)
            self.multiplier = (self.multiplier + self.step * excess).clamp(min=0)
