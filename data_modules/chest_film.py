"""The film of a schematic chest: attenuation of every tissue added up along the beam, then exposure, grain, 256 levels.

See ``chest_anatomy`` for the conventions. Nothing here depends on an area except through what is handed in: the three
organs, and where the tissue of each half of the film lies at rest. Without the latter, ribs, vessels and texture stay
where they are when a structure grows; the detector's grain always does.
"""

import torch
from torch import Tensor

from data_modules.chest_anatomy import VESSELS, WAVES, Grid, Noise, Organ, columns, pixels, rows, step, swell


def film(
    noise: Noise, organs: list[Organ], sex: Tensor, age: Tensor, grain: Tensor, rest: list[Grid] | None = None
) -> Tensor:
    """Expose one film a subject.

    Args:
        noise: Exogenous variables, (B,) or (B, n) float64 each.
        organs: Left lung, right lung, heart.
        sex: 0 female, 1 male, (B,) float64.
        age: Years, (B,) float64.
        grain: Uniform noise in [0, 1), (B, S, S) float32.
        rest: The film's right and left half carried back to lungs at rest; None carries nothing.

    Returns:
        Grey levels, air 0 and bone bright, (B, S, S) uint8.
    """
    grid = Grid.of_size(grain.shape[-1])
    left, right, heart = organs
    calcium = 1.15 - 0.006 * (age - 20)  # bone fades with age, (B,)
    cage = noise["rib_contrast"] * calcium
    halves = rest or grid.halves()
    vessels = _vessels(noise, halves)  # (B, S, S)
    behind = 1 - 0.70 * heart.cover * (0.6 + 0.4 * heart.thickness)  # the heart displaces air
    air = (left.cover * left.thickness + right.cover * right.thickness) * (1 - vessels) * behind
    body = _body(noise, grid)  # (B, S, S), 1 in the chest
    air = air * body.clamp(max=1)
    bones = _ribs(noise, cage, halves) + _clavicles(noise, cage, grid) + _shoulders(noise, cage, grid)
    solid = 0.64 * body + _breasts(noise, sex, grid) + bones * body
    solid = solid + (_mediastinum(noise, age, grid) + _spine(noise, calcium, grid)) * (1 - 0.6 * heart.cover)
    solid = solid + 0.12 * heart.cover * (0.35 + 0.65 * heart.thickness)
    solid = solid - _stomach(noise, grid) * (1 - left.cover) * (1 - 0.7 * heart.cover)
    texture = _texture(noise, grid)
    if rest:
        _carry(texture, noise, rest, [right, left])
    return _develop(noise, solid - pixels(noise["air"]) * air + texture * solid, grain)


def _body(noise: Noise, grid: Grid) -> Tensor:
    """Soft tissue of neck, shoulders, chest and abdomen; the chest is 1, (B, S, S)."""
    top, y, middle = noise["shoulder_y"][:, None], grid.y, noise["midline"][:, None]
    neck, chest = noise["neck"][:, None], noise["chest_width"][:, None]
    slope = ((y - top + 62) / 74).clamp(0, 1)  # the trapezius, from neck to shoulder
    armpit = ((y - 120) / 78).clamp(0, 1)
    shoulder = neck + (222 - neck) * (0.25 * slope + 0.75 * slope**3)
    half = shoulder + (chest - shoulder) * armpit * armpit * (3 - 2 * armpit) + 0.06 * (y - 260).clamp(0)  # (B, S)
    depth = rows(half) - columns((grid.x - middle).abs())  # (B, S, S)
    below = ((y - 215) / 110).clamp(0, 1)
    thick = 0.98 + 0 * top + noise["abdomen"][:, None] * below * (2 - below) + 0.05 * (1 - (y / 90).clamp(0, 1))
    return step(depth, grid.blur * 1.2) * (0.28 + 0.72 * swell(depth, 80)) * rows(thick)


def _breasts(noise: Noise, sex: Tensor, grid: Grid) -> Tensor:
    size = noise["breast_size"]
    total = torch.zeros(())
    for side, sign in enumerate((-1.0, 1.0)):
        x = (grid.x - sign * noise["breast_x"][:, side, None]) / (1.08 * size[:, None])
        y = (grid.y - noise["breast_y"][:, side, None]) / size[:, None]
        depth = 1 - columns(x * x) - rows(y * y)  # (B, S, S)
        fade = rows((0.6 + 0.5 * y).clamp(0, 1))  # no upper border, a crescent below
        total = total + swell(depth, 0.55) * fade
    return total * pixels(noise["breast_tissue"] * (1 - sex))


