"""Lung and heart outlines of the chest phantom, each with exactly the requested area.

A subject's geometry is float64. Per-pixel operations use only +, -, *, /, min, max, rounding and square roots, which
give the same result in every batch, so a subject's film never depends on the rest of the batch. All lengths are mm: x
from the midline, positive towards the image's right (the patient's left); y from the upper edge, downwards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FIELD = 400.0  # mm, edge of the square field of view
RIGHT, LEFT = -1.0, 1.0  # the patient's sides: the right lung lies on the image's left
VESSELS = 16  # in each lung; the second half are branches of the first
WAVES = 14  # cosines of the low-frequency texture

Noise = dict[str, Tensor]  # exogenous variable -> (B,) or (B, n) float64

# name -> (low, high, how many): independent and uniform
EXOGENOUS: dict[str, tuple[float, float, int]] = {
    "midline": (-4, 4, 1),
    "apex_y": (33, 45, 2),
    "hilum_gap": (16, 22, 2),
    "lung_aspect": (1.84, 2.02, 2),
    "apex_x": (0.30, 0.40, 2),
    "apex_power": (0.46, 0.58, 2),
    "widest": (0.68, 0.82, 2),
    "waist": (0.02, 0.10, 2),
    "dome": (0.11, 0.19, 2),
    "dome_x": (0.32, 0.48, 2),
    "dome_medial": (0.02, 0.06, 2),
    "heart_x": (-42, -30, 1),
    "heart_y": (154, 168, 1),
    "heart_tilt": (0.46, 0.70, 1),
    "heart_slender": (0.62, 0.71, 1),
    "heart_egg": (-0.30, -0.08, 1),
    "heart_bend": (-0.15, -0.04, 1),
    "neck": (50, 62, 1),
    "chest_width": (176, 190, 1),
    "shoulder_y": (52, 74, 1),
    "abdomen": (0.05, 0.14, 1),
    "mediastinum": (24, 31, 2),
    "knob": (8, 16, 1),
    "knob_y": (104, 122, 1),
    "trachea": (-4, 3, 1),
    "spine": (17, 21, 1),
    "vertebra": (21, 25, 1),
    "vertebra_phase": (0, 1, 1),
    "rib_pitch": (23, 27, 1),
    "rib_phase": (0, 1, 2),
    "rib_drop": (34, 58, 2),
    "rib_cage": (140, 152, 2),
    "rib_contrast": (0.055, 0.095, 1),
    "clavicle_y": (62, 76, 2),
    "clavicle_rise": (14, 34, 2),
    "breast_y": (208, 238, 2),
    "breast_x": (78, 96, 2),
    "breast_size": (58, 80, 1),
    "breast_tissue": (0.06, 0.14, 1),
    "stomach": (-0.5, 1, 1),
    "stomach_x": (55, 85, 1),
    "stomach_y": (300, 325, 1),
    "air": (0.46, 0.54, 1),
    "vessel_tone": (0.25, 0.45, 1),
    "vessel_angle": (-1, 1, 2 * VESSELS),
    "vessel_bend": (-1, 1, 2 * VESSELS),
    "vessel_length": (0, 1, 2 * VESSELS),
    "wave_x": (-1, 1, WAVES),
    "wave_y": (-1, 1, WAVES),
    "wave_phase": (0, 1, WAVES),
    "texture": (0.008, 0.018, 1),
    "exposure": (-0.05, 0.05, 1),
    "contrast": (0.90, 1.12, 1),
    "gamma": (-0.25, 0.35, 1),
    "grain": (0.010, 0.024, 1),
}


@dataclass(frozen=True)
class Grid:
    """Pixel centres of a square film, or their positions mapped to a subject with lungs of median size.

    Attributes:
        x: Columns, (W,) float64 or (B, W), mm from the midline of the field.
        y: Rows, (H,) float64 or (B, H), mm from the upper edge.
        pixel: Edge of a pixel, mm.
    """

    x: Tensor
    y: Tensor
    pixel: float

    @classmethod
    def of_size(cls, size: int) -> "Grid":
        """Grid of a film of ``size`` x ``size`` pixels."""
        centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (FIELD / size)
        return cls(centres - FIELD / 2, centres, FIELD / size)

    def halves(self) -> "list[Grid]":
        """The halves on the patient's right and left (left and right in the image)."""
        middle = len(self.x) // 2
        return [Grid(x, self.y, self.pixel) for x in (self.x[:middle], self.x[middle:])]

    @property
    def blur(self) -> float:
        """Width of an edge, mm: the pixel size and the detector's blur."""
        return float((self.pixel**2 + 2.0**2) ** 0.5) * 1.15


def rows(values: Tensor) -> Tensor:
    """A profile over y, (B, S) float64, as a float32 image (B, S, 1)."""
    return values.float()[:, :, None]


def columns(values: Tensor) -> Tensor:
    """A profile over x, (B, S) float64, as a float32 image (B, 1, S)."""
    return values.float()[:, None, :]


