"""Resolutions of the HVAE's stages follow from the size of the images."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcft.hvae.hvae import HVAE
from segcft.hvae.stages import COARSE, Stage, resolved

FIVE = [Stage(8, 0), Stage(16, as_needed=True), Stage(32), Stage(48), Stage(64, 2, 8), Stage(64, 2, 16)]


def sizes(stages, frame):
    return [stage.size(len(frame)) for stage in resolved(stages, len(frame), frame)]


@pytest.mark.parametrize(("frame", "coarsest"), [
    ((64, 64), (4, 4)),
    ((128, 128), (4, 4)),
    ((192, 192), (6, 6)),
    ((96, 128), (3, 4)),
    ((144, 144), (9, 9)),  # no side of 9 can be halved
    ((96, 48), (6, 3)),
    ((64, 32, 32), (4, 2, 2)),
])  # fmt: skip
def test_a_recipe_fits_frames_of_many_sizes(frame, coarsest):
    found = sizes(FIVE, frame)
    assert found[0] == frame
    assert found[-1] == coarsest
    assert all(big == 2 * small for fine, coarse in pairwise(found)
               for big, small in zip(fine, coarse, strict=True))  # fmt: skip


@given(st.lists(st.integers(1, 40), min_size=2, max_size=3).map(lambda sides: [16 * side for side in sides]))
def test_the_coarsest_stage_is_small_or_odd_and_resolving_again_changes_nothing(frame):
    found = resolved(FIVE, len(frame), frame)
    last = found[-1].size(len(frame))
    assert max(last) < COARSE or any(side % 2 for side in last)
    assert resolved(found, len(frame)) == resolved(found, len(frame), frame) == found
    widths = [stage.width for stage in found]
    assert [widths[0], *widths[-4:]] == [8, 32, 48, 64, 64], "only the second stage is repeated"


@pytest.mark.parametrize(("stages", "frame", "message"), [
    (FIVE, (100, 100), "images of 100 x 100 pixels cannot .* multiples of 16, such as 96 or 112 in place of 100"),
    (FIVE, (64, 40), "images of 64 x 40 pixels .* such as 32 or 48 in place of 40"),
    ([Stage(8, resolution=64), Stage(8, 1, 2)], (128, 128), "resolution 64 x 64, images have 128 x 128 pixels"),
    ([Stage(8), Stage(8, 1, 2)], None, "no resolution, and the size of the images is not given"),
    ([Stage(8, as_needed=True), Stage(8, 1, 2)], (8, 8), "as_needed: of one stage at most"),
    ([Stage(8), Stage(8, as_needed=True), Stage(8, 1, 2, as_needed=True)], (8, 8), "as_needed: of one stage at most"),
])  # fmt: skip
def test_stages_that_do_not_fit_are_refused(stages, frame, message):
    with pytest.raises(ValueError, match=message):
        resolved(stages, 2, frame)


def test_a_checkpoint_names_every_resolution():
    recipe = HVAE(2, 1, 3, FIVE, frame=(128, 128)).recipe["init_args"]
    assert [stage["init_args"]["resolution"] for stage in recipe["stages"]] == [128, 64, 32, 16, 8, 4]
