"""Regions: bands that share out every pixel, laid into the factual anatomy and never moved by the counterfactual."""

import math

import pytest
import torch

from data_modules.coronary.vessel_regions import measured
from segcft.core.recipes import build, plain
from segcft.guidance.judges import Segmentor
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.regions import Region, weights
from segcft.variables.variables import DataDescription, Variable

THIRDS = [(0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0)]
SPACING = [1.5, 2.0, 1.0]  # z, y, x


def blob(frame, centre, radii):
    axes = torch.meshgrid(*[torch.arange(n) + 0.5 for n in frame], indexing="ij")
    inside = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) <= 1
    return inside.float()[None, None]


def describe(variables, structures=("lumen",), spacing=(2.0, 1.0)):
    return DataDescription(variables, list(structures), list(spacing))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("of", ["image", "structure", "axis"])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_thirds_add_up_to_the_whole_in_any_image(dims, of, axis):
    spacing, generator = SPACING[-dims:], torch.Generator().manual_seed(0)
    factual = blob([11] * dims, [5.0] * dims, [4.0, 3.0, 2.0][:dims]).expand(2, 1, *[11] * dims)
    shares = [weights(Region(low, high, axis, of), factual[:, 0], spacing) for low, high in THIRDS]
    torch.testing.assert_close(sum(shares), torch.ones_like(shares[0]), atol=1e-5, rtol=0)
    assert all(share.min() >= 0 and share.max() <= 1 + 1e-6 for share in shares)
    variables = {str(i): Variable(structure="lumen", region=Region(*band, axis, of)) for i, band in enumerate(THIRDS)}
    about = describe(variables | {"whole": Variable(structure="lumen")}, spacing=spacing)
    counterfactual = torch.rand(factual.shape, generator=generator)
    parts = measure_masks(counterfactual, counterfactual, about, factual)
    torch.testing.assert_close(sum(parts[str(i)] for i in range(3)), parts["whole"])
    assert all(parts[str(i)].min() > 0 for i in range(3))


@pytest.mark.parametrize("rows", [9, 10])
def test_bands_of_the_image_are_the_thirds_of_a_straightened_vessel(rows):
    mask = (torch.rand(1, 1, rows, 4, generator=torch.Generator().manual_seed(1)) > 0.4).float()
    told = measured(mask[0].bool().numpy(), ["lumen"], [2.0, 1.0])
    names = [f"{part}_lumen_area" for part in ("proximal", "mid", "distal")]
    variables = {n: Variable(structure="lumen", region=Region(*b)) for n, b in zip(names, THIRDS, strict=True)}
    found = measure_masks(mask, mask, describe(variables))
    assert {name: float(found[name]) for name in names} == pytest.approx({name: told[name] for name in names}, rel=1e-5)


def value(variables):
    (only,) = variables.values()
    return float(only.detach())


def test_regions_stay_where_the_factual_anatomy_put_them():
    factual, moved = blob([24, 24], [8, 12], [4, 4]), blob([24, 24], [16, 12], [4, 4]).requires_grad_()
    upper = describe({"upper": Variable(structure="lumen", region=Region(0, 0.5, "y", "structure"))})
    assert value(measure_masks(moved, moved, upper, factual)) == 0, "all of it has left the upper half"
    own = measure_masks(moved, moved, upper)["upper"]
    assert own.item() == pytest.approx(moved.sum().item(), rel=0.02), "half of it, of pixels of 2 mm^2"
    (gradient,) = torch.autograd.grad(own, moved)
    assert gradient[0, 0, :15].allclose(torch.tensor(2.0)), "gradient of the area alone, none of the region"
    assert gradient[0, 0, 17:].abs().max() == 0


