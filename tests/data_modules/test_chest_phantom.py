"""Laws of the chest phantom: the same subject everywhere, and interventions that do what they say and nothing else."""

from base64 import b85decode
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from data_modules.chest.anatomy import Grid, lung_at_rest
from data_modules.chest.tissue import Rest, elastic
from data_modules.chest_phantom import (
    MECHANISMS,
    STRUCTURES,
    ChestPhantom,
    ChestPhantomDataset,
    Texture,
    Tissue,
    all_variables,
    confounded,
)
from segcft.variables.variables import Variable

COUNT = 12
AREAS = list(MECHANISMS)


@pytest.fixture(scope="module", params=get_args(Tissue))
def tissue(request: pytest.FixtureRequest) -> Tissue:
    return request.param


@pytest.fixture(scope="module")
def subjects(tissue: Tissue) -> ChestPhantomDataset:
    return ChestPhantomDataset("train", size=64, subjects=COUNT, seed=1, tissue=tissue)


@pytest.fixture(scope="module")
def still() -> ChestPhantomDataset:
    return ChestPhantomDataset("train", size=64, subjects=COUNT, seed=1, tissue="sliding", texture="fixed")


@pytest.fixture(scope="module")
def factual(subjects: ChestPhantomDataset) -> dict[str, Tensor]:
    return subjects.read(torch.arange(COUNT))


def pixel_areas(mask: Tensor) -> Tensor:
    return mask.sum((2, 3)) * (400 / mask.shape[-1]) ** 2


def correlation(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack(
        [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a.flatten(1), b.flatten(1), strict=True)]
    )


