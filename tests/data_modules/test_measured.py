"""Variables that only masks tell: any data module measures them; the chest phantom moves the heart."""

import pytest
import torch

from data_modules.chest_phantom import ChestPhantom
from data_modules.common.data_module import ImageDataset
from data_modules.coronary_phantom import CoronaryPhantom
from data_modules.preparation.prepared import Prepared
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.measurements import MEASUREMENTS
from segcft.variables.regions import Region
from segcft.variables.variables import Variable
from tests.balls import Balls
from tests.discs import Discs, write

SUBJECTS = {"train": 12, "val": 4, "test": 4}
HEART = {
    "heart_area": Variable(structure="heart", unit="mm^2"),
    "heart_x": Variable(structure="heart", measure="centroid_x"),
    "heart_y": Variable(structure="heart", measure="centroid_y"),
    "heart_width": Variable(structure="heart", measure="width"),
    "cardiothoracic_ratio": Variable(structure="heart", measure="width", over="left_lung+right_lung"),
}


@pytest.fixture(scope="module")
def chest():
    return ChestPhantom(HEART, size=128, subjects=SUBJECTS)


def test_measured_variables_join_the_attributes_the_batches_and_the_description(chest):
    dataset, about = chest.dataset("train"), chest.description
    batch = dataset.read(torch.arange(12))
    for name in ("heart_x", "heart_width", "cardiothoracic_ratio"):
        torch.testing.assert_close(dataset.attributes[name], batch[name])
        torch.testing.assert_close(batch[name], measure_masks(batch["mask"], batch["image"], about)[name])
    assert about.parents["heart_x"].unit == "mm"
    assert about.parents["cardiothoracic_ratio"].unit == ""
    assert 0.3 < about.parents["cardiothoracic_ratio"].mean < 0.7
    assert about.parents["heart_x"].mean == pytest.approx(float(batch["heart_x"].mean()))
    few = next(iter(chest.attribute_loader("val")))
    assert set(HEART) < set(few)
    assert "image" not in few


@pytest.mark.parametrize("centre", [("heart_x", "centroid_x"), ("heart_y", "centroid_y")])
def test_the_true_heart_moves_to_where_it_is_asked_and_keeps_its_size(chest, centre):
    name, measure = centre
    dataset, who = chest.dataset("train"), torch.arange(6)
    factual = dataset.read(who)
    target = factual[name] + torch.tensor([-12.0, -5.0, 0.0, 5.0, 12.0, torch.nan])
    moved = dataset.counterfactual(who, {name: target})
    wanted = torch.where(target.isnan(), factual[name], target)
    found = MEASUREMENTS[measure].function(moved["mask"], moved["image"], chest.spacing)[:, 2]
    assert (found - wanted).abs().max() < 0.5 * chest.spacing[0]
    torch.testing.assert_close(moved[name], found)
    pixels = [some["mask"].sum((2, 3)) for some in (factual, moved)]
    assert (pixels[1] / pixels[0] - 1).abs().max() < 0.01
    assert torch.equal(moved["mask"][:, :2], factual["mask"][:, :2])
    for still in (2, 5):
        assert torch.equal(moved["image"][still], factual["image"][still])
    other = "heart_y" if name == "heart_x" else "heart_x"
    assert (moved[other] - factual[other]).abs().max() < 0.5 * chest.spacing[0]


def test_place_and_size_are_asked_together(chest):
    dataset, who = chest.dataset("train"), torch.arange(4)
    factual = dataset.read(who)
    asked = {"heart_area": factual["heart_area"] * 1.2, "heart_x": factual["heart_x"]}
    both = dataset.counterfactual(who, asked)
    assert (both["heart_x"] - asked["heart_x"]).abs().max() < 0.5 * chest.spacing[0]
    grown = both["mask"][:, 2].sum((1, 2)) / factual["mask"][:, 2].sum((1, 2))
    assert (grown - 1.2).abs().max() < 0.02


