"""Letters on a film do not move with the body."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from segcft.counterfactual.native_resolution import Canvas, Edit
from segcft.counterfactual.side_markers import markers
from segcft.spatial.geometry import Geometry
from segcft.variables.regions import vicinity


def film(size=256):
    """A smooth bright disc on grey, and a letter in a corner."""
    at = torch.linspace(-1, 1, size)
    body = torch.exp(-3 * (at[:, None] ** 2 + at**2)).numpy()
    levels = Image.fromarray((60 + 120 * body).astype(np.uint8))
    ImageDraw.Draw(levels).text((24, 20), "L", fill=255, font=ImageFont.load_default(24))
    return torch.from_numpy(np.asarray(levels).astype(np.float32) / 127.5 - 1)[None, None]


def test_a_letter_is_found_and_nothing_of_the_body():
    image = film()
    found = markers(image)
    assert found.any()
    assert not found[..., 60:, :].any()
    assert not found[..., 60:].any()
    assert (image[found] > 0.5).all()
    plain = film()
    plain[..., :60, :60] = -0.5
    assert not markers(plain).any()
    assert not markers(torch.rand(1, 1, 8, 8, 8)).any(), "volumes have no markers"


def test_a_flow_rests_around_letters_and_fades_smoothly():
    canvas = Canvas(film(), Geometry.of((256, 256), (64, 64)))
    weight = 1 - vicinity(canvas.letters[:, 0], canvas.frame)
    assert (weight[canvas.letters] == 0).all()
    assert weight.max() == 1
    assert weight.diff(dim=2).abs().max() < 0.3
    edit = Edit(torch.zeros(1, 1, 64, 64), torch.full((1, 2, 64, 64), 3.0)).within(weight, weight)
    moved = canvas.draw(edit)
    letter = markers(canvas.image)
    assert torch.equal(moved[letter], canvas.image[letter])
    assert not torch.equal(moved, canvas.image)