def test_batch_has_the_promised_shapes_and_ranges(factual: dict[str, Tensor]) -> None:
    image, mask = factual["image"], factual["mask"]
    assert image.shape == (COUNT, 1, 64, 64)
    assert image.dtype == torch.float32
    assert mask.shape == (COUNT, 3, 64, 64)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert image.min() >= -1
    assert image.max() <= 1
    levels = (image + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert (image.amax((1, 2, 3)) - image.amin((1, 2, 3)) > 1.2).all(), "every film needs contrast"
    assert all(factual[name].shape == (COUNT,) for name in all_variables())


def test_a_subject_does_not_depend_on_its_batch_or_split_size(
    subjects: ChestPhantomDataset, factual: dict[str, Tensor]
) -> None:
    few = ChestPhantomDataset("train", size=64, subjects=5, seed=1, tissue=subjects.tissue)
    for index in (4, 0, 3):
        alone = few.counterfactual(torch.tensor([index]), {})
        for name in ("image", "mask", *all_variables()):
            assert torch.equal(alone[name][0], factual[name][index]), (index, name)
    order = torch.tensor([7, 2, 2, 11])
    assert torch.equal(subjects.counterfactual(order, {})["image"], factual["image"][order])


@pytest.mark.parametrize("size", [33, 50])
@pytest.mark.parametrize(("tissue", "texture"), [("sliding", "fixed"), ("sliding", "carried"), ("elastic", "carried")])
def test_odd_sizes_do_not_depend_on_the_batch_either(size: int, tissue: Tissue, texture: Texture) -> None:
    data = ChestPhantomDataset("val", size=size, subjects=7, tissue=tissue, texture=texture)
    together = data.read(torch.arange(7))
    for index in range(7):
        assert torch.equal(data.counterfactual(torch.tensor([index]), {})["image"][0], together["image"][index])


@pytest.mark.parametrize("do", [[], ["sex"], ["age"], AREAS, list(all_variables())])
def test_doing_what_was_observed_changes_no_bit(
    subjects: ChestPhantomDataset, factual: dict[str, Tensor], do: list[str]
) -> None:
    again = subjects.counterfactual(torch.arange(COUNT), {name: factual[name] for name in do})
    assert all(torch.equal(again[name], factual[name]) for name in factual)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("ratio", [0.75, 1.3])
def test_an_area_moves_its_own_mask_only(
    subjects: ChestPhantomDataset, factual: dict[str, Tensor], which: int, ratio: float
) -> None:
    asked = factual[AREAS[which]] * ratio
    moved = subjects.counterfactual(torch.arange(COUNT), {AREAS[which]: asked})
    others = [k for k in range(3) if k != which]
    assert torch.equal(moved["mask"][:, others], factual["mask"][:, others])
    assert all(torch.equal(moved[name], factual[name]) for name in all_variables() if name != AREAS[which])
    assert torch.equal(moved[AREAS[which]], asked)
    error = (pixel_areas(moved["mask"])[:, which] / asked - 1).abs()
    assert error.mean() < (0.025 if which == 2 else 0.015)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("ratio", [0.75, 1.3])
def test_still_tissue_changes_where_the_structure_is_and_only_there(
    still: ChestPhantomDataset, which: int, ratio: float
) -> None:
    factual = still.read(torch.arange(COUNT))
    moved = still.counterfactual(torch.arange(COUNT), {AREAS[which]: factual[AREAS[which]] * ratio})
    changed = (moved["image"] != factual["image"]).flatten(1).float().mean(1)
    assert ((changed > 0.005) & (changed < 0.5)).all()


def test_a_growing_lung_keeps_its_apex_and_medial_wall(
    subjects: ChestPhantomDataset, factual: dict[str, Tensor]
) -> None:
    grown = subjects.counterfactual(torch.arange(COUNT), {"right_lung_area": factual["right_lung_area"] * 1.3})
    before, after = (batch["mask"][:, 1] for batch in (factual, grown))  # the image's left half
    extents = []
    for mask in (before, after):
        ys, xs = mask.amax(2), mask.amax(1)  # occupied rows and columns
        flipped = [64 - t.flip(1).argmax(1) for t in (ys, xs)]
        extents.append([ys.argmax(1), flipped[0], xs.argmax(1), flipped[1]])
    (top, bottom, lateral, medial), (top2, bottom2, lateral2, medial2) = extents
    assert ((top2 - top).abs() <= 1).all()
    assert ((medial2 - medial).abs() <= 1).all()
    assert (bottom2 - bottom >= 2).all()
    assert (lateral - lateral2 >= 1).all()


def test_mask_areas_are_the_attributes(factual: dict[str, Tensor]) -> None:
    nominal = torch.stack([factual[name] for name in AREAS], 1)
    error = pixel_areas(factual["mask"]) / nominal - 1
    assert (error.abs().mean(0) < torch.tensor([0.015, 0.015, 0.025])).all()
    assert (error.mean(0).abs() < 0.005).all(), "no bias"


def test_anatomy_lies_where_a_frontal_film_shows_it(factual: dict[str, Tensor]) -> None:
    mask, at = factual["mask"], torch.arange(64.0)
    x = (mask.sum(2) * at).sum(2) / mask.sum((2, 3))  # (B, K)
    assert (x[:, 0] > 32).all(), "the patient's left lung is at the image's right"
    assert (x[:, 1] < 32).all()
    assert ((x[:, 2] > 30) & (x[:, 2] < x[:, 0])).all(), "the heart leans to the patient's left"
    assert not mask[..., [0, -1]].any()
    assert not mask[:, :, [0, -1]].any()
    image, only = factual["image"][:, 0], mask[:, 1] * (1 - mask[:, 2])
    lung = (image * only).sum((1, 2)) / only.sum((1, 2))
    abdomen = image[:, 54:, 26:38].mean((1, 2))
    assert (lung < abdomen - 0.3).all(), "air is dark"
    assert (image[:, 0, 0] < lung).all(), "open air is darker"


def test_nothing_leaves_the_frame_at_the_ends_of_the_range() -> None:
    data = ChestPhantomDataset("train", size=32, subjects=300)
    values = torch.stack([data.attributes[name] for name in AREAS], 1)
    ends = torch.cat([values.argmin(0), values.argmax(0)])
    for index, ratio in ((ends, 0.65), (ends, 1.2), (torch.arange(30), 1.35)):
        mask = data.counterfactual(index, {name: data.attributes[name][index] * ratio for name in AREAS})["mask"]
        assert not mask[..., [0, -1]].any()
        assert not mask[:, :, [0, -1]].any()
        assert (mask.sum((2, 3)) > 0).all()


@pytest.mark.parametrize("finer", [2, 4])
def test_a_subject_is_the_same_at_every_size(tissue: Tissue, finer: int) -> None:
    small, large = (ChestPhantomDataset("test", size=size, subjects=6, tissue=tissue) for size in (64, 64 * finer))
    a, b = small.read(torch.arange(6)), large.read(torch.arange(6))
    assert all(torch.equal(a[name], b[name]) for name in all_variables())
    assert (correlation(avg_pool2d(b["image"], finer), a["image"]) > 0.98).all()
    assert (correlation(avg_pool2d(b["mask"], finer), a["mask"]) > 0.95).all()


PINNED = (
    "0000006&+itBD-~0|5X400001ZlAffz^{f$000005Ok=(k86C%<ac3*#hGgYi>tViR6$tDz(z(`ps%Zxj<3RVJ3L*?y;LzdbhD_1"
    "f~>}9LPLM*y+127QnRIYSB}40Nlu63zd|TIRJ4pf6>gYPNkpLI){ZYdTbyM84{VWIXl#Vm+pSnhUyND+6mz4nuBflY$H<v^Xo_C|"
    "6MCq?uc@xNy1~G<ppjz$7I>z)v8%AXy|JpdubplH9eAR)t*o=mzom$tu$^`TDuk)GwXVL~&9tnqtDt=fIE=2lySBmM(7U|0w5EX("
    "J&CTrxURz7$hN+~!l!r_"
)


def test_still_films_are_those_of_earlier_versions() -> None:
    film = ChestPhantomDataset("test", size=16, subjects=1, seed=3, tissue="sliding", texture="fixed").observed[0]
    pinned = torch.tensor(list(b85decode(PINNED))).view(1, 16, 16)
    assert (film.int() - pinned).abs().max() <= 1, "a level, for processors whose cosines round differently"


@pytest.fixture(scope="module")
def carried() -> ChestPhantomDataset:
    return ChestPhantomDataset("train", size=64, subjects=COUNT, seed=1, tissue="sliding", texture="carried")


def test_carried_texture_moves_no_outline_and_nothing_of_the_other_lung(
    still: ChestPhantomDataset, carried: ChestPhantomDataset
) -> None:
    everyone, before = torch.arange(COUNT), carried.read(torch.arange(COUNT))
    for name, ratio in zip(AREAS, (0.75, 1.25, 1.25), strict=True):
        do = {name: still.attributes[name] * ratio}
        fixed, moved = (data.counterfactual(everyone, do) for data in (still, carried))
        assert all(torch.equal(fixed[key], moved[key]) for key in ("mask", *all_variables()))
        opposite = {"left_lung_area": slice(None, 32), "right_lung_area": slice(33, None), "heart_area": slice(0)}[name]
        assert torch.equal(moved["image"][..., opposite], before["image"][..., opposite])
    again = carried.counterfactual(everyone, {name: before[name] for name in all_variables()})
    assert torch.equal(again["image"], before["image"])


def test_carried_texture_deforms_with_the_lung_and_fixed_texture_does_not() -> None:
    """A grown lung is the median one seen through its own coordinates, but for shading, grain and the heart."""
    errors = {}
    for texture in get_args(Texture):
        data = ChestPhantomDataset("val", size=128, subjects=6, tissue="sliding", texture=texture)
        data._noise["grain"] *= 0
        rest, grown = (
            data.counterfactual(torch.arange(6), {"right_lung_area": torch.full((6,), 19500.0 * ratio)})
            for ratio in (1, 1.3)
        )
        noise = data._noise | {"lung_fill": data._lung_fill}
        area, half = grown["right_lung_area"].double(), Grid.of_size(128).halves()[0]
        at = lung_at_rest(noise, area, 19500, 0, half)
        where = torch.stack(
            [at.x[:, None, :].expand(-1, 128, -1) / 200, at.y[:, :, None].expand(-1, -1, 64) / 200 - 1], 3
        )
        expected = grid_sample(rest["image"], where.float(), align_corners=False)
        inside = grown["mask"][:, 1:2, :, :64] * (1 - grown["mask"][:, 2:, :, :64])
        difference = (expected - grown["image"][..., :64]) * inside
        errors[texture] = float((difference - avg_pool2d(difference, 9, 1, 4)).abs().sum() / inside.sum())
    assert errors["carried"] < 0.4 * errors["fixed"], errors


def test_a_lung_at_rest_is_carried_nowhere_and_folds_never(carried: ChestPhantomDataset) -> None:
    noise, grid = carried._noise | {"lung_fill": carried._lung_fill}, Grid.of_size(64)
    for side, half in enumerate(grid.halves()):
        for ratio in (0.5, 1, 2):
            area = torch.full((COUNT,), 18000.0 * ratio, dtype=torch.float64)
            at = lung_at_rest(noise, area, 18000, side, half)
            assert (at.x.diff() > 0).all()
            assert (at.y.diff() > 0).all()
            assert torch.equal(at.x, half.x.expand(COUNT, -1)) == (ratio == 1)


def test_texture_follows_without_a_jump(subjects: ChestPhantomDataset) -> None:
    do = {name: subjects.attributes[name] * 1.0005 for name in AREAS}
    moved = subjects.counterfactual(torch.arange(COUNT), do)["image"]
    assert (moved - subjects.read(torch.arange(COUNT))["image"]).abs().max() < 8 / 127.5


RESTING = [("right_lung_area", 19500.0), ("left_lung_area", 17500.0), ("heart_area", 10500.0)]
SIZE, FEW = 320, 4


def at_rest(ratios: tuple[float, float, float], shift: float = 0, size: int = SIZE) -> Rest:
    """Where elastic tissue lies at rest when lungs and heart are so many times their median, (FEW, size, size)."""
    data = ChestPhantomDataset("train", size, FEW)
    noise = data._noise | {"lung_fill": data._lung_fill, "heart_x": data._noise["heart_x"] + shift}
    medians = [median for _, median in RESTING]
    areas = [torch.full((FEW,), median * ratio).double() for median, ratio in zip(medians, ratios, strict=True)]
    return elastic(noise, areas, medians, Grid.of_size(size))


@pytest.mark.parametrize("ratios", [(0.6, 0.6, 0.5), (0.6, 1.6, 1.7), (1.6, 0.6, 0.5), (1.7, 1.7, 1.7), (1, 1, 1.3)])
@pytest.mark.parametrize("shift", [0, 12])
def test_elastic_tissue_never_folds_and_rests_at_the_border(ratios: tuple[float, float, float], shift: float) -> None:
    at, pixel = at_rest(ratios, shift), 400 / SIZE
    xx, xy = at.x.diff(dim=2)[:, :-1] / pixel, at.x.diff(dim=1)[:, :, :-1] / pixel
    yx, yy = at.y.diff(dim=2)[:, :-1] / pixel, at.y.diff(dim=1)[:, :, :-1] / pixel
    assert (xx * yy - xy * yx).min() > 0.05
    still = Rest.of(Grid.of_size(SIZE))
    moved = torch.stack([(at.x - still.x).abs(), (at.y - still.y).abs()])
    rim = torch.stack([moved[..., 0], moved[..., -1], moved[:, :, 0], moved[:, :, -1]])
    assert rim.max() < 0.1, "mm, half a pixel from the border"
    assert moved.max() > 3


@pytest.mark.parametrize("ratios", [(0.7, 1.3, 1.3), (1.3, 0.7, 0.7), (1.3, 1.3, 0.7), (0.7, 0.7, 1.3)])
def test_elastic_tissue_is_displaced_smoothly(ratios: tuple[float, float, float]) -> None:
    """On a grid twice as fine second differences fall to a quarter; at a kink they would halve, at a tear stay."""
    bends = []
    for size in (SIZE, 2 * SIZE):
        at = at_rest(ratios, size=size)
        bends.append([place.diff(2, along).abs().max() for place in (at.x, at.y) for along in (1, 2)])
    assert all(fine < 0.35 * coarse for coarse, fine in zip(*bends, strict=True)), bends


def test_elastic_tissue_of_median_size_is_at_rest() -> None:
    at, still = at_rest((1, 1, 1)), Rest.of(Grid.of_size(SIZE))
    assert torch.equal(at.x, still.x.expand_as(at.x))
    assert torch.equal(at.y, still.y.expand_as(at.y))


@pytest.mark.parametrize(("name", "share"), [("left_lung_area", 0.4), ("right_lung_area", 0.4), ("heart_area", 0.75)])
@pytest.mark.parametrize("ratio", [0.8, 1.2])
def test_the_displacement_of_elastic_tissue_explains_the_film(name: str, share: float, ratio: float) -> None:
    """Films at rest, warped by it, are those of a changed area but for the other outlines, the spine and shading."""
    data, everyone = ChestPhantomDataset("val", size=128, subjects=8), torch.arange(8)
    data._noise["grain"] *= 0
    median = {key: torch.full((8,), value) for key, value in RESTING}
    asked = median | {name: median[name] * ratio}
    rest, changed = (data.counterfactual(everyone, do)["image"] for do in (median, asked))
    noise, areas = data._noise | {"lung_fill": data._lung_fill}, [asked[key].double() for key, _ in RESTING]
    at = elastic(noise, areas, [value for _, value in RESTING], Grid.of_size(128))
    warped = grid_sample(rest, torch.stack([at.x / 200, at.y / 200 - 1], 3), align_corners=False)
    assert (changed - warped).abs().mean() < share * (changed - rest).abs().mean()


def test_elastic_tissue_beyond_a_growing_lung_gives_way_ever_less() -> None:
    """Beyond the left lung's lateral wall, pushed to the image's right."""
    at, still = at_rest((1, 1.3, 1)), Rest.of(Grid.of_size(SIZE))
    pushed = (still.x - at.x)[:, SIZE * 2 // 5]  # mm, 160 mm down
    most = pushed.argmax(1)
    assert ((most > SIZE * 0.75) & (most < SIZE * 0.95)).all()
    for subject, peak in zip(pushed, most.tolist(), strict=True):
        assert 8 < subject[peak] < 20
        assert (subject[peak:].diff() <= 1e-4).all()
    assert (pushed[:, : SIZE * 2 // 5].abs() < 1e-3).all(), "nothing of the other side moves"


def test_a_heart_moves_as_a_whole_in_elastic_tissue() -> None:
    variables = all_variables() | {"heart_left": Variable(structure="heart", measure="centroid_x")}
    data = ChestPhantom(variables, size=64, subjects={"train": 8, "val": 8, "test": 8}).dataset("val")
    assert isinstance(data, ChestPhantomDataset)
    everyone = torch.arange(8)
    factual = data.read(everyone)
    moved = data.counterfactual(everyone, {"heart_left": factual["heart_left"] + 12})
    assert torch.equal(moved["mask"][:, :2], factual["mask"][:, :2])
    torch.testing.assert_close(moved["heart_left"], factual["heart_left"] + 12, atol=1.5, rtol=0)
    assert (pixel_areas(moved["mask"])[:, 2] / factual["heart_area"] - 1).abs().mean() < 0.025
    assert not torch.equal(moved["image"], factual["image"])


QUANTILES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])


def test_confounding_correlates_areas_and_keeps_their_distributions() -> None:
    tables = [ChestPhantomDataset("train", 16, 3000, confounding=c).attributes for c in (0.0, 0.5, 1.0)]
    correlations = []
    for table in tables:
        for name in ("sex", "age", "left_lung_area"):
            torch.testing.assert_close(table[name], tables[0][name], rtol=1e-6, atol=0)
        for name in AREAS:
            expected = tables[0][name].quantile(QUANTILES)
            torch.testing.assert_close(table[name].quantile(QUANTILES), expected, rtol=0.03, atol=0)
        found = torch.corrcoef(torch.stack([table[name] for name in AREAS]))
        correlations.append((float(found[0, 1]), float(found[0, 2]), float(found[1, 2])))
    assert correlations[2] == pytest.approx((0.99, -0.77, -0.77), abs=0.015), "as in the table of a confounded hospital"
    for none, half, full in zip(*correlations, strict=True):
        assert min(none, full) < half < max(none, full)


def test_confounded_noise_stays_uniform_and_none_changes_no_bit() -> None:
    uniform = torch.rand(4000, 3, dtype=torch.float64)
    uniform[0] = 0
    assert confounded(uniform, 0) is uniform
    mixed = confounded(uniform, 1)
    assert ((mixed >= 0) & (mixed <= 1)).all()
    even = torch.linspace(0, 1, 4000, dtype=torch.float64)[:, None]
    assert (mixed.sort(0).values - even).abs().max() < 0.035  # Kolmogorov-Smirnov, p < 1e-4


def test_true_counterfactuals_of_confounded_data_move_one_area_alone() -> None:
    data, everyone = ChestPhantomDataset("train", 32, 6, confounding=1.0), torch.arange(6)
    factual = data.read(everyone)
    moved = data.counterfactual(everyone, {"left_lung_area": factual["left_lung_area"] * 0.8})
    assert torch.equal(moved["mask"][:, 1:], factual["mask"][:, 1:])
    assert all(torch.equal(moved[n], factual[n]) for n in all_variables() if n != "left_lung_area")
    assert torch.equal(data.counterfactual(everyone, {})["image"], factual["image"])


def test_splits_and_seeds_are_independent() -> None:
    ages = [
        ChestPhantomDataset(split, size=16, subjects=50, seed=seed).attributes["age"]
        for split, seed in (("train", 0), ("val", 0), ("test", 0), ("train", 1))
    ]
    for i, first in enumerate(ages):
        for second in ages[i + 1 :]:
            assert not torch.isin(first, second).any()


def test_the_causal_model_is_as_declared() -> None:
    values = ChestPhantomDataset("train", size=16, subjects=2000).attributes
    areas = torch.stack([values[name] for name in AREAS])
    spread = areas.std(1) / areas.mean(1)
    assert ((spread > 0.16) & (spread < 0.21)).all()
    assert torch.corrcoef(areas).triu(1).abs().max() < 0.35
    assert values["age"].min() >= 20
    assert values["age"].max() <= 90
    assert abs(float(values["sex"].mean()) - 0.5) < 0.05
    for name, mechanism in MECHANISMS.items():
        noise = (values[name] / mechanism.base).log() - mechanism.effect(values["sex"], values["age"])
        assert noise.abs().max() <= 2.2 * mechanism.noise + 1e-4
        assert abs(float(torch.corrcoef(torch.stack([noise, values["age"]]))[0, 1])) < 0.08


def test_sex_and_age_move_the_areas_unless_those_are_held(
    subjects: ChestPhantomDataset, factual: dict[str, Tensor]
) -> None:
    everyone, do = torch.arange(COUNT), {"sex": torch.ones(COUNT), "age": torch.full((COUNT,), 80.0)}
    moved = subjects.counterfactual(everyone, do)
    for name, mechanism in MECHANISMS.items():
        by = mechanism.sex * (1 - factual["sex"]) + mechanism.age * (80 - factual["age"]) / 20
        torch.testing.assert_close(moved[name], factual[name] * by.exp())
    held = subjects.counterfactual(everyone, do | {name: factual[name] for name in AREAS})
    assert torch.equal(held["mask"], factual["mask"])
    assert not torch.equal(held["image"], factual["image"]), "age and sex show in the film itself"


def test_nan_leaves_a_subject_as_it_is(subjects: ChestPhantomDataset, factual: dict[str, Tensor]) -> None:
    asked = torch.tensor([float("nan"), 12000.0])
    moved = subjects.counterfactual(torch.tensor([0, 1]), {"heart_area": asked})
    assert torch.equal(moved["image"][0], factual["image"][0])
    assert moved["heart_area"][1] == 12000


def test_wrong_arguments_are_named(subjects: ChestPhantomDataset) -> None:
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="liver_area"):
        subjects.counterfactual(one, {"liver_area": torch.ones(1)})
    with pytest.raises(ValueError, match="-5"):
        subjects.counterfactual(one, {"heart_area": torch.tensor([-5.0])})
    with pytest.raises(ValueError, match=r"\(2,\)"):
        subjects.counterfactual(one, {"age": torch.ones(2)})
    for index in (COUNT, -1):
        with pytest.raises(ValueError, match=f"index {index}"):
            subjects.read(torch.tensor([index]))
    with pytest.raises(ValueError, match="15"):
        ChestPhantom(size=15)
    with pytest.raises(ValueError, match="got 0"):
        ChestPhantom(subjects={"val": 0})
    with pytest.raises(ValueError, match="'tset'"):
        ChestPhantom(subjects={"tset": 4})
    with pytest.raises(ValueError, match="-1"):
        ChestPhantom(seed=-1)
    with pytest.raises(ValueError, match=r"'moving'; the phantom has fixed, carried"):
        ChestPhantom(texture="moving")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'rubber'; the phantom has elastic, sliding"):
        ChestPhantom(tissue="rubber")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="elastic tissue always moves its texture"):
        ChestPhantomDataset("train", 16, 4, texture="fixed")
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"got {wrong:g}"):
            ChestPhantom(confounding=wrong)
    with pytest.raises(ValueError, match="liver_area"):
        _ = ChestPhantom({"liver_area": Variable()}, size=16, subjects={"train": 4}).description


def test_module_describes_its_data_and_loads_batches() -> None:
    data = ChestPhantom(size=32, subjects={"train": 10, "val": 4, "test": 4}, batch_size=4, confounding=0.5)
    description = data.description
    assert description.structures == STRUCTURES
    assert description.spacing == [12.5, 12.5]
    assert description.parents.structural == {f"{name}_area": name for name in STRUCTURES}
    assert [len(batch["index"]) for batch in data.train_dataloader()] == [4, 4]
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (4, 1, 32, 32)
    assert data.dataset("train").__getitem__(3)["mask"].shape == (3, 32, 32)