def test_what_no_noise_moves_alone_is_not_drawn(chest):
    dataset = chest.dataset("train")
    assert [name for name in HEART if dataset.can_draw(name)] == ["heart_area", "heart_x", "heart_y"]
    with pytest.raises(ValueError, match="'heart_width' is measured on masks, and no exogenous noise"):
        dataset.counterfactual(torch.tensor([0]), {"heart_width": torch.tensor([100.0])})


@pytest.mark.parametrize("frame", [(36, 24), (36, 16, 16)])
def test_thirds_by_region_are_those_that_the_coronary_phantom_draws(frame):
    axis = "y" if len(frame) == 2 else "z"
    regions = {"upper": Region(0, 1 / 3, axis), "middle": Region(1 / 3, 2 / 3, axis), "lower": Region(2 / 3, 1, axis)}
    thirds = {name: Variable(structure="lumen", region=region) for name, region in regions.items()}
    batch = CoronaryPhantom(thirds, frame, SUBJECTS).dataset("train").read(torch.arange(12))
    size = "area" if len(frame) == 2 else "volume"
    for name, drawn in zip(regions, ("proximal", "mid", "distal"), strict=True):
        torch.testing.assert_close(batch[name], batch[f"{drawn}_lumen_{size}"], rtol=0.1, atol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_any_data_module_measures(dims):
    variables = {"left_size": Variable(structure="left"), "wide": Variable(structure="left", measure="width")}
    data = Balls(variables=variables, spatial_dims=dims)
    assert data.dataset("val")[0]["wide"] > 0
    assert data.description.parents["wide"].std > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_prepared_data_measure_what_the_table_lacks(tmp_path, dims):
    variables = {"age": Variable(), "wide": Variable(structure="left", measure="width")}
    source = Discs(str(write(tmp_path / "in", 20, dims=dims)), dtype="uint8" if dims == 2 else "int16")
    data = Prepared(source, variables, cache=str(tmp_path / "cache"))
    batch = data.dataset("train").read(torch.arange(5))
    along_x = batch["mask"][:, 0].flatten(1, -2).amax(1).sum(1) * 0.5
    torch.testing.assert_close(batch["wide"], along_x, rtol=1e-4, atol=1e-4)


def test_augmentation_moves_what_is_measured(tmp_path):
    variables = {"reach": Variable(structure="left", measure="spread_x")}
    source = Discs(str(write(tmp_path / "in", 20)))
    data = Prepared(source, variables, cache=str(tmp_path / "cache"), augment=True)
    dataset = data.dataset("train")
    moved = dataset.read(torch.arange(10))
    about = data.description
    torch.testing.assert_close(moved["reach"], measure_masks(moved["mask"], moved["image"], about)["reach"])
    plain = dataset.read_unchanged(torch.arange(10))
    torch.testing.assert_close(plain["reach"], dataset.attributes["reach"][:10])
    assert not torch.equal(moved["reach"], plain["reach"])


def test_errors_name_the_variable(tmp_path):
    with pytest.raises(ValueError, match=r"unknown variable 'weight'; this data set offers .*heart_area"):
        _ = ChestPhantom({"weight": Variable()}, 16, SUBJECTS).description
    with pytest.raises(ValueError, match="'x' measures 'liver', but the masks hold: left_lung"):
        _ = ChestPhantom({"x": Variable(structure="liver", measure="width")}, 16, SUBJECTS).description
    whole = Variable(structure="heart", region=Region(0, 0.05))
    with pytest.raises(ValueError, match="variable 'top', training split: all 12 values equal 0"):
        _ = ChestPhantom({"top": whole}, 32, SUBJECTS).description


def test_masks_are_read_once_a_chunk(chest):
    class Counted(ImageDataset):
        def __init__(self, whole):
            self.whole, self.attributes, self.reads = whole, dict(whole.attributes), []

        def __len__(self):
            return len(self.whole)

        def read(self, indices):
            self.reads.append(len(indices))
            return self.whole.read(indices)

    counted = Counted(chest.dataset("train"))
    counted.measure(chest.describe({"width": Variable(structure="heart", measure="width")}), at_once=5)
    assert counted.reads == [5, 5, 2]
    torch.testing.assert_close(counted.attributes["width"], chest.dataset("train").attributes["heart_width"])
