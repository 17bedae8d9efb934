"""Images of any size are edited once, on their own grid."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from segcft.counterfactual.native_resolution import STILL, Canvas, Edit, carry
from segcft.io.resampling import pad_square, resample, resize
from segcft.spatial.diffeomorphism import exponential, jacobian, sharpened, warp, warp_cubic
from segcft.spatial.geometry import Geometry


def smooth(batch, *shape, scale=1.0):
    """A velocity field that rests at the border."""
    torch.manual_seed(0)
    field = torch.randn(batch, len(shape), *[5] * len(shape)) * scale
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
    field = torch.nn.functional.interpolate(field, shape, mode=mode, align_corners=True)
    for axis, n in enumerate(shape):
        ramp = torch.linspace(0, np.pi, n).sin()
        field = field * ramp.view(*[-1 if other == axis else 1 for other in range(len(shape))])
    return field


@pytest.mark.parametrize("shape", [(20, 17), (9, 12, 10)])
def test_cubic_warp_is_the_spline_of_scipy_and_blocks_agree(shape):
    torch.manual_seed(1)
    image, displacement = torch.rand(2, 1, *shape), 2 * torch.randn(2, len(shape), *shape)
    found = warp_cubic(image, displacement)
    points = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")) + displacement[1].numpy()
    wanted = map_coordinates(image[1, 0].double().numpy(), points, order=3, mode="nearest")
    np.testing.assert_allclose(found[1, 0].numpy(), wanted, atol=1e-3)  # beyond the edge the spline is another
    part = tuple(slice(2, n - 3) for n in shape)
    block = warp_cubic(image, displacement[(slice(None), slice(None), *part)], [2] * len(shape))
    torch.testing.assert_close(block, found[(slice(None), slice(None), *part)], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(40, 31), (21, 40, 12)])
def test_nothing_moves_without_an_edit_and_levels_beyond_the_window_stay(shape):
    image, dims = 3 * torch.rand(1, 1, *shape) - 1.5, len(shape)
    canvas = Canvas(image, Geometry(shape, (8,) * dims, (max(shape) / 8,) * dims))
    null = Edit(torch.zeros(1, 1, *[8] * dims), torch.zeros(1, dims, *[8] * dims))
    assert torch.equal(canvas.draw(null), image)
    assert torch.equal(null.apply(canvas.frame), canvas.frame)
    assert torch.equal(carry(null, image, canvas.geometry), image)


def test_only_what_moves_changes_and_inverse_after_forward_is_the_identity():
    shape = (96, 80)
    ramp = torch.linspace(0, 6, 96)[:, None].sin() * torch.linspace(0, 5, 80).cos()
    canvas = Canvas(ramp[None, None] * 0.9, Geometry.of(shape, (24, 20)))
    velocity = torch.zeros(1, 2, 24, 20)
    velocity[:, :, 6:14, 5:12] = smooth(1, 8, 7)
    edit, back = (Edit(torch.zeros(1, 1, 24, 20), sign * velocity) for sign in (1, -1))
    moved = canvas.draw(edit)
    still = canvas.geometry.enlarge(exponential(velocity) * 4).abs().amax(1, keepdim=True) < STILL
    assert torch.equal(moved[still], canvas.image[still])
    assert (moved - canvas.image).abs().max() > 0.05
    returned = Canvas(moved, canvas.geometry).draw(back)
    assert (returned - canvas.image).abs().mean() < 0.3 * (moved - canvas.image).abs().mean()
    assert (torch.linalg.det(jacobian(exponential(velocity))) > 0).all(), "no folds"


def test_the_answer_at_any_size_is_the_same_answer():
    """An image drawn at two sizes and edited shows the same to the model, to the pixel's fraction."""
    edit = Edit(torch.zeros(1, 1, 32, 32), smooth(1, 32, 32, scale=2))
    seen = []
    for size in (64, 256):
        at = (torch.arange(size) + 0.5) / size
        image = (7 * at[:, None] + 2).sin() * (5 * at).cos()
        seen.append(Canvas(image[None, None], Geometry.of((size, size), (32, 32))).seen(edit))
    assert (seen[0] - seen[1]).abs().mean() < 0.003


