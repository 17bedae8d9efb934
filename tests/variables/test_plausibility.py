"""A foreign picture is doubted before its numbers are believed; an image like those of training is not."""

import pytest
import torch
import torch.nn.functional as F

from data_modules.chest_phantom import ChestPhantom
from segcft.core.recipes import build
from segcft.variables.plausibility import Profile, characteristics, doubts

STRUCTURES = ["left_lung", "right_lung", "heart"]


@pytest.fixture(scope="module")
def phantom():
    """Profile of 96 training films, and 64 test films."""
    data = ChestPhantom(subjects={"train": 96, "val": 1, "test": 64})
    train, test = data.dataset("train"), data.dataset("test")
    batches = [train.read(part) for part in torch.split(torch.arange(96), 32)]
    profile = Profile.of(characteristics(batch["image"], batch["mask"], STRUCTURES) for batch in batches)
    return profile, test.read(torch.arange(64))


def doubted(profile, images, masks):
    return [
        doubts(image, mask, STRUCTURES, profile) for image, mask in zip(images.split(1), masks.split(1), strict=True)
    ]


@pytest.mark.parametrize("known", [True, False])
def test_films_of_the_same_kind_are_not_doubted(phantom, known):
    profile, test = phantom
    assert doubted(profile if known else None, test["image"], test["mask"]) == [[]] * 64


def test_an_augmented_film_is_not_doubted(phantom):
    """A little darker, of less contrast, moved by two pixels of 64, with a little noise."""
    profile, test = phantom
    noise = 0.02 * torch.randn(test["image"].shape, generator=torch.Generator().manual_seed(0))
    images = (0.9 * torch.roll(test["image"], 2, 3) - 0.05 + noise).clamp(-1, 1)
    assert doubted(profile, images, torch.roll(test["mask"], 2, 3)) == [[]] * 64


def noise(image):
    return torch.rand(image.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def checks(image):
    place = torch.arange(image.shape[-1]) // 2
    return ((place[:, None] + place) % 2 * 2.0 - 1).expand_as(image)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda image: torch.full_like(image, 0.3), "the image is nearly constant"),
        (lambda image: 0.3 + 0.01 * image, "standard deviation"),
        (noise, "looks like noise"),
        (lambda image: 0.2 * noise(image), "looks like noise"),
        (checks, "looks like noise"),
    ],
)
def test_drawn_pictures_are_doubted(phantom, known, draw, sentence):
    profile, test = phantom
    for found in doubted(profile if known else None, draw(test["image"][:8]), test["mask"][:8]):
        assert any(sentence in each for each in found)


@pytest.mark.parametrize("side", [3, 8, 14])
def test_a_black_border_does_not_make_noise_smooth(side):
    noisy = noise(torch.zeros(1, 1, 32, 32))
    framed = F.pad(noisy, [side] * 4, value=-1.0)
    assert any("looks like noise" in each for each in doubts(framed, framed[:, :0], [], None))
    ramp = F.pad(torch.linspace(-1, 1, 32).expand(1, 1, 32, 32) + 0.05 * noisy, [side] * 4, value=-1.0)
    assert doubts(ramp, ramp[:, :0], [], None) == []


def with_gas(mask):
    """A second part, as gas in the abdomen that is taken for lung: as many pixels as half the lung."""
    mask = mask.clone()
    mask[:, 0, -14:-2, 4:20] = 1
    return mask


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda mask: mask * torch.tensor([0.0, 1, 1]).view(1, 3, 1, 1), "left_lung is not found in the image"),
        (with_gas, "left_lung is in several parts, the largest of which is"),
        (lambda mask: F.max_pool2d(mask, 21, 1, 10), "left_lung covers"),
        (lambda mask: mask * (torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.1), "covers"),
        (lambda mask: torch.roll(mask, 22, 2), "left_lung is elsewhere: its centre is at"),
        (lambda mask: F.max_pool2d(mask, (1, 41), 1, (0, 20)), "left_lung touches the edge of the image"),
    ],
)
def test_implausible_outlines_are_doubted(phantom, spoil, sentence):
    profile, test = phantom
    for found in doubted(profile, test["image"][:8], spoil(test["mask"][:8].float())):
        assert any(sentence in each for each in found), found


def test_a_sentence_names_what_was_found_and_what_is_usual(phantom):
    profile, test = phantom
    found = doubts(test["image"][:1], with_gas(test["mask"][:1].float()), STRUCTURES, profile)
    sentence = next(each for each in found if "several parts" in each)
    assert sentence.endswith(" % in training)")
    assert "(at least 99" in sentence.replace("at least 100", "at least 99")


def test_parts_are_usual_where_training_has_them():
    """Plaques lie in several places: what training images have is no reason to doubt."""
    image = torch.linspace(-1, 1, 32).expand(4, 1, 32, 32)
    mask = torch.zeros(4, 1, 32, 32)
    for place in range(4):
        mask[place, 0, 2 : 4 + place, 4:8] = mask[place, 0, 20:23, 12:16] = 1
    profile = Profile.of([characteristics(image, mask, ["plaque"])])
    assert all(not doubts(image[:1], mask[k : k + 1], ["plaque"], profile) for k in range(4))
    assert any("several parts" in each for each in doubts(image[:1], mask[:1], ["plaque"], None))


@pytest.mark.parametrize("dims", [2, 3])
def test_characteristics_of_blocks_are_those_of_arithmetic(dims):
    mask = torch.zeros(1, 1, *[8] * dims)
    mask[(0, 0, *[slice(0, 2)] * dims)] = 1
    mask[(0, 0, *[slice(4, 8)] * dims)] = 1
    found = characteristics(torch.zeros(1, 1, *[8] * dims), mask, ["block"])
    small, large = 2**dims, 4**dims
    assert found["block: size"] == pytest.approx((small + large) / 8**dims)
    assert found["block: whole"] == pytest.approx(large / (small + large))
    assert found["block: edge"] == pytest.approx((small - 1 + large - 3**dims) / (8**dims - 6**dims))
    assert found[f"block: place_{dims - 1}"] == pytest.approx((small * 1 + large * 6) / (small + large) / 8)
    assert found["level"] == 0.5
    assert found["smoothness"] == 1


def test_a_profile_is_plain_data_and_ignores_what_no_image_has():
    image, mask = torch.rand(3, 1, 16, 16) * 2 - 1, torch.zeros(3, 1, 16, 16)
    mask[0, 0, 3:6, 3:6] = 1
    profile = Profile.of([characteristics(image, mask, ["spot"])])
    assert profile.ranges["spot: size"] == [0, pytest.approx(9 / 256)]
    assert profile.ranges["spot: whole"] == [1, 1], "of the one image that has it"
    assert build(profile.recipe).ranges == profile.ranges
    nowhere = Profile.of([characteristics(image, mask * 0, ["spot"])])
    assert "spot: whole" not in nowhere.ranges
    assert doubts(image[:1], mask[:1] * 0, ["spot"], nowhere) == [], "an absent structure is usual there"
