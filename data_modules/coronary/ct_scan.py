"""Rendering of the coronary phantom as CT in HU: fat, myocardium, wall, plaques and contrast-filled lumen.

Every layer has an attenuation, and every border is blurred by the scanner's point spread function, which causes partial
volume in thin layers and blooming of calcium. See ``anatomy`` for conventions.
"""

from functools import cached_property

import torch
from torch import Tensor

from data_modules.coronary.anatomy import LENGTH, STRUCTURES, Noise, Plaque, Vessel, step

HU = (-1024, 3071)  # range that scanners store
LUMEN, CALCIFIED, NONCALCIFIED = range(1, len(STRUCTURES) + 1)  # values of the label map; 0 is no structure


class Places:
    """Points of an image: positions along the vessel and offsets across it.

    Args:
        vessel: The vessel at the positions, (B, L).
        x: Offset along the first axis across the vessel, broadcastable to (1, 1, *A), mm.
        y: Offset along the second axis in 3-D, likewise.
    """

    def __init__(self, vessel: Vessel, x: Tensor, y: Tensor | None) -> None:
        self.vessel = vessel
        self.x, self.y, self.dims = x.float(), None if y is None else y.float(), x.dim() - 2
        self.dx = self.x - self.spread(vessel.shift[0])
        self.dy = None if self.y is None else self.y - self.spread(vessel.shift[1])
        self.rho = self.dx.abs() if self.dy is None else (self.dx * self.dx + self.dy * self.dy).sqrt()

    def spread(self, values: Tensor) -> Tensor:
        """Values per position (B, L) or per subject (B,) as float32 (B, L or 1, 1, ...)."""
        return values.float().reshape(*values.shape, *[1] * (2 + self.dims - values.dim()))

    def grown(self, radius: Tensor, plaque: Plaque) -> Tensor:
        """Distance of the outer border of ``plaque`` on top of a border at ``radius``, (B, L, *A), exact in size."""
        cos, sin, amount = self.spread(plaque.cos), self.spread(plaque.sin), self.spread(plaque.amount)
        if self.dy is None:
            return radius + amount * (self.dx * cos > 0)  # on one side
        facing = (self.dx * cos + self.dy * sin) / self.rho.clamp(min=1e-3)  # cosine of the angle to its middle
        share = (facing - self.spread(plaque.edge)).clamp(0) * self.spread(plaque.peak)
        return (radius * radius + 2 * amount * share).sqrt()

    @cached_property
    def borders(self) -> tuple[Tensor, Tensor, Tensor]:
        """Distances of the outer borders of lumen, non-calcified and calcified plaque, (B, L, *A), mm."""
        lumen = self.spread(self.vessel.radius)
        inner = self.grown(lumen, self.vessel.plaques[STRUCTURES[NONCALCIFIED - 1]])
        return lumen, inner, self.grown(inner, self.vessel.plaques[STRUCTURES[CALCIFIED - 1]])

    @property
    def labels(self) -> Tensor:
        """Label map, (B, L, *A) uint8: 0, or 1 + the index of the structure at the point."""
        lumen, inner, outer = self.borders
        plaque = torch.where(self.rho < inner, NONCALCIFIED, torch.where(self.rho < outer, CALCIFIED, 0))
        return torch.where(self.rho < lumen, LUMEN, plaque).to(torch.uint8)

    def towards(self, turn: Tensor) -> Tensor:
        """Offset in the direction ``turn`` (B,) of a turn, (B, 1 or L, *A), mm."""
        angle = 2 * torch.pi * turn
        if self.y is None:
            return self.x * self.spread(angle.cos().sign())
        return self.x * self.spread(angle.cos()) + self.y * self.spread(angle.sin())


def paint(noise: Noise, vessel: Vessel, x: Tensor, y: Tensor | None, pixel: float) -> tuple[Tensor, Tensor]:
    """Draw the vessels of B subjects without scanner noise.

    Args:
        noise: Exogenous variables, (B,) or (B, n) float64.
        vessel: The vessel at positions (B, L).
        x: Offsets across the vessel, broadcastable to (1, 1, *A), mm.
        y: The second offset in 3-D, likewise; None in a longitudinal section.
        pixel: Pixel size, mm; a lower bound on the width of edges.

    Returns:
        Attenuation, (B, L, *A) float32, HU; label map, (B, L, *A) uint8, 0 or 1 + the structure's index.
    """
    at = Places(vessel, x, y)
    width = at.spread(_edge(noise, vessel.s, pixel))
    calcium, soft = (vessel.plaques[name] for name in STRUCTURES[1:])
    lumen, inner, outer = at.borders
    borders = [lumen, inner, outer, outer + at.spread(noise["wall"])]
    cover = [step(border - at.rho, width) + step(border + at.rho, width) - 1 for border in borders]  # partial volume
    blood = at.spread(noise["blood"][:, None] * (1 - noise["blood_drop"][:, None] * vessel.s / LENGTH))
    hu = blood * cover[0] + at.spread(soft.hu) * (cover[1] - cover[0]) + at.spread(calcium.hu) * (cover[2] - cover[1])
    hu = hu + at.spread(noise["wall_hu"]) * (cover[3] - cover[2])
    hu = hu + _surroundings(noise, vessel.s, at, width) * (1 - cover[3])
    return hu, at.labels