def test_masks_move_along_and_keep_the_size_that_the_flow_gives_them():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 10:22, 8:20] = 1
    edit = Edit(torch.zeros(1, 1, 32, 32), smooth(1, 32, 32, scale=2))
    small = edit.carry(mask).mean()
    geometry = Geometry.of((160, 160), (32, 32))
    large = carry(edit, torch.nn.functional.interpolate(mask, (160, 160)), geometry)
    assert abs(float((large > 0.5).float().mean() - small)) < 0.005
    assert abs(float(small - mask.mean())) > 0.01


def test_an_edit_is_chosen_subject_by_subject_and_averaged_over_particles():
    edits = [Edit(torch.full((4, 1, 6, 6), value), torch.full((4, 2, 6, 6), value)) for value in (1.0, 3.0)]
    chosen = edits[0].where(torch.tensor([True, False, True, False]), edits[1])
    assert chosen.paint[:, 0, 0, 0].tolist() == chosen.velocity[:, 1, 2, 3].tolist() == [1, 3, 1, 3]
    assert chosen.mean(2).paint[:, 0, 0, 0].tolist() == [2, 2]


@pytest.mark.parametrize(("shape", "size"), [((40, 31), 16), ((31, 40), 16), ((12, 9), 16)])
def test_frame_and_image_share_their_centre(shape, size):
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    geometry = Geometry(shape, (size, size), (max(shape) / size,) * 2)
    drawn = geometry.shrink(torch.from_numpy(image).float()[None, None])[0, 0].numpy()
    np.testing.assert_allclose(drawn, resample(image, (size, size), geometry.steps), atol=1e-3)
    if size < max(shape) and not (max(shape) - min(shape)) % 2:
        assert np.abs(drawn - resize(pad_square(image), size)).max() <= 1
    assert (geometry.enlarge(torch.ones(1, 1, size, size)) - 1).abs().max() < 1e-6
    ramp = torch.arange(size, dtype=torch.float32)[:, None].expand(size, size)
    rows = geometry.enlarge(ramp[None, None])[0, 0, :, 0].numpy()
    wanted = (np.arange(shape[0]) + 0.5 - shape[0] / 2) / geometry.steps[0] + (size - 1) / 2
    inside = (wanted > 1.5) & (wanted < size - 2.5)
    np.testing.assert_allclose(rows[inside], wanted[inside], atol=1e-4 if geometry.steps[0] >= 1 else 0.1)


@pytest.mark.parametrize("dims", [2, 3])
def test_paint_survives_the_way_to_a_finer_grid_and_back(dims):
    shape, frame = (64, 50, 40)[:dims], (16,) * dims
    geometry = Geometry(shape, frame, (4.0,) * dims)
    wanted = torch.zeros(1, 1, *frame)
    wanted[(..., *[slice(5, 9)] * dims)] = 1
    inside = geometry.shrink(torch.ones(1, 1, *shape)) > 0.999
    drawn, plain = (
        (geometry.shrink(large) - wanted)[inside].abs().mean()
        for large in (geometry.restore(wanted), geometry.enlarge(wanted))
    )
    assert 0 < drawn < 0.6 * plain
    canvas = Canvas(torch.zeros(1, 1, *shape), geometry)
    assert not canvas.draw(Edit(0.01 * wanted)).any(), "haze is dropped"


def test_a_preview_is_smaller_and_shows_the_same():
    canvas = Canvas(torch.rand(1, 1, 1024, 600), Geometry((1024, 600), (64, 64), (16.0, 16.0)))
    preview = canvas.preview()
    assert preview.geometry.shape == (512, 300)
    torch.testing.assert_close(preview.frame, canvas.frame, atol=1e-5, rtol=0)


def test_warping_nothing_is_bitwise_nothing():
    image = torch.rand(2, 3, 11, 13)
    assert torch.equal(warp(image, torch.zeros(2, 2, 11, 13)), image)
    assert torch.equal(warp_cubic(image, torch.zeros(2, 2, 11, 13)), image)


def test_fine_detail_that_interpolation_takes_is_given_back_and_nothing_is_added_elsewhere():
    torch.manual_seed(0)
    noise, shift = torch.randn(1, 1, 64, 64), torch.zeros(1, 2, 64, 64)
    assert torch.equal(sharpened(noise, shift), noise), "nothing was taken"
    shift[:, 1] = 0.5
    plain = warp_cubic(noise, shift)
    given = sharpened(plain, shift)
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    before, without, after = (float(each[inside].var()) for each in (noise, plain, given))
    assert without < 0.9 * before
    assert without < after < before
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    torch.testing.assert_close(sharpened(ramp, shift)[..., 4:-4], ramp[..., 4:-4])  # what is smooth stays
