"""A foreign picture is doubted before its numbers are believed; a film is not."""

import pytest
import torch

from data_modules.chest_phantom import ChestPhantom
from segcft.counterfactual.plausibility import doubts, largest_piece, neighbours

NAMES = ("left_lung", "right_lung")


@pytest.fixture(scope="module")
def phantom():
    data = ChestPhantom(subjects={"train": 4, "val": 2, "test": 12})
    data.setup("test")
    return data.dataset("test").read(torch.arange(12))


def with_gas(mask):
    """A second piece, as gas in the abdomen that is taken for lung."""
    mask = mask.clone()
    mask[..., :20, :20] = 1
    return mask


def test_films_are_not_doubted(phantom):
    for image, mask in zip(phantom["image"], phantom["mask"], strict=True):
        assert doubts(image[None], NAMES, mask[None, :2].float()) == []


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda image, mask: (torch.full_like(image, 0.3), mask), "nearly constant"),
        (lambda image, mask: (torch.rand_like(image) * 2 - 1, mask), "hardly resemble each other"),
        (lambda image, mask: (image, torch.zeros_like(mask)), "left_lung is not found in the image"),
        (lambda image, mask: (image, with_gas(mask)), "left_lung is outlined in several pieces"),
    ],
)
def test_what_is_no_such_image_is(phantom, spoil, sentence):
    torch.manual_seed(0)
    image, mask = spoil(phantom["image"][:1], phantom["mask"][:1, :1].float().repeat(1, 2, 1, 1))
    assert any(sentence in doubt for doubt in doubts(image, NAMES, mask))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_largest_piece_is_found_wherever_it_lies(dims):
    mask = torch.zeros([9] * dims, dtype=torch.bool)
    mask[(slice(0, 2),) * dims] = True
    mask[(slice(4, 8),) * dims] = True
    assert largest_piece(mask) == 4**dims / (4**dims + 2**dims)
    assert largest_piece(torch.ones([3] * dims, dtype=torch.bool)) == 1
    assert largest_piece(torch.zeros([3] * dims, dtype=torch.bool)) == 0


def test_neighbours_of_a_ramp_are_alike_and_of_noise_are_not():
    ramp = torch.arange(64.0).view(1, 1, 8, 8)
    assert neighbours(ramp, 3) == pytest.approx(1)
    torch.manual_seed(0)
    assert abs(neighbours(torch.randn(1, 1, 64, 64), 2)) < 0.1
