"""Tissue model of the chest phantom: maps every pixel to its reference position, with organs of median size.

Sliding tissue is covered by a growing organ. Elastic tissue is displaced smoothly, less with distance and not at all at
the film's border. See ``anatomy`` for the conventions; positions are float32 images, (B or 1, H or 1, W or 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data_modules.chest.anatomy import (
    FIELD,
    LEFT,
    RIGHT,
    Grid,
    Noise,
    heart_length,
    lung_at_rest,
    lung_box,
    pixels,
)

EMBEDDED = 1.3  # an ellipse around the heart moves along with it, in units of the heart's half axes
RELEASED = 110.0  # mm beyond that ellipse (along rays from the heart's anchor) nothing moves
SIDES = (RIGHT, LEFT)


@dataclass(frozen=True)
class Rest:
    """Reference positions of the tissue seen at every pixel.

    Attributes:
        x: From the midline of the field, mm, float32.
        y: From the upper edge, mm, float32.
        blur: Width of an edge, mm.
    """

    x: Tensor
    y: Tensor
    blur: float

    @classmethod
    def of(cls, grid: Grid) -> "Rest":
        """Positions of a film without displacement."""
        return cls(grid.x.float()[None, None], grid.y.float()[None, :, None], grid.blur)

    def window(self, rows: slice, columns: slice) -> "Rest":
        """The part of the film in ``rows`` and ``columns``."""
        return Rest(_part(self.x, rows, columns), _part(self.y, rows, columns), self.blur)


def _part(picture: Tensor, rows: slice, columns: slice) -> Tensor:
    if picture.shape[1] > 1:
        picture = picture[:, rows]
    return picture[:, :, columns] if picture.shape[2] > 1 else picture


def sides(width: int) -> list[slice]:
    """Columns of the patient's right and left half of a film ``width`` pixels wide, overlapping at the midline."""
    middle, beyond = width // 2, -(-width // 10)
    return [slice(0, middle + beyond), slice(middle - beyond, width)]


def carried(noise: Noise, areas: list[Tensor], medians: list[float], grid: Grid) -> Rest:
    """Sliding tissue whose halves move with their lungs; ``areas`` (B,) of the right and left lung, mm^2."""
    halves = [
        lung_at_rest(noise, area, median, side, half)
        for side, (area, median, half) in enumerate(zip(areas, medians, grid.halves(), strict=True))
    ]
    x = torch.cat([half.x.float()[:, None] for half in halves], 2)
    y = torch.cat([half.y.float()[:, :, None].expand(-1, -1, half.x.shape[-1]) for half in halves], 2)
    return Rest(x, y, grid.blur)


def elastic(noise: Noise, areas: list[Tensor], medians: list[float], grid: Grid) -> Rest:
    """Elastic tissue, displaced by both lungs and the heart, (B, S, S).

    The heart's displacement is inverted first, then the lungs': along rows, then along columns. No step folds the film.

    Args:
        noise: Exogenous variables and ``lung_fill``.
        areas: Areas of the right lung, the left lung and the heart, mm^2, (B,) each.
        medians: Reference areas, at which nothing moves, in the same order.
        grid: The film.
    """
    tissue = _without_heart(noise, areas[2], medians[2], Rest.of(grid))
    lungs = [_LungPush.of(noise, areas[side], medians[side], side) for side in (0, 1)]
    x, y = tissue.x.clone(), tissue.y.clone()
    windows = sides(len(grid.x))
    for lung, at in zip(lungs, windows, strict=True):
        x[:, :, at] -= lung.along_rows(tissue.x[:, :, at], tissue.y[:, :, at])
    for lung, at in zip(lungs, windows, strict=True):
        y[:, :, at] -= lung.along_columns(x[:, :, at], tissue.y[:, :, at])
    return Rest(x, y, grid.blur)


def _without_heart(noise: Noise, area: Tensor, median: float, film: Rest) -> Rest:
    """Invert the displacement of tissue by a heart of ``area`` mm^2 (B,), (B, S, S).

    Tissue moves along rays from the heart's anchor: scaled inside an ellipse around the heart, smoothly less outside.
    """
    long = heart_length(noise, area)
    grown = heart_length(noise, torch.full_like(area, median)) / long - 1
    x = film.x - pixels(noise["midline"] + noise["heart_x"])
    y = film.y - pixels(noise["heart_y"])
    out, room = _heart_ellipse(noise, long, x, y)
    away = (x * x + y * y).sqrt_()
    edge = (away / out.clamp(1e-3)).clamp_(1)  # mm from the anchor to the ellipse
    beyond = ((away - edge) * (1 / room)).clamp_(0, 1)
    scale = _decay(beyond, room / edge) / out.clamp(1) * pixels(grown)
    return Rest(film.x + scale * x, film.y + scale * y, film.blur)


