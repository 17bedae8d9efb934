"""Laws of the chest phantom: the same subject everywhere, and interventions that do what they say and nothing else."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from data_modules.chest_phantom import MECHANISMS, STRUCTURES, ChestPhantom, ChestPhantomDataset, all_variables
from segcft.parents import Variable

COUNT = 12
AREAS = list(MECHANISMS)


@pytest.fixture(scope="module")
def subjects() -> ChestPhantomDataset:
    return ChestPhantomDataset("train", size=64, subjects=COUNT, seed=1)


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
    few = ChestPhantomDataset("train", size=64, subjects=5, seed=1)
    for index in (4, 0, 3):
        alone = few.counterfactual(torch.tensor([index]), {})
        for name in ("image", "mask", *all_variables()):
            assert torch.equal(alone[name][0], factual[name][index]), (index, name)
    order = torch.tensor([7, 2, 2, 11])
    assert torch.equal(subjects.counterfactual(order, {})["image"], factual["image"][order])


@pytest.mark.parametrize("size", [33, 50])
def test_odd_sizes_do_not_depend_on_the_batch_either(size: int) -> None:
    data = ChestPhantomDataset("val", size=size, subjects=7)
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
    changed = (moved["image"] != factual["image"]).flatten(1).float().mean(1)
    assert ((changed > 0.005) & (changed < 0.5)).all(), "a film changes where the structure is, and only there"


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


def test_a_subject_is_the_same_at_every_size() -> None:
    small, large = (ChestPhantomDataset("test", size=size, subjects=6) for size in (64, 128))
    a, b = small.read(torch.arange(6)), large.read(torch.arange(6))
    assert all(torch.equal(a[name], b[name]) for name in all_variables())
    assert (correlation(avg_pool2d(b["image"], 2), a["image"]) > 0.98).all()
    assert (correlation(avg_pool2d(b["mask"], 2), a["mask"]) > 0.95).all()


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
    with pytest.raises(ValueError, match="liver_area"):
        _ = ChestPhantom({"liver_area": Variable()}, size=16, subjects={"train": 4}).description


def test_module_describes_its_data_and_loads_batches() -> None:
    data = ChestPhantom(size=32, subjects={"train": 10, "val": 4, "test": 4}, batch_size=4)
    description = data.description
    assert description.structures == STRUCTURES
    assert description.spacing == [12.5, 12.5]
    assert description.parents.structural == {f"{name}_area": name for name in STRUCTURES}
    assert [len(batch["index"]) for batch in data.train_dataloader()] == [4, 4]
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (4, 1, 32, 32)
    assert data.dataset("train").__getitem__(3)["mask"].shape == (3, 32, 32)