def _ribs(noise: Noise, contrast: Tensor, halves: list[Grid]) -> Tensor:
    """Posterior ribs falling laterally, and fainter anterior ends falling medially, (B, S, S)."""
    lit = [_rib_side(noise, side, half) for side, half in enumerate(halves)]  # no rib crosses the midline
    return torch.cat(lit, 2) * pixels(contrast)


def _rib_side(noise: Noise, side: int, grid: Grid) -> Tensor:
    """Ribs of one half of the film, (B, H, W)."""
    middle, pitch = noise["midline"][:, None], noise["rib_pitch"]
    x, y = (grid.x - middle).abs(), grid.y.expand(len(middle), -1)
    drop, cage, phase = (noise[name][:, :1] + (noise[name][:, 1:] - noise[name][:, :1]) * side for name in _RIBS)
    wall = 0.40 + 0.60 * (1 - (1 - ((y - 36) / 190).clamp(0, 1)) ** 2.2)  # the cage widens downwards, (B, H)
    out = columns(x / cage) / rows(wall)  # (B, H, W), 1 at the chest wall
    arch = out * (out * out * 0.75 + 0.25) * columns(drop) - out * (1 - out) * 16
    stretch = 1 / pixels(pitch)
    shift = rows(y) * stretch + columns(phase)
    posterior = _bars(shift - arch * stretch, pixels(pitch), 6.2, grid)
    front = (1 - out) * 58
    anterior = _bars(shift * 0.94 + 0.5 - front * stretch, pixels(pitch), 7.0, grid)
    seen = ((y - 42) / 12).clamp(0, 1) * (1 - 0.8 * ((y - 215) / 60).clamp(0, 1)) * (1 - ((y - 285) / 30).clamp(0, 1))
    edge = ((1.04 - out) * 12).clamp_(0, 1)
    ends = edge * ((out - 0.42) * 4).clamp_(0, 1) * rows(((y - 84) / 30).clamp(0, 1))
    lit = posterior * edge * (1 + 0.5 * out * out) + 0.45 * anterior * ends
    return lit * rows(seen) * columns(((x - 8) / 14).clamp(0, 1))  # clear of the spine


_RIBS = ("rib_drop", "rib_cage", "rib_phase")


def _bars(turns: Tensor, pitch: Tensor, half: float, grid: Grid) -> Tensor:
    """A bright bar with brighter cortex once a turn, of half width ``half`` mm, (B, S, S)."""
    off = (turns - turns.floor() - 0.5).abs() * pitch  # mm from the bar's middle
    cortex = (1 - (off - half + 1.5).abs() / grid.blur).clamp_(0, 1)
    return step(half - off, grid.blur) * 0.8 + cortex * min(0.45, 1.2 / grid.blur)


def _clavicles(noise: Noise, contrast: Tensor, grid: Grid) -> Tensor:
    total = torch.zeros(())
    for side, sign in enumerate((-1.0, 1.0)):
        x = sign * (grid.x - noise["midline"][:, None])
        t = ((x - 14) / 150).clamp(-0.2, 1.3)
        rise = noise["clavicle_rise"][:, side, None]
        middle = noise["clavicle_y"][:, side, None] - rise * t - 10 * (t * 6.283).sin() * (1 - 0.5 * t)  # an S
        half = 5.6 + 3.0 * (1 - t / 0.3).clamp(0, 1) + 1.5 * (t - 0.7).clamp(0)
        depth = columns(half) - (rows(grid.y.expand_as(x)) - columns(middle)).abs()
        ends = columns(((x - 10) / 7).clamp(0, 1))
        total = total + step(depth, grid.blur) * (0.7 + 0.3 * (1 - swell(depth, 6))) * ends
    return total * pixels(2.1 * contrast)


def _shoulders(noise: Noise, contrast: Tensor, grid: Grid) -> Tensor:
    """Heads of the humeri and blades of the scapulae, (B, S, S)."""
    total = torch.zeros(())
    for side, sign in enumerate((-1.0, 1.0)):
        x = sign * (grid.x - noise["midline"][:, None])
        top = (grid.y - noise["clavicle_y"][:, side, None] + noise["clavicle_rise"][:, side, None]).expand_as(x)
        head = 1 - columns(((x - 182) / 25) ** 2) - rows(((top - 22) / 27) ** 2)  # (B, S, S)
        border = columns(x - 112) - rows(0.22 * (top - 20)) + rows(((top - 75) / 75) ** 2 * 10)  # mm, medial border
        tip = rows(1 - ((top - 72) / 74).abs())  # of the blade, above and below
        blade = step(border, grid.blur + 1) * (1 - swell(border - 4, 50)) * (tip * 5).clamp_(0, 1)
        total = total + 0.9 * swell(head, 1.0) + 0.8 * blade
    return total * pixels(contrast)


