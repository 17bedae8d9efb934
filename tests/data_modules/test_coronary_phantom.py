"""Laws of the coronary phantom, in 2-D and 3-D: known sizes, and interventions that do what they say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.coronary.anatomy import EXOGENOUS, LENGTH, STRUCTURES, WIDTH, Vessel
from data_modules.coronary.causes import MECHANISMS, CoronaryCauses
from data_modules.coronary.phantom_dataset import CoronaryPhantomDataset
from data_modules.coronary.vessel_regions import REGIONS, measured, region_weights
from data_modules.coronary_phantom import CoronaryPhantom
from segcft.variables.variables import Variable

FRAMES = [(96, 48), (48, 24, 24)]
COUNT = 8


@pytest.fixture(scope="module", params=FRAMES, ids=["2-D", "3-D"])
def subjects(request):
    return CoronaryPhantomDataset("train", request.param, COUNT, seed=1)


@pytest.fixture(scope="module")
def factual(subjects):
    return subjects.read(torch.arange(COUNT))


@pytest.fixture
def everyone():
    return torch.arange(COUNT)


def spacing(frame):
    return [LENGTH / frame[0], *(WIDTH / side for side in frame[1:])]


def sizes(batch, frame):
    """What the masks measure, name -> (B,)."""
    rows = [measured(mask.numpy(), STRUCTURES, spacing(frame)) for mask in batch["mask"]]
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def test_batch_has_the_promised_shapes_and_ranges(subjects, factual):
    assert factual["image"].shape == (COUNT, 1, *subjects.frame)
    assert factual["mask"].shape == (COUNT, 3, *subjects.frame)
    assert factual["image"].abs().max() <= 1
    assert factual["mask"].sum(1).max() == 1, "structures do not overlap"
    assert set(factual["mask"].unique().tolist()) == {0, 0.25, 0.5, 0.75, 1}
    assert set(subjects.causes.variables()) <= set(factual)
    assert all(factual[name].shape == (COUNT,) for name in subjects.causes.variables())


def test_every_tissue_has_its_attenuation(subjects, factual):
    hu = subjects.observed[0].float()
    mask = factual["mask"] > 0.5
    inner = torch.stack([m.float() for m in mask[:, 0]])
    for axis in range(2, inner.dim()):
        inner = torch.minimum(inner, torch.minimum(inner.roll(2, axis), inner.roll(-2, axis)))
    assert 300 < hu[inner > 0].mean() < 450
    fat, calcium = hu.flatten(1).quantile(0.2, dim=1), hu.flatten(1).amax(1)
    assert ((fat > -140) & (fat < -40)).all()
    assert (calcium > 450).all()
    assert (calcium < 1400).all()
    assert -20 < hu[mask[:, 2]].mean() < 250, "soft plaque, between blood and fat"
    assert hu[mask[:, 1]].mean() > hu[mask[:, 2]].mean() + 200


def test_masks_measure_what_the_variables_say(subjects, factual):
    found = sizes(factual, subjects.frame)
    for structure, mean, most in (("lumen", 0.004, 0.01), *((s, 0.03, 0.1) for s in STRUCTURES[1:])):
        name = subjects.causes.whole(structure)
        error = found[name] / factual[name] - 1
        assert error.abs().mean() < mean, name
        assert error.abs().max() < most, name
        for region in REGIONS:
            part = f"{region}_{name}"
            assert (found[part] / factual[part] - 1).abs().mean() < 3 * mean, part
        torch.testing.assert_close(sum(factual[f"{region}_{name}"] for region in REGIONS), factual[name])


@pytest.mark.parametrize("dims", [2, 3])
def test_geometry_integrates_to_the_sizes_asked_for(dims):
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: torch.rand(5, count, generator=generator).double() * (high - low) + low
        for name, (low, high, count) in EXOGENOUS.items()
    }
    noise = {name: value[:, 0] if value.shape[1] == 1 else value for name, value in noise.items()}
    asked = {name: torch.rand(5, 3, generator=generator) * 30 + 30 for name in STRUCTURES}
    s = (torch.arange(3000).double() + 0.5) * LENGTH / 3000
    vessel = Vessel.of(noise, asked, s.expand(5, -1), dims)
    per_mm = {"lumen": 2 * vessel.radius if dims == 2 else torch.pi * vessel.radius**2}
    per_mm |= {name: plaque.amount for name, plaque in vessel.plaques.items()}
    for name, values in per_mm.items():
        thirds = values.reshape(5, 3, -1).sum(2) * LENGTH / 3000
        torch.testing.assert_close(thirds, asked[name].double(), rtol=2e-4, atol=0)


def test_a_subject_does_not_depend_on_its_batch_or_split_size(subjects, factual):
    few = CoronaryPhantomDataset("train", subjects.frame, 5, seed=1)
    for index in (4, 0, 3):
        alone = few.counterfactual(torch.tensor([index]), {})
        assert all(torch.equal(alone[name][0], factual[name][index]) for name in factual if name != "index")
    order = torch.tensor([7, 2, 2, 5])
    assert torch.equal(subjects.counterfactual(order, {})["image"], factual["image"][order])


@pytest.mark.parametrize("frame", [(37, 25), (17, 13, 15)])
def test_odd_frames_do_not_depend_on_the_batch_either(frame):
    data = CoronaryPhantomDataset("val", frame, 7)
    together = data.read(torch.arange(7))
    for index in range(7):
        assert torch.equal(data.counterfactual(torch.tensor([index]), {})["image"][0], together["image"][index])


def test_doing_what_was_observed_changes_no_bit(subjects, factual, everyone):
    names = list(subjects.causes.variables())
    for held in ([], ["sex"], ["age"], *([name] for name in names[2:]), names, names[5:], names[:5]):
        again = subjects.counterfactual(everyone, {name: factual[name] for name in held})
        assert all(torch.equal(again[name], factual[name]) for name in factual), held


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("ratio", [0.8, 1.25])
def test_a_size_moves_its_own_mask_and_what_it_causes(subjects, factual, everyone, structure, ratio):
    name, lumen = subjects.causes.whole(structure), subjects.causes.whole("lumen")
    asked = factual[name] * ratio
    moved = subjects.counterfactual(everyone, {name: asked})
    assert torch.equal(moved[name], asked)
    found = sizes(moved, subjects.frame)
    assert (found[name] / asked - 1).abs().mean() < (0.004 if structure == "lumen" else 0.04)
    assert all(((moved[k] - factual[k] * ratio).abs() < 1e-4 * asked).all() for k in subjects.causes.thirds(structure))
    if structure == "lumen":
        assert all(torch.equal(moved[k], factual[k]) for k in moved if "plaque" in k or k in ("sex", "age"))
    else:
        exponent = MECHANISMS["lumen"].narrowed_by[structure]
        torch.testing.assert_close(moved[lumen], factual[lumen] * ratio**-exponent)
        held = subjects.counterfactual(everyone, {name: asked, lumen: factual[lumen]})
        assert torch.equal(held["mask"][:, 0], factual["mask"][:, 0]), "the lumen stays where it is held"
    changed = (moved["image"] != factual["image"]).flatten(1).float().mean(1)
    assert ((changed > 0.0005) & (changed < 0.6)).all(), "an image changes where the vessel does, and only there"


def test_a_third_moves_alone(subjects, factual, everyone):
    name = f"mid_lumen_{subjects.causes.kind}"
    moved = subjects.counterfactual(everyone, {name: factual[name] * 0.8})
    found = sizes(moved, subjects.frame)
    assert (found[name] / moved[name] - 1).abs().mean() < 0.04
    for region in ("proximal", "distal"):
        other = name.replace("mid", region)
        assert torch.equal(moved[other], factual[other])
        assert (found[other] / factual[other] - 1).abs().mean() < 0.04
    far = subjects.frame[0] // 6
    assert torch.equal(moved["image"][:, :, :far], factual["image"][:, :, :far])
    assert torch.equal(moved["image"][:, :, -far:], factual["image"][:, :, -far:])


def test_a_whole_and_its_thirds_agree(subjects, factual, everyone):
    whole = subjects.causes.whole("lumen")
    third = f"proximal_{whole}"
    moved = subjects.counterfactual(everyone, {whole: factual[whole], third: factual[third] * 1.1})
    assert torch.equal(moved[whole], factual[whole])
    assert torch.equal(moved[third], factual[third] * 1.1)
    torch.testing.assert_close(sum(moved[part] for part in subjects.causes.thirds("lumen")), factual[whole])
    with pytest.raises(ValueError, match=rf"do\({whole} = .*do not add up"):
        subjects.counterfactual(everyone, {whole: factual[whole], third: factual[whole] * 1.1})
    everything = {part: factual[part] for part in subjects.causes.thirds("lumen")}
    with pytest.raises(ValueError, match="do not add up"):
        subjects.counterfactual(everyone, {**everything, whole: factual[whole] * 1.1})


def test_causes_move_their_effects_unless_those_are_held(subjects, factual, everyone):
    aged = subjects.counterfactual(everyone, {"age": torch.full((COUNT,), 85.0)})
    older = factual["age"] < 84
    for name in STRUCTURES[1:]:
        whole = subjects.causes.whole(name)
        assert (aged[whole][older] > factual[whole][older]).all()
    lumen = subjects.causes.whole("lumen")
    assert (aged[lumen][older] < factual[lumen][older]).all(), "through the plaques"
    structural = {part: factual[part] for name in STRUCTURES for part in subjects.causes.thirds(name)}
    held = subjects.counterfactual(everyone, {"age": torch.full((COUNT,), 85.0), **structural})
    assert torch.equal(held["image"], factual["image"]), "age shows in the sizes only"
    uncut = CoronaryPhantomDataset("train", subjects.frame, COUNT, seed=1, narrowing=0)
    plaque = subjects.causes.whole("calcified_plaque")
    alone = uncut.counterfactual(everyone, {plaque: uncut.attributes[plaque] * 1.5})
    assert torch.equal(alone[lumen], uncut.attributes[lumen])


CAUSES = CoronaryCauses(2)
OBSERVED = CAUSES.sample(torch.rand(4, CAUSES.draws, generator=torch.Generator().manual_seed(0)).double())


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(list(OBSERVED)[2:]), st.floats(0.3, 3) | st.just(float("nan")), max_size=5))
def test_any_intervention_adds_up_or_is_refused(ratios):
    do = {name: OBSERVED[name] * ratio for name, ratio in ratios.items()}
    whole = [name for name in STRUCTURES if CAUSES.whole(name) in do]
    held = {name for name in STRUCTURES if any(part in do for part in CAUSES.thirds(name))}
    try:
        values = CAUSES.counterfactual(OBSERVED, do)
    except ValueError:
        assert held & set(whole), "only a whole and its thirds can contradict each other"
        return
    for name, asked in do.items():
        assert torch.equal(values[name], torch.where(asked.isnan(), values[name], asked))
    for name in STRUCTURES:
        sizes = CAUSES.sizes(values, name)
        assert (sizes > 0).all()
        torch.testing.assert_close(sizes.sum(1), values[CAUSES.whole(name)], rtol=2e-3, atol=0)


def test_nan_leaves_a_subject_as_it_is(subjects, factual):
    name = subjects.causes.whole("calcified_plaque")
    asked = torch.tensor([float("nan"), 9.0])
    moved = subjects.counterfactual(torch.tensor([0, 1]), {name: asked})
    assert torch.equal(moved["image"][0], factual["image"][0])
    assert moved[name][1] == 9


def test_the_vessel_stays_in_the_frame_at_the_ends_of_the_range():
    data = CoronaryPhantomDataset("train", (48, 48), 400)
    for structure in STRUCTURES:
        name = data.causes.whole(structure)
        values = data.attributes[name]
        ends = torch.cat([values.topk(8).indices, values.topk(8, largest=False).indices])
        for ratio in (0.7, 1.3):
            mask = data.counterfactual(ends, {name: values[ends] * ratio})["mask"]
            assert mask[..., [0, -1]].mean() < 0.001
            assert (mask.sum((2, 3)) > 0).all()


def test_splits_and_seeds_are_independent():
    ages = [
        CoronaryPhantomDataset(split, (12, 12), 50, seed).attributes["age"]
        for split, seed in (("train", 0), ("val", 0), ("test", 0), ("train", 1))
    ]
    for i, first in enumerate(ages):
        for second in ages[i + 1 :]:
            assert not torch.isin(first, second).any()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_causal_model_is_as_declared(dims):
    causes = CoronaryCauses(dims)
    values = causes.sample(torch.rand(4000, causes.draws, generator=torch.Generator().manual_seed(0)).double())
    for name, mechanism in MECHANISMS.items():
        observed = causes.sizes(values, name).double()
        noise = (observed / mechanism.medians(causes.kind)).log() - causes.effect(name, values)
        assert noise.abs().max() <= 2.2 * mechanism.noise + 1e-4
        assert (noise.median(0).values.abs() < 0.02).all()
        for cause in ("age", "sex"):
            assert abs(torch.corrcoef(torch.stack([noise[:, 0], values[cause].double()]))[0, 1]) < 0.06
        assert (observed > 0).all()
        assert 0.08 < values[causes.whole(name)].std() / values[causes.whole(name)].mean() < 0.4
    plaque, lumen = (causes.sizes(values, name)[:, 1].log() for name in ("noncalcified_plaque", "lumen"))
    assert torch.corrcoef(torch.stack([plaque, lumen]))[0, 1] < -0.08, "plaque narrows the lumen"


def test_region_weights_share_every_row():
    for rows in (3, 7, 96):
        weights = region_weights(rows)
        assert weights.sum(0) == pytest.approx(1)
        assert weights.sum(1) == pytest.approx(rows / 3)


def test_wrong_arguments_are_named(subjects):
    one = torch.tensor([0])
    name = subjects.causes.whole("lumen")
    with pytest.raises(ValueError, match="stent_area"):
        subjects.counterfactual(one, {"stent_area": torch.ones(1)})
    with pytest.raises(ValueError, match="-5"):
        subjects.counterfactual(one, {name: torch.tensor([-5.0])})
    with pytest.raises(ValueError, match=r"\(2,\)"):
        subjects.counterfactual(one, {"age": torch.ones(2)})
    with pytest.raises(ValueError, match="differs too much"):
        subjects.counterfactual(one, {f"mid_{name}": torch.tensor([1e-3])})
    for index in (COUNT, -1):
        with pytest.raises(ValueError, match=f"index {index}"):
            subjects.read(torch.tensor([index]))
    for frame in ((11, 48), (96,), (12, 12, 12, 12)):
        with pytest.raises(ValueError, match="frame"):
            CoronaryPhantom(frame=frame)
    with pytest.raises(ValueError, match="got 0"):
        CoronaryPhantom(subjects={"val": 0})
    with pytest.raises(ValueError, match="'tset'"):
        CoronaryPhantom(subjects={"tset": 4})
    with pytest.raises(ValueError, match="-1"):
        CoronaryPhantom(narrowing=-1)


@pytest.mark.parametrize("frame", [(24, 24), (24, 16, 16)])
def test_module_describes_its_data_and_loads_batches(frame):
    data = CoronaryPhantom(frame=frame, subjects={"train": 10, "val": 4, "test": 4}, batch_size=4)
    kind = "area" if len(frame) == 2 else "volume"
    assert data.description.structures == STRUCTURES
    assert data.description.spacing == spacing(frame)
    assert data.description.parents.structural == {f"{name}_{kind}": name for name in STRUCTURES}
    assert [len(batch["index"]) for batch in data.train_dataloader()] == [4, 4]
    assert next(iter(data.val_dataloader()))["image"].shape == (4, 1, *frame)
    part = f"distal_lumen_{kind}"
    assert list(CoronaryPhantom({part: Variable()}, frame, {"train": 4}).description.parents.names) == [part]