def pixels(values: Tensor) -> Tensor:
    """One number per subject, (B,) float64, as a float32 image (B, 1, 1)."""
    return values.float()[:, None, None]


def step(depth: Tensor, width: float) -> Tensor:
    """0 outside, 1 inside, smooth over ``width`` around depth 0; same shape as ``depth``."""
    t = (depth / width + 0.5).clamp_(0, 1)
    return t * t * (3 - 2 * t)


def swell(depth: Tensor, reach: float) -> Tensor:
    """Thickness of a round body along the beam: 0 at the edge, rising ever more slowly to 1 at ``reach``."""
    t = (depth / reach).clamp_(0, 1)
    return t * (2 - t)


@dataclass(frozen=True)
class Lung:
    """Outline of one lung in units of its own width and height; (B,) float64 each.

    ``u`` runs laterally from the medial corner, ``v`` downwards from the apex, both from 0 to about 1.
    """

    apex: Tensor
    power: Tensor
    widest: Tensor
    waist: Tensor
    dome: Tensor
    dome_x: Tensor
    medial: Tensor

    @classmethod
    def of(cls, noise: Noise, side: int) -> "Lung":
        """Template of one subject's ``side`` (0 right, 1 left)."""
        names = ("apex_x", "apex_power", "widest", "waist", "dome", "dome_x", "dome_medial")
        return cls(*(noise[name][:, side, None] for name in names))

    def lateral(self, v: Tensor) -> Tensor:
        """Chest wall: a rounded apex, widest low down, slightly drawn in below, (B, S) -> u (B, S)."""
        above = 1 - (v / self.widest).clamp(0, 1)
        return self.apex + (1 - self.apex) * (1 - above**2) ** self.power - 0.9 * (v - self.widest).clamp(0) ** 2

    def inner(self, v: Tensor) -> Tensor:
        """Mediastinal wall: round at the apex, concave at the hilum, (B, S) -> u (B, S)."""
        above = 1 - (v / 0.22).clamp(0, 1)
        z = ((v - 0.1) / 0.9).clamp(0, 1)
        return self.apex * (1 - (1 - above**2).sqrt()) + self.waist * (4 * z * (1 - z)) ** 2

    def base(self, u: Tensor) -> Tensor:
        """Diaphragm: a dome falling to the sharp costophrenic angle, (B, S) -> v (B, S)."""
        out = ((u - self.dome_x) / (1 - self.dome_x)).clamp(0, 1.3)
        into = ((self.dome_x - u) / self.dome_x).clamp(0, 1.3)
        return 1 - self.dome * (1 - out**2.4) + self.medial * into**2

    def depths(self, u: Tensor, v: Tensor, width: Tensor, height: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed distances to the three walls of the lung, mm, positive inside.

        Args:
            u: Columns, (B, W).
            v: Rows, (B, H).
            width: Width of the lung, mm, (B,).
            height: Height of the lung, mm, (B,).

        Returns:
            Distances to the lateral, medial and lower wall, (B, H, W) float32 each.
        """
        small, w, h = 1e-3, width[:, None], height[:, None]
        norms = [
            (1 + ((wall(at + small) - wall(at - small)) / (2 * small) * ratio) ** 2).sqrt()
            for wall, at, ratio in ((self.lateral, v, w / h), (self.inner, v, w / h), (self.base, u, h / w))
        ]
        lateral = (rows(self.lateral(v) * w) - columns(u * w)) / rows(norms[0])
        medial = (columns(u * w) - rows(self.inner(v) * w)) / rows(norms[1])
        lower = (columns(self.base(u) * h) - rows(v * h)) / columns(norms[2])
        return lateral, torch.minimum(medial, rows(v * h)), lower

    def fill(self) -> Tensor:
        """Fraction of the width x height box that the outline fills, measured on a fine grid, (B,) float64."""
        count = 64
        at = (torch.arange(count, dtype=torch.float64) + 0.5) * (1.12 / count) - 0.03
        at = at.expand(len(self.apex), count)
        unit = torch.full((len(self.apex),), float(count), dtype=torch.float64)
        depth = torch.stack(self.depths(at, at, unit, 1.9 * unit)).amin(0)  # (B, H, W)
        return (depth / 1.6 + 0.5).clamp(0, 1).double().mean((1, 2)) * 1.12**2


@dataclass(frozen=True)
class Organ:
    """One structure as drawn: masks and thickness.

    Attributes:
        inside: Hard mask, (B, S, S) bool.
        cover: Anti-aliased mask, (B, S, S).
        thickness: Thickness along the beam relative to its maximum, (B, S, S).
    """

    inside: Tensor
    cover: Tensor
    thickness: Tensor


def draw_lung(noise: Noise, area: Tensor, side: int, grid: Grid) -> Organ:
    """Draw a lung of exactly ``area`` mm^2 (B,); its apex and medial wall stay fixed as it grows."""
    width, height = lung_box(noise, area, side)
    u, v = _lung_coordinates(noise, (width, height), side, grid)
    lateral, medial, lower = Lung.of(noise, side).depths(u, v, width, height)  # (B, S, S)
    depth = torch.minimum(torch.minimum(lateral, medial), lower)
    thickness = (
        (0.55 + 0.45 * swell(lateral, 55)) * (0.56 + 0.44 * swell(medial, 30)) * (0.70 + 0.30 * swell(lower, 60))
    )
    thickness = thickness * rows(0.72 + 0.28 * (v / 0.35).clamp(0, 1))
    return Organ(depth > 0, step(depth, grid.blur), thickness)


def lung_at_rest(noise: Noise, area: Tensor, median: float, side: int, grid: Grid) -> Grid:
    """Map pixels from a lung of ``area`` mm^2 (B,) to the same subject's lung of ``median`` mm^2.

    Anything drawn as a function of these columns and rows moves with the lung. Beyond the lateral and lower edge it
    moves with that edge; medial of the lung and above the apex it stays in place.

    Args:
        noise: Exogenous variables and ``lung_fill``.
        area: Area of the lung, mm^2, (B,).
        median: Reference area, at which nothing moves, mm^2.
        side: 0 right, 1 left.
        grid: That half of the film.

    Returns:
        Reference columns (B, W) and rows (B, H).
    """
    box, rest = lung_box(noise, area, side), lung_box(noise, torch.full_like(area, median), side)
    u, v = _lung_coordinates(noise, box, side, grid)
    grown = [(now - before)[:, None] for now, before in zip(box, rest, strict=True)]  # mm, (B, 1)
    x = grid.x - (RIGHT, LEFT)[side] * u.clamp(0, 1) * grown[0]
    return Grid(x, grid.y - v.clamp(0, 1) * grown[1], grid.pixel)


def lung_box(noise: Noise, area: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Width and height of a lung of ``area`` mm^2, mm, (B,) each."""
    ratio = area / noise["lung_fill"][:, side]
    width = (ratio / noise["lung_aspect"][:, side]) ** 0.5 * (ratio / 26000) ** -0.05  # mostly in height
    return width, ratio / width


def _lung_coordinates(noise: Noise, box: tuple[Tensor, Tensor], side: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """Columns and rows as fractions of the lung's width and height, (B, W) and (B, H)."""
    sign = (RIGHT, LEFT)[side]
    anchor = noise["midline"] + sign * noise["hilum_gap"][:, side]
    u = sign * (grid.x - anchor[:, None]) / box[0][:, None]
    return u, (grid.y - noise["apex_y"][:, side, None]) / box[1][:, None]


def heart_fill(egg: Tensor) -> Tensor:
    """Ratio of the heart outline's area to that of its box of half axes, (B,) float64."""
    angle = ((torch.arange(256, dtype=torch.float64) + 0.5) / 256 - 0.5) * torch.pi
    return 2 * torch.pi * (angle.cos() ** 2 * (1 + egg[:, None] * angle.sin()).sqrt()).mean(1)


def heart_length(noise: Noise, area: Tensor) -> Tensor:
    """Long half axis of a heart of ``area`` mm^2, mm, (B,)."""
    return (area / (heart_fill(noise["heart_egg"]) * noise["heart_slender"])) ** 0.5


def draw_heart(noise: Noise, area: Tensor, grid: Grid) -> Organ:
    """Draw a heart of exactly ``area`` mm^2 (B,), egg-shaped; it grows from the great vessels towards its apex."""
    egg, slender, tilt = noise["heart_egg"], noise["heart_slender"], noise["heart_tilt"]
    long = heart_length(noise, area)
    turn, lean = tilt.cos(), tilt.sin()
    x = (grid.x - (noise["midline"] + noise["heart_x"])[:, None]) / long[:, None]  # (B, S), anchor at 0
    y = (grid.y - noise["heart_y"][:, None]) / long[:, None]
    x, y = x - (0.66 * turn + 0.24)[:, None], y - (0.66 * lean + 0.30)[:, None]  # centre of the egg at 0
    p = (columns(x * turn[:, None]) + rows(y * lean[:, None])).clamp_(-1.5, 1.5)  # (B, S, S) along the heart
    bend, e, wide = pixels(noise["heart_bend"]), pixels(egg), pixels(slender**2)
    q = rows(y * turn[:, None]) - columns(x * lean[:, None]) - bend * (1 - p * p)  # across it
    room, ramp = 1 - p * p, 1 + e * p
    level = wide * room * ramp - q * q
    along = wide * (e * room - 2 * p * ramp) - 4 * bend * p * q
    depth = level / (along * along + 4 * q * q + 1e-3).sqrt() * pixels(long)  # mm
    return Organ(depth > 0, step(depth, grid.blur * 1.15), swell(depth, 32))
