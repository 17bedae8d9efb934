"""Rendering of the chest phantom's film: attenuation summed along the beam, then exposure, grain and 256 levels.

See ``anatomy`` for the conventions. The film depends on the areas only through the three organs and the reference
position of the tissue at every pixel. Positions broadcast: full images where tissue is displaced, single rows and
columns where nothing moves. The detector's grain never moves.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from data_modules.chest.anatomy import VESSELS, WAVES, Grid, Noise, Organ, pixels, step, swell
from data_modules.chest.tissue import Rest, sides


def film(
    noise: Noise, organs: list[Organ], sex: Tensor, age: Tensor, grain: Tensor, still: Rest, moving: Rest
) -> Tensor:
    """Render one film per subject.

    Args:
        noise: Exogenous variables, (B,) or (B, n) float64 each.
        organs: Left lung, right lung, heart.
        sex: 0 female, 1 male, (B,) float64.
        age: Years, (B,) float64.
        grain: Uniform noise in [0, 1), (B, S, S) float32.
        still: Reference positions of the tissue.
        moving: Reference positions of ribs, lung vessels and lung texture; may be ``still``.

    Returns:
        Grey levels, air 0 and bone bright, (B, S, S) uint8.
    """
    left, right, heart = organs
    bare = Rest.of(Grid.of_size(grain.shape[-1]))  # the spine is never displaced
    calcium = 1.15 - 0.006 * (age - 20)  # bone fades with age, (B,)
    cage = noise["rib_contrast"] * calcium
    vessels = _sided(_vessels, noise, moving, grain) * pixels(noise["vessel_tone"])  # (B, S, S)
    behind = 1 - 0.70 * heart.cover * (0.6 + 0.4 * heart.thickness)  # the heart displaces air
    air = (left.cover * left.thickness + right.cover * right.thickness) * (1 - vessels) * behind
    body = _body(noise, still)  # (B, S, S), 1 in the chest
    air = air * body.clamp(max=1)
    ribs = _sided(_rib_side, noise, moving, grain)
    bones = (ribs + 2.1 * _clavicles(noise, still) + _shoulders(noise, still)) * pixels(cage)
    solid = 0.64 * body + _breasts(noise, sex, still) + bones * body
    solid = solid + (_mediastinum(noise, age, still) + _spine(noise, calcium, bare)) * (1 - 0.6 * heart.cover)
    solid = solid + 0.12 * heart.cover * (0.35 + 0.65 * heart.thickness)
    solid = solid - _stomach(noise, still) * (1 - left.cover) * (1 - 0.7 * heart.cover)
    texture = _texture(noise, still)
    if moving is not still:
        texture = texture + (left.cover + right.cover) * (_texture(noise, moving) - texture)
    return _develop(noise, solid - pixels(noise["air"]) * air + texture * solid, grain)


def _sided(draw: Callable[[Noise, int, Rest], Tensor], noise: Noise, rest: Rest, grain: Tensor) -> Tensor:
    """Draw the right and the left side, neither crossing the midline, into one image (B, S, S)."""
    total = torch.zeros_like(grain)
    for side, at in enumerate(sides(grain.shape[-1])):
        total[:, :, at] += draw(noise, side, rest.window(slice(None), at))
    return total


def _body(noise: Noise, rest: Rest) -> Tensor:
    """Soft tissue of neck, shoulders, chest and abdomen; the chest is 1, (B, S, S)."""
    y, neck, chest = rest.y, pixels(noise["neck"]), pixels(noise["chest_width"])
    slope = ((y - pixels(noise["shoulder_y"] - 62)) * (1 / 74)).clamp_(0, 1)  # the trapezius, from neck to shoulder
    armpit = ((y - 120) * (1 / 78)).clamp_(0, 1)
    shoulder = neck + (222 - neck) * (0.25 * slope + 0.75 * slope * slope * slope)
    half = shoulder + (chest - shoulder) * (armpit * armpit * (3 - 2 * armpit)) + 0.06 * (y - 260).clamp_(0)
    depth = half - (rest.x - pixels(noise["midline"])).abs()  # (B, S, S)
    thick = 0.98 + swell(y - 215, 110) * pixels(noise["abdomen"]) + 0.05 * (1 - (y / 90).clamp_(0, 1))
    return step(depth, rest.blur * 1.2) * (0.28 + 0.72 * swell(depth, 80)) * thick


def _breasts(noise: Noise, sex: Tensor, rest: Rest) -> Tensor:
    """No upper border, a crescent below, (B, S, S)."""
    size = noise["breast_size"]
    total = torch.zeros(())
    for side, sign in enumerate((-1.0, 1.0)):
        x = (rest.x - pixels(sign * noise["breast_x"][:, side])) * pixels(1 / (1.08 * size))
        y = (rest.y - pixels(noise["breast_y"][:, side])) * pixels(1 / size)
        total = total + swell(1 - x * x - y * y, 0.55) * (0.6 + 0.5 * y).clamp_(0, 1)
    return total * pixels(noise["breast_tissue"] * (1 - sex))


def _rib_side(noise: Noise, side: int, rest: Rest) -> Tensor:
    """Posterior ribs falling laterally, and fainter anterior ends falling medially, of one side, (B, H, W)."""
    x, y, pitch = _lateral(noise, side, rest), rest.y, noise["rib_pitch"]
    drop, cage, phase = (pixels(noise[name][:, side]) for name in ("rib_drop", "rib_cage", "rib_phase"))
    wall = 0.40 + 0.60 * (1 - _power(1 - ((y - 36) * (1 / 190)).clamp_(0, 1)))  # the cage widens downwards
    out = x / (cage * wall)  # (B, H, W), 1 at the chest wall
    arch = out * (out * out * 0.75 + 0.25) * drop - out * (1 - out) * 16  # mm
    shift = y * pixels(1 / pitch) + phase
    posterior = _bars(shift - arch * pixels(1 / pitch), pixels(pitch), 6.2, rest.blur)
    front = (1 - out) * pixels(58 / pitch)
    anterior = _bars(shift * 0.94 + 0.5 - front, pixels(pitch), 7.0, rest.blur)
    lower = (1 - 0.8 * ((y - 215) * (1 / 60)).clamp_(0, 1)) * (1 - ((y - 285) * (1 / 30)).clamp_(0, 1))
    edge = ((1.04 - out) * 12).clamp_(0, 1)
    ends = edge * ((out - 0.42) * 4).clamp_(0, 1) * ((y - 84) * (1 / 30)).clamp_(0, 1)
    lit = posterior * edge * (1 + 0.5 * out * out) + 0.45 * anterior * ends
    lit *= ((y - 42) * (1 / 12)).clamp_(0, 1) * lower
    return lit * ((x - 8) * (1 / 14)).clamp_(0, 1)  # clear of the spine


def _lateral(noise: Noise, side: int, rest: Rest) -> Tensor:
    """Distance from the subject's midline, positive on its side, mm."""
    middle = pixels(noise["midline"])
    return rest.x - middle if side else middle - rest.x


