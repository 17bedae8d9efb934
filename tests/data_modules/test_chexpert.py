"""CheXpert: a tree drawn in the true layout, real radiographs, and every bad input named where it lies."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data_modules.radiographs import Radiographs
from jsonargparse import ArgumentParser
from torch import Tensor

from data_modules.base import Split
from data_modules.chexpert import CheXpert, read_table
from data_modules.transforms import Augmentation
from segcft.parents import Variable

Tree = Callable[..., tuple[Path, Path]]
Spoil = Callable[[Path, int, str, str], None]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LUNGS = ["left_lung", "right_lung"]
AREAS = {f"{name}_area": Variable(structure=name) for name in LUNGS}
ALL = AREAS | {
    "heart_area": Variable(),
    "age": Variable(unit="years"),
    "sex": Variable("binary"),
    "pleural_effusion": Variable("binary"),
}


def patients(dataset: Radiographs) -> set[str]:
    return set(re.findall(r"patient\d+", " ".join(dataset._films.images))) if dataset._films else set()


def measured(mask: Tensor, spacing: list[float]) -> Tensor:
    return mask.sum((2, 3)) * spacing[0] * spacing[1]


def train_csv(root: Path) -> Path:
    return root / "CheXpert-v1.0-small/train.csv"


@pytest.mark.parametrize("inner", ["", "CheXpert-v1.0-small"])
def test_official_splits(chexpert_tree: Tree, inner: str) -> None:
    root, masks = chexpert_tree()
    data = CheXpert(str(root / inner), str(masks), AREAS)
    names = [patients(data.dataset(split)) for split in SPLITS]
    assert names == [{f"patient{i:05d}" for i in ids} for ids in (range(1, 9), (9, 10), (11, 12))]
    assert [len(data.dataset(split)) for split in SPLITS] == [16, 4, 4]
    assert data.description.structures == ["left_lung", "right_lung", "heart"]
    assert data.description.parents["left_lung_area"].unit == "% of image"


def test_hashed_splits_keep_patients_apart(chexpert_tree: Tree) -> None:
    root, masks = chexpert_tree(patients=60, test_table=False)
    seeds = []
    for seed in (0, 0, 1):
        data = CheXpert(str(root), str(masks), AREAS, LUNGS, size=16, seed=seed)
        seeds.append([patients(data.dataset(split)) for split in SPLITS])
    train, val, test = seeds[0]
    assert len(train) + len(val) + len(test) == len(train | val | test) == 60
    assert {f"patient{i:05d}" for i in (9, 10, 21, 22, 33, 34)} <= val  # valid.csv
    assert 30 < len(train) < 50
    assert test
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_patient_in_two_splits_is_refused(chexpert_tree: Tree, spoil: Spoil) -> None:
    root, masks = chexpert_tree()
    spoil(root / "CheXpert-v1.0-small/valid.csv", 2, "Path", "CheXpert-v1.0-small/valid/patient00002/study1/view1.jpg")
    with pytest.raises(ValueError, match=r"1 patients lie in more than one split.*patient00002.*train.*val"):
        CheXpert(str(root), str(masks), AREAS).dataset("train")


def test_batches_hold_what_the_base_promises(chexpert_tree: Tree) -> None:
    root, masks = chexpert_tree()
    data = CheXpert(str(root), str(masks), AREAS, size=32)
    batch = data.dataset("train").read(torch.tensor([3, 0]))
    assert set(batch) == {"image", "mask", "index", *AREAS}
    assert batch["image"].shape == (2, 1, 32, 32)
    assert batch["image"].dtype == batch["mask"].dtype == batch["left_lung_area"].dtype == torch.float32
    assert batch["image"].min() == -1
    assert batch["image"].max() < 1
    assert set(batch["mask"].unique().tolist()) == {0, 1}
    assert batch["index"].tolist() == [3, 0]
    left, right, heart = batch["mask"].mean((0, 2)) @ torch.arange(32.0) / batch["mask"].mean((0, 2)).sum(1)
    assert right < 12 < 14 < heart < 19 < 20 < left  # the patient's right lung lies on the left of the image
    dark = [float(batch["image"][:, 0][batch["mask"][:, k] == 1].mean()) for k in range(3)]
    assert max(dark[:2]) < 0 < dark[2]


def test_values_and_missing_ones(chexpert_tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root, masks = chexpert_tree()
    with caplog.at_level(logging.INFO):
        train = CheXpert(str(root), str(masks), ALL).dataset("train")
    assert "6 of 16 films with a mask are kept; missing: age of 2, sex of 2, pleural_effusion of 8" in caplog.text
    values = train.attributes
    assert patients(train) == {"patient00001", "patient00004", "patient00008"}
    assert values["age"].tolist() == [23, 23, 32, 32, 44, 44]
    assert values["sex"].tolist() == [1, 1, 0, 0, 0, 0]
    assert values["pleural_effusion"].tolist() == [0, 0, 1, 1, 1, 1]
    assert set(values) == set(ALL)


def test_areas_do_not_need_decoding_and_fit_the_masks(chexpert_tree: Tree) -> None:
    root, masks = chexpert_tree()
    data = CheXpert(str(root), str(masks), ALL | {"age": Variable()}, size=128)
    batch = data.dataset("train").read(torch.arange(6))
    areas = measured(batch["mask"], data.spacing)
    for channel, name in enumerate(("left_lung_area", "right_lung_area", "heart_area")):
        torch.testing.assert_close(areas[:, channel], batch[name], rtol=0.03, atol=0)


def test_lungs_alone_will_do(chexpert_tree: Tree) -> None:
    root, masks = chexpert_tree(heart=False)
    assert CheXpert(str(root), str(masks), AREAS, LUNGS).dataset("val").read(torch.arange(4))["mask"].shape[1] == 2
    with pytest.raises(ValueError, match="24 have a blank structure"):
        CheXpert(str(root), str(masks), AREAS).dataset("train")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_keeps_areas_true_and_spares_validation(chexpert_tree: Tree, num_workers: int) -> None:
    root, masks = chexpert_tree()
    arguments = {"size": 32, "augment": True, "batch_size": 8, "num_workers": num_workers}
    data = CheXpert(str(root), str(masks), AREAS, LUNGS, **arguments)
    plain = CheXpert(str(root), str(masks), AREAS, LUNGS, size=32)
    for batch in data.train_dataloader():
        areas = measured(batch["mask"], data.spacing)
        torch.testing.assert_close(areas, torch.stack([batch[name] for name in AREAS], 1))
        still = plain.dataset("train").read(batch["index"])
        assert (batch["image"] - still["image"]).abs().mean() > 0.01
        assert (batch["left_lung_area"] != still["left_lung_area"]).any()
    assert data.description.parents == plain.description.parents
    for split in ("val", "test"):
        first, second = (next(iter(module.loader(split))) for module in (data, plain))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_seed_repeats_the_augmentation_but_not_the_epoch(chexpert_tree: Tree) -> None:
    root, masks = chexpert_tree()
    runs = []
    for seed in (0, 0, 1):
        train = CheXpert(str(root), str(masks), AREAS, LUNGS, 32, augment=True, seed=seed).dataset("train")
        runs.append([train.read(torch.arange(4))["image"] for _ in range(2)])
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert not torch.equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize(("text", "strengths"), [("true", Augmentation()), ("{rotate: 3}", Augmentation(rotate=3))])
def test_augmentation_from_yaml(text: str, strengths: Augmentation) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(CheXpert, "data")
    given = ["--data=CheXpert", "--data.root=a", "--data.masks=b", f"--data.augment={text}"]
    given.append("--data.variables={left_lung_area: {structure: left_lung}}")
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its older name
    data = instantiate(parser.parse_args(given)).data
    assert data.augmentation == strengths


BAD_CELLS = [
    ("Age", "", "a number is needed"),
    ("Age", "old", "a number is needed"),
    ("Age", "-1", "between 0 and 120"),
    ("Sex", "male?", "Female, Male or Unknown"),
    ("Pleural Effusion", "2.0", "1, 0, -1 or blank"),
    ("Pleural Effusion", "yes", "a number is needed"),
    ("Frontal/Lateral", "", "Frontal or Lateral"),
    ("Path", "", "no .../patient.../ in it"),
    ("Path", "CheXpert-v1.0-small/train/p3/view1.jpg", "no .../patient.../ in it"),
    ("Path", "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg", "this image occurs twice"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_named(chexpert_tree: Tree, spoil: Spoil, field: str, value: str, message: str) -> None:
    root, masks = chexpert_tree()
    spoil(train_csv(root), 9, field, value)
    with pytest.raises(ValueError, match=re.escape(f"{train_csv(root)}, row 9, {field} = '{value or 'nan'}'")) as error:
        CheXpert(str(root), str(masks), ALL).dataset("train")
    assert message in str(error.value)


def test_bad_cells_of_unused_columns_do_not_matter(chexpert_tree: Tree, spoil: Spoil) -> None:
    root, masks = chexpert_tree()
    spoil(train_csv(root), 9, "Age", "old")
    assert len(CheXpert(str(root), str(masks), AREAS).dataset("train")) == 16


def test_images_that_cannot_serve(chexpert_tree: Tree, spoil: Spoil) -> None:
    root, masks = chexpert_tree()
    film = root / "CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg"
    origin = rf"train.csv, row 5, Path = 'CheXpert-v1.0-small/{film.relative_to(root / 'CheXpert-v1.0-small')}': "

    def fails(message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            CheXpert(str(root), str(masks), AREAS).train_dataloader()
        assert origin in str(error.value)

    whole = film.read_bytes()
    film.write_bytes(whole[: len(whole) // 2])
    fails("cannot be read as an image: ")
    film.write_text("no image")
    fails("cannot be read as an image: ")
    film.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{origin}no image at {film} (0 others")):
        CheXpert(str(root), str(masks), AREAS).dataset("train")  # before anything is decoded
    film.write_bytes(whole)
    for field, value in (("Height", "70"), ("Width", "84")):
        spoil(masks, 4, field, value)
    fails("the image is 84 x 70 (height x width), its CheXmask row says 70 x 84; Height and Width look exchanged")
    for field in ("Height", "Width"):
        spoil(masks, 4, field, "1024")
    fails("says 1024 x 1024; this looks like the Preprocessed variant")


def test_folders_and_variables_that_cannot_serve(chexpert_tree: Tree, tmp_path: Path) -> None:
    root, masks = chexpert_tree()
    with pytest.raises(ValueError, match=r"train\.csv is needed"):
        CheXpert(str(tmp_path / "nowhere"), str(masks), AREAS).dataset("train")
    with pytest.raises(ValueError, match=r"this data set offers left_lung_area.*pleural_effusion"):
        CheXpert(str(root), str(masks), {"weight": Variable()})
    with pytest.raises(ValueError, match=r"'heart_area' .*offers left_lung_area, right_lung_area, age"):
        CheXpert(str(root), str(masks), {"heart_area": Variable(structure="heart")}, LUNGS)
    with pytest.raises(ValueError, match=r"areas are in '% of image' here, not in 'mm\^2'"):
        CheXpert(str(root), str(masks), {"heart_area": Variable(unit="mm^2")})
    with pytest.raises(ValueError, match=r"no film is left for train: 0 of 16 .*missing: fracture of 16"):
        CheXpert(str(root), str(masks), {"fracture": Variable("binary")}).dataset("train")
    with pytest.raises(ValueError, match="variable 'age', training split: a binary"):
        _ = CheXpert(str(root), str(masks), {"sex": Variable("binary"), "age": Variable("binary")}).description
    pd.read_csv(train_csv(root)).drop(columns="Age").to_csv(train_csv(root), index=False)
    with pytest.raises(ValueError, match="no column 'Age'"):
        CheXpert(str(root), str(masks), {"age": Variable()}).dataset("train")


def test_real_chexpert_rows(shared: Path) -> None:
    path = shared / "data/chexpert_train_head.csv"
    table = read_table(path, ["Age", "Sex", "Pleural Effusion"])
    raw = pd.read_csv(path)
    raw = raw[raw["Frontal/Lateral"] == "Frontal"]
    assert len(table) == len(raw) == 148
    assert table["key"].tolist() == raw["Path"].str.removeprefix("CheXpert-v1.0-small/").tolist()
    assert table["Age"].tolist() == raw["Age"].tolist()
    assert table["Sex"].sum() == (raw["Sex"] == "Male").sum()
    assert table["Pleural Effusion"].notna().sum() == raw["Pleural Effusion"].isin([0, 1]).sum()


def test_real_radiographs(real_tree: tuple[Path, Path]) -> None:
    """Left on the right, patients apart, and areas of 64-pixel masks within 3 % of the run lengths."""
    root, masks = real_tree
    data = CheXpert(str(root), str(masks), AREAS, LUNGS, size=64)
    names = [patients(data.dataset(split)) for split in SPLITS]
    assert sum(map(len, names)) == len(set.union(*names))
    count = 0
    for split in SPLITS:
        batch = data.dataset(split).read(torch.arange(len(data.dataset(split))))
        profile = batch["mask"].sum(2)  # (B, K, W)
        centre = profile @ torch.arange(64.0) / profile.sum(2)
        assert (centre[:, 1] < 32).all()
        assert (centre[:, 0] > 32).all()
        areas = torch.stack([batch[name] for name in AREAS], 1)
        error = measured(batch["mask"], data.spacing) / areas - 1
        assert error.abs().quantile(0.99) < 0.03
        assert error.abs().max() < 0.04
        assert error.mean().abs() < 0.003
        assert -0.9 < batch["image"].mean() < 0.5
        count += len(areas)
    assert count == 190
    assert np.isclose(data.description.parents["left_lung_area"].mean, 13.5, atol=1)
