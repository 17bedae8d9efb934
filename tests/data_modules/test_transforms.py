"""Transforms: geometry against arithmetic, and augmentation that keeps image and mask together."""

import numpy as np
import pytest
import torch

from data_modules.common.transforms import Augmentation, to_signed
from segcft.io.resampling import field_of_view, pad_square, resize

STILL = dict.fromkeys(("rotate", "scale", "translate", "brightness", "contrast", "gamma"), 0.0)


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright disc right of the centre on dark ground, its mask, and a full field of view, 64 x 64."""
    y, x = np.mgrid[:64, :64]
    disc = ((x - 42) ** 2 + (y - 30) ** 2 < 100).astype(np.uint8)
    return 40 + 160 * disc, disc[None], np.ones((64, 64), np.uint8)


def test_padding_is_centred() -> None:
    wide = np.full((2, 5), 7, np.uint8)
    np.testing.assert_array_equal(pad_square(wide).sum(1), [0, 35, 35, 0, 0])
    np.testing.assert_array_equal(pad_square(wide.T), pad_square(wide).T)


@pytest.mark.parametrize("shape", [(80, 64), (64, 80), (64, 64)])
def test_field_of_view_is_the_padded_frame(shape: tuple[int, int]) -> None:
    field = field_of_view(np.array(shape), 32)
    np.testing.assert_array_equal(field, resize(pad_square(np.full(shape, 255, np.uint8)), 32) >= 128)


def test_shrinking_takes_the_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    mean = image.reshape(8, 4, 8, 4).mean((1, 3))
    np.testing.assert_allclose(resize(image, 8), mean, atol=0.51)
    assert resize(image, 48).shape == (48, 48)


def test_grey_levels_become_even_steps_from_minus_one_to_one() -> None:
    grey = torch.arange(256, dtype=torch.uint8)
    assert to_signed(grey).min() == -1
    assert to_signed(grey).max() == 1
    torch.testing.assert_close(to_signed(grey).diff(), torch.full((255,), 2 / 255))


def test_no_strength_changes_nothing() -> None:
    image, masks, field = scene()
    drawn, moved = Augmentation(**STILL)(image, masks, field, seed=3)
    np.testing.assert_array_equal(drawn, image)
    np.testing.assert_array_equal(moved, masks)


def test_a_seed_decides_the_draw() -> None:
    image, masks, field = scene()
    augment = Augmentation()
    first, again, other = (augment(image, masks, field, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.2


@pytest.mark.parametrize("seed", range(20))
def test_image_and_mask_move_together_and_never_mirror(seed: int) -> None:
    image, masks, field = scene()
    image = image * (np.arange(64)[None] > 2)  # a frame edge that a mirror image would move to the right
    augment = Augmentation(rotate=12, scale=0.2, translate=0.08, brightness=0.1, contrast=0.2, gamma=0.3)
    drawn, (mask,) = augment(image.astype(np.uint8), masks, field, seed)
    bright = drawn > (int(drawn[mask == 1].min()) + int(np.median(drawn))) / 2
    assert 2 * (bright & (mask == 1)).sum() / (bright.sum() + mask.sum()) > 0.93
    assert set(np.unique(mask)) == {0, 1}
    assert (mask.sum(0) @ np.arange(64)) / mask.sum() > 34  # the disc stays right of the middle


def test_pose_changes_areas_and_tone_does_not() -> None:
    image, masks, field = scene()
    tone = Augmentation(**{**STILL, "brightness": 0.3, "contrast": 0.3, "gamma": 0.3})
    pose = Augmentation(**{**STILL, "scale": 0.3})
    toned = [tone(image, masks, field, seed) for seed in range(8)]
    posed = [pose(image, masks, field, seed) for seed in range(8)]
    assert all((mask == masks).all() for _, mask in toned)
    assert np.std([drawn.mean() for drawn, _ in toned]) > 5
    areas = np.array([mask.sum() for _, mask in posed]) / masks.sum()
    assert areas.min() < 0.85
    assert areas.max() > 1.15


def test_padding_stays_black() -> None:
    image, masks, _ = scene()
    field = field_of_view(np.array([40, 64]), 64)
    bright = Augmentation(**{**STILL, "brightness": 0.5})
    drawn = [bright(image * field, masks * field, field, seed)[0] for seed in range(5)]
    assert all((frame[field == 0] == 0).all() for frame in drawn)
    assert max(int(frame[20, 5]) for frame in drawn) > 60


def test_strengths_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rotate = 90 must lie in \[0, 45\]"):
        Augmentation(rotate=90)
    with pytest.raises(ValueError, match=r"gamma = -0\.1"):
        Augmentation(gamma=-0.1)