def _power(t: Tensor) -> Tensor:
    """``t`` ** 2.2, within 6e-4, by square roots, which round alike everywhere."""
    eighth = t.sqrt().sqrt_().sqrt_()
    half = eighth.sqrt()
    return t * t * eighth * half * half.sqrt().sqrt_()


def _bars(turns: Tensor, pitch: Tensor, half: float, blur: float) -> Tensor:
    """A bright bar with brighter cortex once a turn, of half width ``half`` mm, (B, S, S)."""
    off = (turns - turns.floor() - 0.5).abs_() * pitch  # mm from the bar's middle
    cortex = (1 - (off - half + 1.5).abs_() / blur).clamp_(0, 1)
    return step(half - off, blur) * 0.8 + cortex * min(0.45, 1.2 / blur)


def _clavicles(noise: Noise, rest: Rest) -> Tensor:
    total = torch.zeros(())
    for side in (0, 1):
        x = _lateral(noise, side, rest)
        t = ((x - 14) * (1 / 150)).clamp_(-0.2, 1.3)
        rise, top = pixels(noise["clavicle_rise"][:, side]), pixels(noise["clavicle_y"][:, side])
        middle = top - rise * t - 10 * _cosine(t - 0.25) * (1 - 0.5 * t)  # an S
        half = 5.6 + 3.0 * (1 - t / 0.3).clamp_(0, 1) + 1.5 * (t - 0.7).clamp_(0)
        depth = half - (rest.y - middle).abs_()
        total = total + step(depth, rest.blur) * (1 - 0.3 * swell(depth, 6)) * ((x - 10) * (1 / 7)).clamp_(0, 1)
    return total