def _heart_ellipse(noise: Noise, long: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """An ellipse around a heart with half axis ``long`` mm (B,), in coordinates from the heart's anchor.

    Args:
        noise: Exogenous variables.
        long: Half axis along the heart, mm, (B,).
        x: Positions from the anchor, mm, (B, 1, S).
        y: Positions from the anchor, mm, (B, S, 1).

    Returns:
        Distance from the anchor, 1 on the ellipse, (B, S, S); and how many mm beyond it nothing moves, (B, 1, 1).
    """
    turn, lean, wide = noise["heart_tilt"].cos(), noise["heart_tilt"].sin(), long * noise["heart_slender"]
    centre_x, centre_y = long * (0.66 * turn + 0.24), long * (0.66 * lean + 0.30)  # from the anchor, mm
    centre = (centre_x * turn + centre_y * lean) / long, (centre_y * turn - centre_x * lean) / wide
    along = x * pixels(turn / long) + y * pixels(lean / long)
    across = y * pixels(turn / wide) - x * pixels(lean / wide)
    rest = 1 / (EMBEDDED**2 - centre[0] ** 2 - centre[1] ** 2)
    back = along * pixels(centre[0] * rest) + across * pixels(centre[1] * rest)
    out = (back * back + (along * along + across * across) * pixels(rest)).sqrt() - back
    reach_x = centre_x + EMBEDDED * ((long * turn) ** 2 + (wide * lean) ** 2).sqrt()
    reach_y = centre_y + EMBEDDED * ((long * lean) ** 2 + (wide * turn) ** 2).sqrt()
    room_x, room_y = FIELD / 2 - noise["midline"] - noise["heart_x"] - reach_x, FIELD - noise["heart_y"] - reach_y
    return out, pixels(torch.minimum(room_x, room_y).clamp(10, RELEASED))


def _decay(beyond: Tensor, room: Tensor) -> Tensor:
    """Relative displacement outside the scaled region: 1 and still rising at 0, and 0 at 1.

    ``room`` is the length of the interval 0 to 1 divided by the length of the scaled region.
    """
    left = 1 - beyond
    return left * left * (1 + beyond * (2 + room))


@dataclass(frozen=True)
class _Axis:
    """A lung's extent along one axis of the film, counted from its anchor; (B, 1, 1) each, mm.

    Attributes:
        start: Position of the anchor.
        length: Length of the lung from the anchor.
        before: Distance before the anchor at which nothing moves.
        after: Distance beyond the end at which nothing moves.
    """

    start: Tensor
    length: Tensor
    before: Tensor
    after: Tensor

    def beyond(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions in units of the lung's length, and distances before and after it: 0 inside, 1 at rest."""
        unit = (at - self.start) * (1 / self.length)
        before = (unit * (-self.length / self.before)).clamp_(0, 1)
        after = ((unit - 1) * (self.length / self.after)).clamp_(0, 1)
        return unit, before, after

    def reach(self, at: Tensor) -> Tensor:
        """Fraction of the lung's growth that displaces position ``at``: proportional inside, smoothly less outside."""
        unit, before, after = self.beyond(at)
        back = 1 - before
        moved = unit.clamp_(0, 1) * _decay(after, self.after / self.length)
        return moved - before * (back * back) * (self.before / self.length)

    def hold(self, at: Tensor) -> Tensor:
        """1 along the lung, decreasing smoothly outside to 0 where nothing moves."""
        _, before, after = self.beyond(at)
        return _fade(before) * _fade(after)


@dataclass(frozen=True)
class _LungPush:
    """Displacement of the surrounding tissue by the growth of one lung.

    Attributes:
        sign: Sign of x on the lung's side.
        x: Horizontal extent of the lung, from the mediastinum.
        y: Vertical extent of the lung, from the apex.
        resting: Horizontal extent of the reference lung.
        wider: Growth in width, (B, 1, 1) mm.
        higher: Growth in height, (B, 1, 1) mm.
    """

    sign: float
    x: _Axis
    y: _Axis
    resting: _Axis
    wider: Tensor
    higher: Tensor

    @classmethod
    def of(cls, noise: Noise, area: Tensor, median: float, side: int) -> "_LungPush":
        now, rest = lung_box(noise, area, side), lung_box(noise, torch.full_like(area, median), side)
        gap, top = noise["hilum_gap"][:, side], noise["apex_y"][:, side]
        start = SIDES[side] * noise["midline"] + gap
        across, down = _axis(start, now[0], gap, FIELD / 2), _axis(top, now[1], top, FIELD)
        resting = _axis(start, rest[0], noise["hilum_gap"].sum(1), FIELD / 2)  # between the lungs both push
        wider, higher = (pixels(after - before) for after, before in zip(now, rest, strict=True))
        return cls(SIDES[side], across, down, resting, wider, higher)

    def along_rows(self, x: Tensor, y: Tensor) -> Tensor:
        """Displacement to the image's right, mm, at film positions ``x`` and ``y``."""
        return self.x.reach(x * self.sign) * self.y.hold(y) * (self.sign * self.wider)

    def along_columns(self, x: Tensor, y: Tensor) -> Tensor:
        """Displacement downwards, mm, at reference column ``x`` and film row ``y``."""
        return self.y.reach(y) * self.resting.hold(x * self.sign) * self.higher


def _axis(start: Tensor, length: Tensor, before: Tensor, border: float) -> _Axis:
    after = (border - start - length).clamp(10)
    return _Axis(pixels(start), pixels(length), pixels(before), pixels(after))


def _fade(t: Tensor) -> Tensor:
    """Smooth step from 1 at 0 to 0 at 1, with zero slope at both."""
    left = 1 - t
    return left * left * (1 + 2 * t)
