"""Laws of what is measured on structures: analytic shapes, translation, scale, hard masks, empty masks."""

import math

import pytest
import torch

from segcft.variables.measurements import (
    MEASUREMENTS,
    area,
    boundary,
    centroid,
    elongation,
    extent,
    intensity,
    orientation,
    shape_descriptors,
    spread,
    texture,
)

DIMS = pytest.mark.parametrize("dims", [2, 3])
SPACING = [3.0, 1.5, 2.0]  # z, y, x


def grid(frame, spacing):
    """Pixel centres, mm from the first edge, slowest axis first."""
    axes = [(torch.arange(n) + 0.5) * s for n, s in zip(frame, spacing, strict=True)]
    return torch.meshgrid(*axes, indexing="ij")


def ellipsoid(frame, spacing, centre, radii):
    """Hard mask (1, 1, *S)."""
    parts = zip(grid(frame, spacing), centre, radii, strict=True)
    return (sum(((at - c) / r) ** 2 for at, c, r in parts) <= 1).float()[None, None]


def ball(dims, spacing=None, side=24):
    spacing = spacing or SPACING[-dims:]
    return ellipsoid([side] * dims, spacing, [side / 2 * s for s in spacing], [7 * s for s in spacing])


def offered(dims):
    return {name: entry.function for name, entry in MEASUREMENTS.items() if dims in entry.units}


def measure(name, mask, spacing, image=None):
    return float(MEASUREMENTS[name].function(mask, torch.zeros_like(mask) if image is None else image, spacing))


