"""Where the tissue seen at every pixel of a schematic chest lies at rest: with organs of median size.

Tissue slides, and then an organ that grows covers what lies around it; or it gives way, and then everything around is
displaced smoothly, ever less with the distance and not at all at the film's border. See ``anatomy`` for the
conventions; here positions are float32 pictures, (B or 1, H or 1, W or 1).
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
RELEASED = 110.0  # mm beyond that ellipse, along rays from the heart's anchor, nothing moves, if the film has the room
SIDES = (RIGHT, LEFT)


@dataclass(frozen=True)
class Rest:
    """Positions at rest of what a film shows.

    Attributes:
        x: From the midline of the field, mm, float32.
        y: From the upper edge, mm, float32.
        blur: Width over which an edge is spread, mm.
    """

    x: Tensor
    y: Tensor
    blur: float

    @classmethod
    def of(cls, grid: Grid) -> "Rest":
        """Nothing has moved."""
        return cls(grid.x.float()[None, None], grid.y.float()[None, :, None], grid.blur)

    def window(self, rows: slice, columns: slice) -> "Rest":
        """The part of the film in ``rows`` and ``columns``."""
        return Rest(_part(self.x, rows, columns), _part(self.y, rows, columns), self.blur)


def _part(picture: Tensor, rows: slice, columns: slice) -> Tensor:
    if picture.shape[1] > 1:
        picture = picture[:, rows]
    return picture[:, :, columns] if picture.shape[2] > 1 else picture


def sides(width: int) -> list[slice]:
    """Columns of the patient's right and left of a film ``width`` pixels wide, each somewhat beyond the midline."""
    middle, beyond = width // 2, -(-width // 10)
    return [slice(0, middle + beyond), slice(middle - beyond, width)]


def carried(noise: Noise, areas: list[Tensor], medians: list[float], grid: Grid) -> Rest:
    """Sliding tissue of which each half of the film moves with its lung; ``areas`` (B,) right and left, mm^2."""
    halves = [
        lung_at_rest(noise, area, median, side, half)
        for side, (area, median, half) in enumerate(zip(areas, medians, grid.halves(), strict=True))
    ]
    x = torch.cat([half.x.float()[:, None] for half in halves], 2)
    y = torch.cat([half.y.float()[:, :, None].expand(-1, -1, half.x.shape[-1]) for half in halves], 2)
    return Rest(x, y, grid.blur)


def elastic(noise: Noise, areas: list[Tensor], medians: list[float], grid: Grid) -> Rest:
    """Tissue that gives way to both lungs and the heart, (B, S, S).

    The heart is undone first, then the lungs: along the rows, then along the columns. No step folds the film.

    Args:
        noise: Exogenous variables and ``lung_fill``.
        areas: Of the right lung, the left lung and the heart, mm^2, (B,) each.
        medians: Areas at which nothing is moved, in the same order.
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
    """Undo what the growth of a heart to ``area`` mm^2 (B,) does to the tissue in and around it, (B, S, S).

    All moves along rays from the heart's anchor, in proportion in an ellipse around the heart and smoothly less beyond.
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
    """An ellipse around a heart of half axis ``long`` mm (B,), seen from the heart's anchor.

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
    """Displacement beyond what moves in proportion: 1 and still rising at 0, at rest at 1.

    ``room`` is the way from 0 to 1 over the way from where nothing moves to 0.
    """
    left = 1 - beyond
    return left * left * (1 + beyond * (2 + room))


@dataclass(frozen=True)
class _Axis:
    """A lung's extent along one axis of the film, positive away from where it is anchored; (B, 1, 1) each, mm.

    Attributes:
        start: Where it is anchored.
        length: How far it reaches from there.
        before: From its start back to where nothing moves.
        after: From its end on to where nothing moves.
    """

    start: Tensor
    length: Tensor
    before: Tensor
    after: Tensor

    def beyond(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions ``at`` in units of the lung, and how far before and after it: 0 inside, 1 where nothing moves."""
        unit = (at - self.start) * (1 / self.length)
        before = (unit * (-self.length / self.before)).clamp_(0, 1)
        after = ((unit - 1) * (self.length / self.after)).clamp_(0, 1)
        return unit, before, after

    def reach(self, at: Tensor) -> Tensor:
        """Share of the lung's growth by which it moves what lies ``at``: in proportion inside, smoothly less beyond."""
        unit, before, after = self.beyond(at)
        back = 1 - before
        moved = unit.clamp_(0, 1) * _decay(after, self.after / self.length)
        return moved - before * (back * back) * (self.before / self.length)

    def hold(self, at: Tensor) -> Tensor:
        """1 along the lung, smoothly less beyond, 0 where nothing moves."""
        _, before, after = self.beyond(at)
        return _fade(before) * _fade(after)


@dataclass(frozen=True)
class _LungPush:
    """What the growth of one lung does to the tissue around it.

    Attributes:
        sign: Of x on the lung's side.
        x: Across the film, from the mediastinum, with the lung as it is.
        y: Down the film, from the apex, with the lung as it is.
        resting: Across the film, with the lung at rest.
        wider: By how much it has grown, (B, 1, 1) mm.
        higher: By how much it has grown, (B, 1, 1) mm.
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
        resting = _axis(start, rest[0], noise["hilum_gap"].sum(1), FIELD / 2)  # between the lungs each yields to both
        wider, higher = (pixels(after - before) for after, before in zip(now, rest, strict=True))
        return cls(SIDES[side], across, down, resting, wider, higher)

    def along_rows(self, x: Tensor, y: Tensor) -> Tensor:
        """Displacement to the image's right, mm, of what lies at film positions ``x`` and ``y``."""
        return self.x.reach(x * self.sign) * self.y.hold(y) * (self.sign * self.wider)

    def along_columns(self, x: Tensor, y: Tensor) -> Tensor:
        """Displacement downwards, mm; ``x`` is already at rest, ``y`` on the film."""
        return self.y.reach(y) * self.resting.hold(x * self.sign) * self.higher


def _axis(start: Tensor, length: Tensor, before: Tensor, border: float) -> _Axis:
    after = (border - start - length).clamp(10)
    return _Axis(pixels(start), pixels(length), pixels(before), pixels(after))


def _fade(t: Tensor) -> Tensor:
    """1 at 0, 0 at 1, level at both."""
    left = 1 - t
    return left * left * (1 + 2 * t)