def _mediastinum(noise: Noise, age: Tensor, grid: Grid) -> Tensor:
    """Great vessels and the aortic knob, which swells with age, less the trachea, (B, S, S)."""
    y, middle = grid.y, noise["midline"][:, None]
    bump = (1 - ((y - noise["knob_y"][:, None]) / 19) ** 2).clamp(0)  # (B, S)
    knob = (noise["knob"] + 0.14 * (age - 20))[:, None] * bump * (2 - bump)
    flare = ((y - 118) / 70).clamp(0, 1) ** 2 * 8
    neck = 7 * (1 - ((y - 40) / 60).clamp(0, 1))
    left = noise["mediastinum"][:, 1:] + flare + neck + knob
    right = noise["mediastinum"][:, :1] + flare + neck
    x = columns(grid.x - middle)
    depth = torch.minimum(rows(left) - x, x + rows(right))  # (B, S, S)
    seen = rows(((y - 30) / 40).clamp(0, 1) * (1 - 0.75 * ((y - 190) / 70).clamp(0, 1)) + 0 * middle)
    veil = step(depth, 7 + grid.blur) * (0.6 + 0.4 * swell(depth, 30)) * seen * 0.16
    tube = 9.5 - columns((grid.x - middle - noise["trachea"][:, None]).abs())
    return veil - 0.10 * step(tube, 5 + grid.blur) * rows((1 - ((y - 120) / 25).clamp(0, 1)) + 0 * middle)


def _spine(noise: Noise, calcium: Tensor, grid: Grid) -> Tensor:
    """A column of vertebrae with end plates, pedicles and spinous processes, (B, S, S)."""
    y, x = grid.y, (grid.x - noise["midline"][:, None]).abs()
    turn = y / noise["vertebra"][:, None] * (1.1 - 0.0005 * y) + noise["vertebra_phase"][:, None]
    off = (turn - turn.floor() - 0.5).abs() * noise["vertebra"][:, None]  # mm from a vertebra's middle
    disc = ((off - noise["vertebra"][:, None] * 0.38) / 3).clamp(0, 1)
    half = noise["spine"][:, None] * (0.85 + 0.3 * y / 400) * (1 - 0.10 * (1 - disc))
    depth = rows(half) - columns(x)
    bone = step(depth, grid.blur) * (0.7 + 0.3 * swell(depth, 12)) * rows(0.10 - 0.045 * disc)
    pedicle = columns((1 - ((x - 0.62 * noise["spine"][:, None]) / 4.5) ** 2).clamp(0)) * rows((1 - off / 6).clamp(0))
    process = columns((1 - (x / 4.5) ** 2).clamp(0)) * rows((1 - (off - 8).abs() / 5).clamp(0))
    seen = rows(((y - 8) / 20).clamp(0, 1) * (0.80 + 0.0006 * y) + 0 * x)
    return (bone + 0.045 * pedicle + 0.04 * process) * seen * pixels(calcium)


def _stomach(noise: Noise, grid: Grid) -> Tensor:
    """The gas bubble under the left diaphragm; two of three subjects show one, (B, S, S)."""
    x = (grid.x - noise["stomach_x"][:, None]) / 30
    y = (grid.y - noise["stomach_y"][:, None]) / 17
    depth = 1 - columns(x * x) - rows(y * y)
    return swell(depth, 0.9) * pixels(0.20 * noise["stomach"].clamp(0))


def _vessels(noise: Noise, halves: list[Grid]) -> Tensor:
    """Lung vessels leaving the hila and their branches, as a share of the air they replace, (B, S, S)."""
    trees = []
    for side, half in enumerate(halves):  # no vessel crosses the midline
        within = _spanned(((half.y > 30) & (half.y < 290)).view(-1, half.y.shape[-1]).any(0))  # none reaches further
        x = (-1.0, 1.0)[side] * (half.x - noise["midline"][:, None]) - 40  # (B, S / 2), lateral of the hilum
        y = (half.y[..., within] - 160).expand(len(x), -1)
        tree = torch.zeros(len(x), half.y.shape[-1], half.x.shape[-1])
        tree[:, within] = _vessel_tree(noise, side, x, y, half.blur)
        trees.append(tree)
    return torch.cat(trees, 2) * pixels(noise["vessel_tone"])


def _spanned(some: Tensor) -> slice:
    """From the first to the last true entry, (S,) bool; nothing if there is none."""
    at = some.nonzero()[:, 0].tolist()
    return slice(at[0], at[-1] + 1) if at else slice(0, 0)