def test_a_disc_measures_what_geometry_says():
    mask = ellipsoid([64, 64], [1.0, 1.0], [30.0, 36.0], [20.0, 20.0])
    assert measure("area", mask, [1, 1]) == pytest.approx(math.pi * 400, rel=0.01)
    assert measure("centroid_x", mask, [1, 1]) == pytest.approx(36, abs=1e-3)
    assert measure("centroid_y", mask, [1, 1]) == pytest.approx(30, abs=1e-3)
    assert measure("width", mask, [1, 1]) == pytest.approx(40, abs=1)
    assert measure("spread_x", mask, [1, 1]) == pytest.approx(10, rel=0.01)
    assert measure("boundary", mask, [1, 1]) == pytest.approx(2 * math.pi * 20, rel=0.03)
    assert measure("elongation", mask, [1, 1]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("angle", [-60, 0, 30, 80])
def test_an_ellipse_has_its_elongation_and_orientation_at_any_spacing(angle):
    spacing, turn = [0.5, 1.0], math.radians(angle)
    y, x = (at - 32 for at in grid([128, 64], spacing))
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    mask = ((along / 24) ** 2 + (across / 8) ** 2 <= 1).float()[None, None]
    assert measure("elongation", mask, spacing) == pytest.approx(3, rel=0.03)
    assert measure("orientation", mask, spacing) == pytest.approx(angle, abs=1)


def test_a_ball_has_its_surface_and_volume():
    mask = ellipsoid([32, 32, 32], [1.0] * 3, [16.0] * 3, [11.0] * 3)
    assert measure("area", mask, [1] * 3) == pytest.approx(4 / 3 * math.pi * 11**3, rel=0.02)
    assert measure("boundary", mask, [1] * 3) == pytest.approx(4 * math.pi * 121, rel=0.03)
    assert measure("depth", mask, [1] * 3) == pytest.approx(22, abs=1)
    assert measure("spread_z", mask, [1] * 3) == pytest.approx(11 / math.sqrt(5), rel=0.02)


@DIMS
def test_a_box_is_exactly_as_wide_as_its_pixels(dims):
    spacing, mask = SPACING[-dims:], torch.zeros(1, 1, *[10] * dims)
    mask[(..., *[slice(2, 6)] * dims)] = 1
    for axis, step in zip("xyz", reversed(spacing), strict=False):
        assert float(extent(mask, mask, spacing, axis)) == pytest.approx(4 * step, rel=1e-5)
        assert float(spread(mask, mask, spacing, axis)) == pytest.approx(4 * step / math.sqrt(12), rel=1e-5)
        assert float(centroid(mask, mask, spacing, axis)) == pytest.approx(4 * step, rel=1e-5)


@DIMS
def test_translation_moves_the_centroid_and_nothing_else(dims):
    spacing, mask = SPACING[-dims:], ball(dims)
    image = torch.rand(mask.shape) * mask
    for name, function in offered(dims).items():
        before = function(mask, image, spacing)
        after = function(mask.roll(3, -1), image.roll(3, -1), spacing)
        moved = 3 * spacing[-1] if name == "centroid_x" else 0.0
        torch.testing.assert_close(after, before + moved, rtol=1e-4, atol=1e-4, msg=name)


@DIMS
def test_spacing_scales_lengths_and_leaves_ratios_alone(dims):
    mask, image = ball(dims), torch.rand(1, 1, *[24] * dims)
    powers = {"mm": 1, "mm^2": 2, "mm^3": 3}
    for name, function in offered(dims).items():
        before, after = (function(mask, image, [s * f for s in SPACING[-dims:]]) for f in (1.0, 2.0))
        scale = 2 ** powers.get(MEASUREMENTS[name].units[dims], 0)
        torch.testing.assert_close(after, before * scale, rtol=1e-4, atol=1e-4, msg=name)


def test_intensity_and_texture_look_at_the_structure_alone():
    mask = ball(2)
    flat = torch.where(mask > 0, 0.5, -1.0)
    assert measure("intensity", mask, SPACING[-2:], flat) == pytest.approx(0.5)
    assert measure("texture", mask, SPACING[-2:], flat) == pytest.approx(0, abs=1e-5)
    noise = flat + 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    assert 0.005 < float(texture(mask, noise, SPACING[-2:])) < 0.012  # somewhat less than 0.01: few pixels


@DIMS
def test_hard_boolean_and_soft_masks_measure_alike(dims):
    mask, image = ball(dims), torch.rand(1, 1, *[24] * dims)
    soft = torch.sigmoid((mask - 0.5) * 40)
    for name, function in offered(dims).items():
        hard = function(mask, image, SPACING[-dims:])
        torch.testing.assert_close(function(mask.bool(), image, SPACING[-dims:]), hard, msg=name)
        torch.testing.assert_close(function(soft, image, SPACING[-dims:]), hard, rtol=1e-3, atol=1e-3, msg=name)


def test_a_thousand_faint_pixels_are_no_structure():
    faint = torch.full((1, 1, 16, 16, 16), 0.005)
    assert float(extent(faint, faint, [1] * 3, "x")) < 0.2


@DIMS
@pytest.mark.parametrize("fill", ["empty", "faint", "pixel", "ball", "full"])
def test_every_measurement_has_finite_values_and_gradients(dims, fill):
    frame = [24] * dims
    mask = {"empty": torch.zeros(1, 2, *frame), "faint": torch.full((1, 2, *frame), 1e-6)}.get(fill)
    if mask is None:
        mask = torch.zeros(1, 2, *frame) if fill == "pixel" else ball(dims).repeat(1, 2, *[1] * dims)
        mask = torch.ones(1, 2, *frame) if fill == "full" else mask
        mask[(..., *[5] * dims)] = 1
    image = torch.rand(1, 1, *frame).requires_grad_()
    for name, function in offered(dims).items():
        soft = mask.clone().requires_grad_()
        value = function(soft, image, SPACING[-dims:])
        (gradient,) = torch.autograd.grad(value.sum(), soft, allow_unused=True)
        assert value.isfinite().all(), name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() < 1e6, name


def test_gradients_agree_with_finite_differences():
    mask = (0.2 + 0.6 * torch.rand(1, 1, 6, 5)).double()
    image = torch.rand(1, 1, 6, 5)
    for name, function in offered(2).items():
        soft = mask.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(soft, image, [2.0, 1.5]).sum(), soft)
        step = torch.zeros_like(mask)
        step[0, 0, 2, 3] = 1e-2
        numeric = float(function(mask + step, image, [2.0, 1.5]) - function(mask - step, image, [2.0, 1.5])) / 2e-2
        assert float(gradient[0, 0, 2, 3]) == pytest.approx(numeric, rel=0.02, abs=2e-3), name


@DIMS
def test_shape_descriptors_go_structure_by_structure(dims):
    spacing = SPACING[-dims:]
    mask = torch.cat([ball(dims), ball(dims).roll(2, -1)], 1)
    found = shape_descriptors(mask, spacing).view(2, 2, dims)  # structure, centroid or spread, axis
    for k in range(2):
        for n, axis in enumerate("xyz"[:dims]):
            assert float(found[k, 0, n]) == pytest.approx(float(centroid(mask, mask, spacing, axis)[0, k]))
            assert float(found[k, 1, n]) == pytest.approx(float(spread(mask, mask, spacing, axis)[0, k]))


def test_wrong_dimensions_are_refused():
    mask = ball(3)
    for function in (area, boundary, texture, intensity):
        with pytest.raises(ValueError, match="one entry for each of the 3 spatial axes"):
            function(mask, mask, [1.0, 1.0])
    for function in (elongation, orientation):
        with pytest.raises(ValueError, match="2-D masks"):
            function(mask, mask, [1.0] * 3)
    with pytest.raises(ValueError, match="no axis z"):
        centroid(ball(2), ball(2), [1.0] * 2, "z")
