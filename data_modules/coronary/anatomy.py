"""Anatomy of the coronary phantom: an artery whose lumen and plaques have exactly the requested size in every third.

Lengths are mm: s along the vessel from its ostium; x, and y in 3-D, across it, from the axis of the reformation.
"Size" is an area (mm^2) in a longitudinal section or a volume (mm^3) in 3-D; "size per mm" is per mm of vessel: a width
or the area of a cross-section. Each third holds one calcified and one non-calcified plaque outside
the lumen. A subject's geometry is float64. Per-pixel operations use only +, -, *, / and square roots, which round the
same in every batch, so a subject's image never depends on the rest of the batch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data_modules.coronary.vessel_regions import REGIONS

LENGTH, WIDTH = 48.0, 12.0  # mm, field of view along and across the vessel
STRUCTURES = ["lumen", "calcified_plaque", "noncalcified_plaque"]
THIRD = LENGTH / len(REGIONS)  # mm
BLEND = 6.0  # mm over which the calibre changes from one third to the next
FINE = 288  # positions at which the lumen is integrated
WAVES = 3  # of the residual bend, and of the calibre

Noise = dict[str, Tensor]  # exogenous variable -> (B,) or (B, n) float64

# name -> (low, high, how many): independent and uniform
EXOGENOUS: dict[str, tuple[float, float, int]] = {
    "taper": (0.0, 0.12, 1),  # of the calibre within what the thirds' sizes say
    "ripple": (-0.035, 0.035, WAVES),
    "ripple_phase": (0, 1, WAVES),
    "narrowing": (0.05, 0.40, 3),  # of the diameter, deepest beside the non-calcified plaque
    "bend": (-0.24, 0.24, 2 * WAVES),
    "bend_phase": (0, 1, 2 * WAVES),
    "noncalcified_plaque_at": (0, 1, 3),
    "noncalcified_plaque_half": (5.2, 7.2, 3),
    "noncalcified_plaque_turn": (0, 1, 3),
    "noncalcified_plaque_reach": (0.50, 0.80, 3),  # of half a turn, to either side
    "calcified_plaque_at": (0, 1, 3),
    "calcified_plaque_half": (2.2, 3.8, 3),
    "calcified_plaque_turn": (0, 1, 3),
    "calcified_plaque_reach": (0.28, 0.50, 3),
    "noncalcified_plaque_hu": (30, 110, 3),
    "calcified_plaque_hu": (750, 1200, 3),
    "blood": (330, 450, 1),
    "blood_drop": (0.0, 0.08, 1),  # share of the contrast lost along the vessel
    "wall": (0.25, 0.40, 1),
    "wall_hu": (45, 75, 1),
    "fat": (-95, -65, 1),
    "muscle_hu": (85, 125, 1),
    "muscle_turn": (0, 1, 1),
    "muscle_at": (2.4, 4.4, 1),
    "muscle_slope": (-0.03, 0.03, 1),
    "muscle_wave": (0.1, 0.7, 1),
    "muscle_phase": (0, 1, 1),
    "vein_hu": (150, 260, 1),
    "vein_at": (0.1, 0.9, 1),
    "vein_off": (4.2, 5.6, 1),
    "vein_half": (0.7, 1.4, 1),
    "psf": (0.75, 1.0, 1),  # width of an edge
    "motion": (-0.4, 0.9, 1),  # further width, where the heart moved; negative: it did not
    "motion_at": (0, 1, 1),
    "motion_half": (8, 16, 1),
    "grain": (12, 28, 1),  # standard deviation, HU
}


@dataclass(frozen=True)
class Plaque:
    """One kind of plaque at positions along the vessel, (B, L) each.

    Attributes:
        amount: Size per mm.
        cos: Cosine of its direction around the vessel.
        sin: Sine of that direction.
        edge: Cosine of the angle to its edge.
        peak: Factor that normalises its integral over directions to one.
        hu: Attenuation.
    """

    amount: Tensor
    cos: Tensor
    sin: Tensor
    edge: Tensor
    peak: Tensor
    hu: Tensor


@dataclass(frozen=True)
class Vessel:
    """The artery at positions along itself.

    Attributes:
        s: Positions, (B, L), mm.
        shift: Position of its centre in x and y, (B, L) each, mm.
        radius: Radius of the lumen, (B, L), mm.
        plaques: Structure name -> plaque.
    """

    s: Tensor
    shift: tuple[Tensor, Tensor]
    radius: Tensor
    plaques: dict[str, Plaque]

    @classmethod
    def of(cls, noise: Noise, sizes: dict[str, Tensor], s: Tensor, spatial_dims: int) -> "Vessel":
        """Build the vessels of B subjects.

        Args:
            noise: Exogenous variables, (B,) or (B, n).
            sizes: Structure -> its size in each third, (B, 3), mm^2 or mm^3.
            s: Positions, (B, L), mm; beyond either end the calibre is constant.
            spatial_dims: 2 or 3.

        Raises:
            ValueError: If the lumen of one third is too large compared with that of the next.
        """
        narrow = sizes["lumen"].double()
        local = _lumen_per_mm(noise, narrow, s.clamp(0, LENGTH), spatial_dims)
        radius = local / 2 if spatial_dims == 2 else (local / math.pi).sqrt()
        shift = tuple(
            _waves(noise["bend"][:, part], noise["bend_phase"][:, part], s)
            for part in (slice(WAVES), slice(WAVES, None))
        )
        kinds = {name: _plaque(noise, name, sizes[name].double(), s) for name in STRUCTURES[1:]}
        return cls(s, (shift[0], shift[1]), radius, kinds)


def step(depth: Tensor, width: Tensor) -> Tensor:
    """0 outside, 1 inside, smooth over ``width`` around depth 0; same shape as ``depth``."""
    t = (depth / width + 0.5).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _lumen_per_mm(noise: Noise, sizes: Tensor, s: Tensor, spatial_dims: int) -> Tensor:
    """Size per mm at ``s`` (B, L), such that its integrals over the thirds are ``sizes`` (B, 3).

    Near the border of two thirds the calibre changes smoothly from one to the other; the integrals do not change.
    """
    fine = (torch.arange(FINE, dtype=torch.float64) + 0.5) * (LENGTH / FINE)
    shape = _calibre(noise, fine.expand(len(sizes), -1)) ** (spatial_dims - 1)  # (B, F)
    level = sizes / (shape.reshape(len(sizes), len(REGIONS), -1).sum(2) * (LENGTH / FINE))  # (B, 3)
    total = _in_third(level, s)
    for own, other in ((0, 1), (1, 0), (1, 2), (2, 1)):
        ramp, lobe = _transition(fine, own, other)
        balance = (shape * ramp).sum(1) / (shape * lobe).sum(1)
        ramp, lobe = _transition(s, own, other)
        total = total + (level[:, other] - level[:, own])[:, None] * (ramp - balance[:, None] * lobe)
    if (total <= 0).any():
        worst = ", ".join(f"{v:.4g}" for v in sizes[(total <= 0).any(1)][0].tolist())
        raise ValueError(f"the lumen of neighbouring thirds differs too much: {worst}")
    return _calibre(noise, s) ** (spatial_dims - 1) * total


def _transition(s: Tensor, own: int, other: int) -> tuple[Tensor, Tensor]:
    """Blending weight of third ``other`` within third ``own`` near their border, and the compensating weight.

    The first rises to a half at the border; both are 0 elsewhere; same shape as ``s``.
    """
    border = THIRD * max(own, other)
    off = (s - border).abs()
    inside = (s < border) == (own < other)
    return (
        step(-off, torch.full_like(off, BLEND)) * inside,
        (1 - ((off - 5) / 3) ** 2).clamp(0) ** 2 * inside,
    )


def _calibre(noise: Noise, s: Tensor) -> Tensor:
    """Relative diameter at ``s`` (B, L): taper, waviness and the narrowing beside each non-calcified plaque."""
    taper = 1 - noise["taper"][:, None] * s / LENGTH
    u = _along(noise, "noncalcified_plaque", s)
    narrowing = _in_third(noise["narrowing"], s) * (1 - u * u).clamp(0) ** 2
    return taper * (1 + _waves(noise["ripple"], noise["ripple_phase"], s)) * (1 - narrowing)


def _waves(height: Tensor, phase: Tensor, s: Tensor) -> Tensor:
    """Sum of cosines of decreasing length: heights (B, n) and phases in turns (B, n) at ``s`` (B, L)."""
    lengths = torch.tensor([60.0, 38.0, 23.0], dtype=torch.float64)[:, None]
    turns = s[:, None] / lengths + phase[:, :, None]
    return (height[:, :, None] * (2 * math.pi * turns).cos()).sum(1)


def _in_third(values: Tensor, s: Tensor) -> Tensor:
    """Values of each third, (B, 3), looked up at positions ``s`` (B, L)."""
    return values.gather(1, (s / THIRD).floor().clamp(0, len(REGIONS) - 1).long())


def _along(noise: Noise, kind: str, s: Tensor) -> Tensor:
    """Relative position within the third's plaque, (B, L): 0 at its middle, -1 and 1 at its ends."""
    half = noise[f"{kind}_half"]
    start = torch.arange(len(REGIONS), dtype=torch.float64) * THIRD
    middle = start + half + noise[f"{kind}_at"] * (THIRD - 2 * half)
    return (s - _in_third(middle, s)) / _in_third(half, s)


def _plaque(noise: Noise, kind: str, sizes: Tensor, s: Tensor) -> Plaque:
    """Plaques of ``sizes`` (B, 3) at ``s`` (B, L)."""
    u, half, reach = _along(noise, kind, s), noise[f"{kind}_half"], math.pi * noise[f"{kind}_reach"]
    amount = _in_third(sizes / half, s) * 0.75 * (1 - u * u).clamp(0)
    turn, edge = 2 * math.pi * noise[f"{kind}_turn"], reach.cos()
    around = 2 * (reach.sin() - reach * edge)  # integral of cos - edge over the directions it covers
    cells = (turn.cos(), turn.sin(), edge, 1 / around, noise[f"{kind}_hu"])
    cos, sin, edge, peak, hu = (_in_third(values, s) for values in cells)
    return Plaque(amount, cos, sin, edge, peak, hu)