def _shoulders(noise: Noise, rest: Rest) -> Tensor:
    """Heads of the humeri and blades of the scapulae, (B, S, S)."""
    total = torch.zeros(())
    for side in (0, 1):
        x = _lateral(noise, side, rest)
        top = rest.y - pixels(noise["clavicle_y"][:, side] - noise["clavicle_rise"][:, side])
        across, down, low = (x - 182) * (1 / 25), (top - 22) * (1 / 27), (top - 75) * (1 / 75)
        head = 1 - across * across - down * down  # (B, S, S)
        border = x - (112 + 0.22 * (top - 20) - 10 * low * low)  # mm, medial border
        tip = (5 - (top - 72).abs_() * (5 / 74)).clamp_(0, 1)  # of the blade, above and below
        blade = step(border, rest.blur + 1) * (1 - swell(border - 4, 50)) * tip
        total = total + 0.9 * swell(head, 1.0) + 0.8 * blade
    return total


def _mediastinum(noise: Noise, age: Tensor, rest: Rest) -> Tensor:
    """Great vessels and the aortic knob, which swells with age, less the trachea, (B, S, S)."""
    y, x = rest.y, rest.x - pixels(noise["midline"])
    bend = (y - pixels(noise["knob_y"])) * (1 / 19)
    bump = (1 - bend * bend).clamp_(0)
    knob = pixels(noise["knob"] + 0.14 * (age - 20)) * bump * (2 - bump)
    low = ((y - 118) * (1 / 70)).clamp_(0, 1)
    wider = low * low * 8 + 7 * (1 - ((y - 40) * (1 / 60)).clamp_(0, 1))
    right, left = pixels(noise["mediastinum"][:, 0]), pixels(noise["mediastinum"][:, 1])
    depth = torch.minimum(left + knob - x, x + right) + wider  # (B, S, S)
    seen = ((y - 30) * (1 / 40)).clamp_(0, 1) * (1 - 0.75 * ((y - 190) * (1 / 70)).clamp_(0, 1))
    veil = step(depth, 7 + rest.blur) * (0.6 + 0.4 * swell(depth, 30)) * (seen * 0.16)
    tube = step(9.5 - (x - pixels(noise["trachea"])).abs_(), 5 + rest.blur)
    return veil - tube * (0.10 * (1 - ((y - 120) * (1 / 25)).clamp_(0, 1)))


def _spine(noise: Noise, calcium: Tensor, rest: Rest) -> Tensor:
    """A column of vertebrae with end plates, pedicles and spinous processes, (B, S, S)."""
    y, x, high = rest.y, (rest.x - pixels(noise["midline"])).abs(), noise["vertebra"]
    spine = pixels(noise["spine"])
    turn = y * pixels(1 / high) * (1.1 - 0.0005 * y) + pixels(noise["vertebra_phase"])
    off = (turn - turn.floor() - 0.5).abs_() * pixels(high)  # mm from a vertebra's middle
    disc = ((off - pixels(0.38 * high)) / 3).clamp_(0, 1)
    depth = spine * (0.85 + 0.00075 * y) * (0.90 + 0.10 * disc) - x
    bone = step(depth, rest.blur) * (0.7 + 0.3 * swell(depth, 12)) * (0.10 - 0.045 * disc)
    beside, behind = (x - 0.62 * spine) * (1 / 4.5), x * (1 / 4.5)
    pedicle = (1 - beside * beside).clamp_(0) * (1 - off / 6).clamp_(0)
    process = (1 - behind * behind).clamp_(0) * (1 - (off - 8).abs_() / 5).clamp_(0)
    seen = ((y - 8) / 20).clamp_(0, 1) * (0.80 + 0.0006 * y)
    return (bone + 0.045 * pedicle + 0.04 * process) * seen * pixels(calcium)


def _stomach(noise: Noise, rest: Rest) -> Tensor:
    """The gas bubble under the left diaphragm; two of three subjects show one, (B, S, S)."""
    x = (rest.x - pixels(noise["stomach_x"])) * (1 / 30)
    y = (rest.y - pixels(noise["stomach_y"])) * (1 / 17)
    return swell(1 - x * x - y * y, 0.9) * pixels(0.20 * noise["stomach"].clamp(0))