def covered(vessel: Vessel, x: Tensor, y: Tensor | None, pixel: tuple[float, ...]) -> Tensor:
    """Number of quarters of every pixel that each structure covers, encoded in (B, L, *A) uint8 for ``fractions``.

    A quarter (a strip across the vessel, in 3-D a square) is assigned to the structure at its centre.

    Args:
        vessel: See ``paint``.
        x: See ``paint``.
        y: See ``paint``.
        pixel: Pixel sizes across the vessel, mm.
    """
    quarters: list[tuple[Tensor, Tensor | None]]
    if y is None:
        quarters = [(x + pixel[0] * part / 8, None) for part in (-3, -1, 1, 3)]
    else:
        quarters = [(x + a * pixel[0] / 4, y + b * pixel[1] / 4) for a in (-1, 1) for b in (-1, 1)]
    counts = torch.tensor([0, 1, 5, 25], dtype=torch.uint8)  # 0 to 4 quarters each, as base-5 digits
    return sum((counts[Places(vessel, *at).labels.long()] for at in quarters), torch.zeros((), dtype=torch.uint8))


def fractions(quarters: Tensor) -> Tensor:
    """Decode ``covered`` (B, *S) to the fraction of every pixel that each structure covers, (B, K, *S) float32."""
    digits = torch.tensor([1, 5, 25], dtype=torch.uint8).reshape(-1, *[1] * (quarters.dim() - 1))
    return (quarters[:, None] // digits % 5) / 4


def grainy(noise: Noise, hu: Tensor, grain: Tensor) -> Tensor:
    """Add scanner noise, made of uniform numbers in [0, 1), to HU (B, *S), and round to int16.

    The numbers are averaged over neighbours, since the noise of a reconstructed image is coarser than its pixels.
    """
    fine = grain - 0.5
    for axis in range(1, fine.dim()):
        fine = (fine + fine.roll(1, axis)) * 0.7071
    scale = noise["grain"].float().reshape(-1, *[1] * (hu.dim() - 1)) * 3.4641  # of a uniform number: 1 / sqrt(12)
    return (hu + fine * scale).round().clamp(*HU).to(torch.int16)


def _edge(noise: Noise, s: Tensor, pixel: float) -> Tensor:
    """Width of an edge at ``s`` (B, L), mm: point spread, pixel size, and motion blur where the heart moved."""
    off = (s - LENGTH * noise["motion_at"][:, None]) / noise["motion_half"][:, None]
    motion = noise["motion"].clamp(0)[:, None] * (1 - off * off).clamp(0)
    return (noise["psf"][:, None] ** 2 + pixel**2 + motion**2).sqrt()


def _surroundings(noise: Noise, s: Tensor, at: Places, width: Tensor) -> Tensor:
    """Fat, myocardium on one side, and a vein crossing the other, (B, L, *A) HU."""
    wave = noise["muscle_wave"][:, None] * (6.2832 * (s / 31 + noise["muscle_phase"][:, None])).cos()
    border = noise["muscle_at"][:, None] + noise["muscle_slope"][:, None] * (s - LENGTH / 2) + wave
    away = at.towards(noise["muscle_turn"])
    fat, muscle = at.spread(noise["fat"]), at.spread(noise["muscle_hu"])
    hu = fat + (muscle - fat) * step(away - at.spread(border), 1.6 * width)
    half = at.spread(noise["vein_half"])
    along = at.spread((s - LENGTH * noise["vein_at"][:, None]) / (2 * noise["vein_half"][:, None]))
    across = (away + at.spread(noise["vein_off"])) / half
    apart = along * along + across * across
    if at.dy is not None:
        aside = at.towards(noise["muscle_turn"] + 0.25) / half
        apart = apart + aside * aside
    return hu + (at.spread(noise["vein_hu"]) - hu) * step((1 - apart) * half, 1.6 * width)