@pytest.mark.parametrize("angle", [-30, 0, 40, 70])
def test_bands_along_the_own_axis_turn_with_the_structure(angle):
    turn = math.radians(angle)
    y, x = (a - 31.5 for a in torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    mask = ((along / 24) ** 2 + (across / 6) ** 2 <= 1).float()[None]
    first = weights(Region(0, 0.5, of="axis"), mask, [1.0, 1.0])[0]
    assert first[along < -2].min() == 1
    assert first[along > 2].max() == 0


def test_within_counts_what_lies_in_a_given_mask_and_divides_that():
    masks = torch.zeros(1, 2, 8, 8)
    masks[0, 0, :, 2:6], masks[0, 1, 2:6] = 1, 1  # a column, and a hand-drawn band of rows
    variables = {
        "inside": Variable(structure="lumen", region=Region(within="drawn")),
        "upper": Variable(structure="lumen", region=Region(0, 0.25, "y", "structure", within="drawn")),
        "share": Variable(structure="lumen", region=Region(within="drawn"), over="lumen"),
    }
    found = measure_masks(masks, masks, describe(variables, ["lumen", "drawn"], [1.0, 1.0]))
    assert {name: float(value) for name, value in found.items()} == {"inside": 16, "upper": 4, "share": 0.5}


def test_the_cardiothoracic_ratio_is_a_width_over_that_of_a_union():
    masks = torch.zeros(1, 3, 8, 20)
    masks[0, 0, :, 1:7], masks[0, 1, :, 12:19], masks[0, 2, 4:, 6:13] = 1, 1, 1
    ratio = Variable(structure="heart", measure="width", over="left_lung+right_lung")
    about = describe({"ratio": ratio}, ["left_lung", "right_lung", "heart"])
    assert float(measure_masks(masks, masks, about)["ratio"]) == pytest.approx(7 / 13, rel=1e-4)
    assert measure_masks(masks * 0, masks, about)["ratio"].isfinite().all()


def test_an_image_without_the_structure_is_divided_whole():
    empty = torch.zeros(1, 6, 4)
    for of in ("image", "structure"):
        assert weights(Region(0, 0.5, "y", of), empty, [1.0, 1.0])[0, :, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert weights(Region(0, 0.5, "y", "axis"), empty, [1.0, 1.0]).isfinite().all()


@pytest.mark.parametrize("of", ["image", "structure"])
def test_the_factual_image_is_outlined_only_when_a_region_needs_it(of):
    variable = Variable(structure="lumen", region=Region(0, 0.5, "y", of))
    judge = Segmentor(
        describe({"upper": variable}), "monai.UNet", {"channels": [2, 4], "strides": [2], "norm": "batch"}
    ).eval()
    calls = []
    judge.network.register_forward_hook(lambda *_: calls.append(1))
    image, factual = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8).requires_grad_()
    judge.measure(image, factual)
    assert len(calls) == (1 if of == "image" else 2)


def test_a_variable_with_a_region_survives_a_recipe():
    variable = Variable(structure="lumen", measure="width", region=Region(0.2, 0.8, "x", "axis"), over="lumen")
    assert build(plain(variable)) == variable


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Region(0.5, 0.5), "low < high"),
        (lambda: Region(axis="w"), "x, y or z, got 'w'"),
        (lambda: Region(of="vessel"), "of='vessel'"),
        (lambda: Variable(measure="width"), "none is named"),
        (lambda: Variable(structure="lumen", measure="girth"), "unknown measure 'girth'; there are area"),
        (lambda: describe({"v": Variable(structure="lumen", measure="depth")}), "'v': 2-D .* no measure 'depth'"),
        (lambda: describe({"v": Variable(structure="lumen", region=Region(axis="z"))}), "'v'.*axis 'z'"),
        (lambda: describe({"v": Variable(structure="lumen", over="wall")}), "'v' over: 'wall', but the masks hold"),
        (lambda: describe({"v": Variable(structure="lumen", region=Region(within="a"))}), "'v' within: 'a'"),
        (lambda: describe({"v": Variable(structure="lumen+wall")}), "'v' measures 'wall'"),
        (
            lambda: describe({"v": Variable(structure="lumen", measure="elongation")}, spacing=[1.0] * 3),
            "3-D images have no measure 'elongation'",
        ),
    ],
)
def test_what_cannot_be_measured_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