def _vessels(noise: Noise, side: int, rest: Rest) -> Tensor:
    """Vessels of one lung leaving the hilum and their branches, as a share of the air they replace, (B, H, W)."""
    within = _spanned(((rest.y > 30) & (rest.y < 290)).any(2).any(0))  # none reaches further
    x, y = _lateral(noise, side, rest.window(within, slice(None))) - 40, rest.window(within, slice(None)).y - 160
    total = 0.55 * swell(1 - _square(x / 24) - _square((y - 4) / 38), 1.0)
    many = VESSELS // 2
    for n in range(many):
        trunk = _vessel_course(noise, side * VESSELS, n, many)
        _add_vessel(total, x, y, trunk, rest.blur)
        angle, bend, half, length = _vessel_course(noise, side * VESSELS + many, n, many)
        turned = trunk[0] + torch.where(angle > trunk[0], 0.5, -0.5)
        fork_x, fork_y = (pixels(0.3 * trunk[3] * part) for part in (trunk[0].cos(), trunk[0].sin()))
        _add_vessel(total, x - fork_x, y - fork_y, (turned, bend, 0.7 * half, 0.75 * length), rest.blur)
    tree = torch.zeros(len(total), rest.y.shape[1], total.shape[2])
    tree[:, within] = total.clamp_(0, 1)
    return tree


def _square(t: Tensor) -> Tensor:
    return t * t


def _spanned(some: Tensor) -> slice:
    """From the first to the last true entry, (S,) bool; nothing if there is none."""
    at = some.nonzero()[:, 0].tolist()
    return slice(at[0], at[-1] + 1) if at else slice(0, 0)


def _vessel_course(noise: Noise, first: int, n: int, of: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Angle below the horizontal, bend, half width (mm) and length (mm) of one vessel, (B,) each."""
    spread = (n + 0.5) / of * 2 - 1 + noise["vessel_angle"][:, first + n] / of
    long = noise["vessel_length"][:, first + n]
    return 1.35 * spread, noise["vessel_bend"][:, first + n] * 0.0025, 2.2 + 1.6 * long, 60 + 60 * long


def _add_vessel(
    total: Tensor, x: Tensor, y: Tensor, course: tuple[Tensor, Tensor, Tensor, Tensor], blur: float
) -> None:
    angle, bend, half, length = course
    turn, lean = angle.cos(), angle.sin()
    spread = (half**2 + blur**2).sqrt()  # narrower than a pixel: wider and fainter
    along = x * pixels(turn / length) + y * pixels(lean / length)  # (B, H, W), 0 at the root, 1 at the tip
    across = y * pixels(turn / spread) - x * pixels(lean / spread)
    across -= along * along * pixels(bend * length**2 / spread)
    line = (1 - across.mul_(across)).clamp_(0)
    line *= (1 - along).clamp_(0) * (along * 6).clamp_(0, 1)
    total += line.mul_(pixels(0.9 * half / spread))


def _texture(noise: Noise, rest: Rest) -> Tensor:
    """Slow variation of the tissue: a sum of plane waves, (B, S, S)."""
    total = torch.zeros(())
    for n in range(WAVES):
        long = 40 + 160 * (n / WAVES) ** 2  # mm
        turns = rest.x * pixels(noise["wave_x"][:, n] / long)
        turns = turns + (rest.y * pixels(noise["wave_y"][:, n] / long) + pixels(noise["wave_phase"][:, n]))
        total = total + _cosine(turns, long / 100)
    return total * pixels(noise["texture"])


def _cosine(turns: Tensor, height: float = 1.0) -> Tensor:
    """Cosine of so many turns, times ``height``, within 4e-5: a polynomial, which rounds alike everywhere."""
    t = turns - turns.round()
    t *= t
    total = t * (COSINE[4] * height)
    for weight in COSINE[3:0:-1]:
        total = total.add_(weight * height).mul_(t)
    return total.add_(COSINE[0] * height)


COSINE = (0.99995979, -19.7310408, 64.67341001, -82.40340388, 45.64624749)  # of the squared turns, within half a turn


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