def _vessel_tree(noise: Noise, side: int, x: Tensor, y: Tensor, blur: float) -> Tensor:
    """Hilum, trunks and branches of one lung at columns ``x`` (B, W) and rows ``y`` (B, H) from it, (B, H, W)."""
    total = 0.55 * swell(1 - columns((x / 24) ** 2) - rows(((y - 4) / 38) ** 2), 1.0)
    many = VESSELS // 2
    for n in range(many):
        trunk = _vessel_course(noise, side * VESSELS, n, many)
        _add_vessel(total, x, y, trunk, blur)
        angle, bend, half, length = _vessel_course(noise, side * VESSELS + many, n, many)
        turned = trunk[0] + torch.where(angle > trunk[0], 0.5, -0.5)
        fork_x, fork_y = 0.3 * trunk[3] * trunk[0].cos(), 0.3 * trunk[3] * trunk[0].sin()
        branch = turned, bend, 0.7 * half, 0.75 * length
        _add_vessel(total, x - fork_x[:, None], y - fork_y[:, None], branch, blur)
    return total.clamp_(0, 1)


def _vessel_course(noise: Noise, first: int, n: int, of: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Angle below the horizontal, bend, half width (mm) and length (mm) of one vessel, (B,) each."""
    spread = (n + 0.5) / of * 2 - 1 + noise["vessel_angle"][:, first + n] / of
    long = noise["vessel_length"][:, first + n]
    return 1.35 * spread, noise["vessel_bend"][:, first + n] * 0.0025, 2.2 + 1.6 * long, 60 + 60 * long


def _add_vessel(
    total: Tensor, x: Tensor, y: Tensor, course: tuple[Tensor, Tensor, Tensor, Tensor], blur: float
) -> None:
    angle, bend, half, length = course
    turn, lean = angle.cos()[:, None], angle.sin()[:, None]
    spread = (half**2 + blur**2).sqrt()  # narrower than a pixel: wider and fainter
    s = 1 / length[:, None]
    along = columns(x * turn * s) + rows(y * lean * s)  # (B, S, S), 0 at the root, 1 at the tip
    across = rows(y * turn / spread[:, None]) - columns(x * lean / spread[:, None])
    across -= along * along * pixels(bend * length**2 / spread)
    line = (1 - across * across).clamp_(0)
    line *= (1 - along).clamp_(0) * (along * 6).clamp_(0, 1)
    total += line * pixels(0.9 * half / spread)


def _carry(texture: Tensor, noise: Noise, rest: list[Grid], lungs: list[Organ]) -> None:
    """Replace what ``texture`` (B, S, S) shows inside the lungs (right, left) by what moves with them."""
    middle = rest[0].x.shape[-1]
    for half, grid, lung in zip((slice(None, middle), slice(middle, None)), rest, lungs, strict=True):
        within = _spanned(lung.cover[:, :, half].amax((0, 2)) > 0)
        window = (slice(None), within, half)
        moved = _texture(noise, Grid(grid.x, grid.y[:, within], grid.pixel))
        texture[window] += lung.cover[window] * (moved - texture[window])


def _texture(noise: Noise, grid: Grid) -> Tensor:
    """Slow variation of the tissue: a sum of plane waves, built from rows and columns, (B, H, W)."""
    total = torch.zeros(len(noise["midline"]), grid.y.shape[-1], grid.x.shape[-1])
    for n in range(WAVES):
        long = 40 + 160 * (n / WAVES) ** 2  # mm
        x = noise["wave_x"][:, n, None] * 6.283 / long * grid.x  # (B, W)
        y = noise["wave_y"][:, n, None] * 6.283 / long * grid.y + 6.283 * noise["wave_phase"][:, n, None]
        total += columns(x.cos()) * rows(y.cos() * long / 100)
        total -= columns(x.sin()) * rows(y.sin() * long / 100)
    return total * pixels(noise["texture"])


def _develop(noise: Noise, attenuation: Tensor, grain: Tensor) -> Tensor:
    """Attenuation -> grey levels: exposure, contrast, gamma, grain, (B, S, S) uint8."""
    light = (attenuation - 0.46) * pixels(noise["contrast"]) + 0.43 + pixels(noise["exposure"])
    light = torch.minimum(light, 3 * attenuation).clamp_(0, 1.6)  # open air stays black
    light = light * (1.38 - 0.38 * light).clamp_(0.6)  # the film's shoulder
    bend = pixels(noise["gamma"])
    light = light * (1 + bend) / (1 + bend * light)
    fine = grain - 0.5
    coarse = (fine + fine.roll(1, 1) + fine.roll(1, 2) + fine.roll((1, 1), (1, 2))) * 0.5
    light = light + coarse * (0.35 + light) * pixels(noise["grain"]) * 3.4641
    return (light * 255).round_().clamp_(0, 255).to(torch.uint8)
