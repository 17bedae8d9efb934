"""CheXpert: a tree drawn in the true layout, real radiographs, and every bad input named where it lies."""

import io
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_modules.chest.chexmask import encode
from data_modules.chest.chexpert_labels import FINDINGS
from data_modules.chest.radiographs import ChestFilms, check_shape
from data_modules.chexpert import CheXpert, read_table
from data_modules.common.splits import refuse_shared
from segcft.io.csv_tables import read_columns
from segcft.io.resampling import pad_square

Tree = Callable[..., tuple[Path, Path]]
Spoil = Callable[[Path, int, str, str], None]
SPLITS = ("train", "val", "test")
LUNGS = ["left_lung", "right_lung"]


def patients(source: ChestFilms) -> list[set[str]]:
    table = source.table()
    return [set(table["patient"][table["split"] == split]) for split in SPLITS]


def rows(source: ChestFilms) -> list[dict[str, object]]:
    return source.table().to_dict("records")


def train_csv(root: Path) -> Path:
    return root / "CheXpert-v1.0-small/train.csv"


@pytest.mark.parametrize("inner", ["", "CheXpert-v1.0-small"])
def test_official_splits(chexpert_tree: Tree, inner: str) -> None:
    root, masks = chexpert_tree()
    source = CheXpert(str(root / inner), str(masks))
    assert patients(source) == [{f"patient{i:05d}" for i in ids} for ids in (range(1, 9), (9, 10), (11, 12))]
    assert source.table()["split"].value_counts().to_dict() == {"train": 16, "val": 4, "test": 4}
    names = [path.name for path in source.files()]
    assert names == ["train.csv", "valid.csv", "test.csv", "CheXmask.csv"]


def test_hashed_splits_keep_patients_apart(chexpert_tree: Tree) -> None:
    root, masks = chexpert_tree(patients=60, test_table=False)
    seeds = [patients(CheXpert(str(root), str(masks), LUNGS, size=16, seed=seed)) for seed in (0, 0, 1)]
    train, val, test = seeds[0]
    assert len(train) + len(val) + len(test) == len(train | val | test) == 60
    assert {f"patient{i:05d}" for i in (9, 10, 21, 22, 33, 34)} <= val  # valid.csv
    assert 30 < len(train) < 50
    assert test
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_patient_in_two_splits_is_refused(chexpert_tree: Tree, spoil: Spoil) -> None:
    root, masks = chexpert_tree()
    spoil(root / "CheXpert-v1.0-small/valid.csv", 2, "Path", "CheXpert-v1.0-small/valid/patient00002/study1/view1.jpg")
    message = r"1 patients lie in .*, such as patient00002 in train \(.*train.csv, row .*in val \(.*valid.csv, row 2"
    with pytest.raises(ValueError, match=message):
        refuse_shared(CheXpert(str(root), str(masks)).films())


def test_samples_hold_what_a_source_promises(chexpert_tree: Tree) -> None:
    root, masks = chexpert_tree()
    source = CheXpert(str(root), str(masks), size=32)
    table = source.table()
    assert table["id"].is_unique
    assert table.notna()[["patient", "split", "image", "origin"]].all(axis=None)
    samples = [source.read(row) for row in rows(source)[:2]]
    for sample in samples:
        assert sample.image.shape == (1, *source.frame) == (1, 32, 32)
        assert sample.image.dtype == np.uint8
        assert sample.image[0, 0, 0] == 0  # padding, or not: both shapes have a dark corner or none
        assert sample.mask.shape == (3, 32, 32)
        assert sample.mask.dtype == bool
        left, right, heart = (mask.sum(0) @ np.arange(32) / mask.sum() for mask in sample.mask)
        assert right < 12 < 14 < heart < 19 < 20 < left  # the patient's right lung lies on the left of the image
        dark = [sample.image[0][mask].mean() for mask in sample.mask]
        assert max(dark[:2]) < 127 < dark[2]
        assert sample.values["lung_contrast"] > 50
    assert [samples[k].values["image_height"] for k in (0, 1)] == [84, 60]


def test_values_and_unknown_ones(chexpert_tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root, masks = chexpert_tree()
    with caplog.at_level(logging.INFO):
        table = CheXpert(str(root), str(masks)).table()
    assert "24 frontal films, 24 with a mask" in caplog.text
    first = table.drop_duplicates("patient").set_index("patient")
    assert first["age"].tolist()[:4] == pytest.approx([23, 26, np.nan, 32], nan_ok=True)
    assert first["sex"].tolist()[:5] == pytest.approx([1, 0, 1, 0, np.nan], nan_ok=True)
    assert first["pleural_effusion"].tolist()[:4] == pytest.approx([0, np.nan, np.nan, 1], nan_ok=True)
    assert set(table) >= {"age", "sex", "ap", "dice_rca", "heart_area", *FINDINGS}
    assert (table["ap"] == 1).all()
    assert (table["dice_rca"] == 0.85).all()


def test_areas_do_not_need_decoding_and_fit_the_masks(chexpert_tree: Tree) -> None:
    root, masks = chexpert_tree()
    source = CheXpert(str(root), str(masks), size=128)
    for row in rows(source)[:6]:
        areas = source.read(row).mask.sum((1, 2)) * np.prod(source.spacing)
        np.testing.assert_allclose(areas, [row[f"{name}_area"] for name in source.structures], rtol=0.03)


def test_lungs_alone_will_do(chexpert_tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root, masks = chexpert_tree(heart=False)
    lungs = CheXpert(str(root), str(masks), LUNGS)
    assert lungs.read(rows(lungs)[0]).mask.shape[0] == 2
    source = CheXpert(str(root), str(masks))
    with caplog.at_level(logging.INFO):
        assert source.table()["heart_area"].isna().all()
    assert "blank: left_lung of 0, right_lung of 0, heart of 24 of 24" in caplog.text
    assert not source.read(rows(source)[0]).mask[2].any()


def test_a_source_travels(chexpert_tree: Tree) -> None:
    root, masks = chexpert_tree()
    source = CheXpert(str(root), str(masks), size=16)
    row = rows(source)[3]
    for sent in (pickle.loads(pickle.dumps(source)), CheXpert(str(root), str(masks), size=16)):
        assert sent.options() == source.options()
        np.testing.assert_array_equal(sent.read(row).image, source.read(row).image)


@pytest.mark.parametrize("shape", [(84, 70), (60, 80), (64, 64)])
@pytest.mark.parametrize("variant", ["auto", "preprocessed"])
def test_preprocessed_masks_lie_on_the_padded_frame(tmp_path: Path, shape: tuple[int, int], variant: str) -> None:
    """A film and its mask go through CheXmask's preprocessing; what is read back fits the mask before it."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    organ = (((x - 30) / 14) ** 2 + ((y - 25) / 9) ** 2 < 1).astype(np.uint8)
    film = tmp_path / "CheXpert-v1.0/train/patient1/study1/view1_frontal.jpg"
    film.parent.mkdir(parents=True)
    Image.fromarray(200 - 150 * organ).save(film, quality=95)
    (tmp_path / "train.csv").write_text(
        "Path,Frontal/Lateral\nCheXpert-v1.0/train/patient1/study1/view1_frontal.jpg,Frontal\n"
    )
    (tmp_path / "train").symlink_to(tmp_path / "CheXpert-v1.0/train")
    drawn = cv2.resize(pad_square(organ) * 255, (1024, 1024)) > 127
    row = {"Path": "train/patient1/study1/view1_frontal.jpg", "Dice RCA (Mean)": 1, "Left Lung": encode(drawn)}
    pd.DataFrame([row | {"Height": 1024, "Width": 1024}]).to_csv(tmp_path / "masks.csv", index=False)
    source = CheXpert(str(tmp_path), str(tmp_path / "masks.csv"), ["left_lung"], size=64, variant=variant)
    sample = source.read(rows(source)[0])
    assert source.table()["left_lung_area"][0] == pytest.approx(100 * organ.sum() / max(shape) ** 2, rel=0.02)
    assert sample.values["lung_contrast"] > 120
    assert (sample.mask[0] == (cv2.resize(pad_square(organ) * 255, (64, 64), interpolation=3) > 127)).mean() > 0.995


def test_smaller_copies_of_the_films_will_do(chexpert_tree: Tree) -> None:
    """CheXpert-small: the masks belong to the full size, areas are the same."""
    root, masks = chexpert_tree()
    source = CheXpert(str(root), str(masks), size=32)
    whole = [source.read(row) for row in rows(source)[:2]]
    for row, before in zip(rows(source)[:2], whole, strict=True):
        with Image.open(str(row["image"])) as image:
            small = image.resize((round(image.width * 0.61), round(image.height * 0.61)))
        small.save(str(row["image"]), quality=95)
        after = source.read(row)
        np.testing.assert_array_equal(after.mask, before.mask)
        assert abs(after.values["lung_contrast"] - before.values["lung_contrast"]) < 5
        assert np.abs(after.image.astype(float) - before.image).mean() < 6


@pytest.mark.parametrize(
    ("image", "mask", "hint"),
    [
        ((84, 70), (70, 84), "Height and Width seem to be exchanged"),
        ((390, 320), (2320, 2828), "Height and Width seem to be exchanged"),
        ((84, 70), (1024, 1024), "Preprocessed variant"),
        ((84, 70), (84, 68), "the same ratio of sides"),
        ((390, 320), (2828, 2828), "the same ratio of sides"),
    ],
)
def test_masks_of_another_shape_are_refused(image: tuple[int, int], mask: tuple[int, int], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        check_shape(image, mask)
    check_shape((390, 320), (2828, 2320))
    check_shape((320, 389), (2320, 2827))


BAD_CELLS = [
    ("Age", "", "a number is needed"),
    ("Age", "old", "a number is needed"),
    ("Age", "-1", "between 0 and 120"),
    ("Age", "inf", "a number is needed"),
    ("Sex", "male?", "one of Female, Male, Unknown or blank"),
    ("AP/PA", "up", "one of PA, AP, LL, RL or blank"),
    ("Pleural Effusion", "2.0", "1, 0, -1 or blank"),
    ("Pleural Effusion", "yes", "a number is needed"),
    ("Frontal/Lateral", "", "Frontal or Lateral"),
    ("Path", "", "no .../patient.../ in it"),
    ("Path", "CheXpert-v1.0-small/train/p3/view1.jpg", "no .../patient.../ in it"),
    ("Path", "CheXpert/train/patient1/../../../../etc/x.jpg", "leaves the data set's folder"),
    ("Path", "/train/patient1/x.jpg", "leaves the data set's folder"),
    ("Path", "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg", "this image occurs twice"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_named(chexpert_tree: Tree, spoil: Spoil, field: str, value: str, message: str) -> None:
    root, masks = chexpert_tree()
    spoil(train_csv(root), 9, field, value)
    with pytest.raises(ValueError, match=re.escape(f"{train_csv(root)}, row 9, {field} = {value!r}")) as error:
        CheXpert(str(root), str(masks)).table()
    assert message in str(error.value)


ODD = st.sampled_from(["", "nan", "-1", "0", "1e999", "-inf", "1024", "84", "0.5", "1 2 3", "1 5881", "9 1 2 1", "é ü"])
FIELDS = ["Path", "Sex", "Age", "Frontal/Lateral", "Edema", "Left Lung", "Heart", "Height", "Width", "Dice RCA (Mean)"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(FIELDS), value=st.text(max_size=9) | ODD, both=st.booleans())
def test_any_text_in_a_cell_is_read_or_refused(
    small_tree: tuple[Path, Path, str, str], field: str, value: str, both: bool
) -> None:
    """Never another exception than a ValueError that names a table, never an area that is not that of the mask."""
    root, masks, train, runs = small_tree
    for path, text in ((train_csv(root), train), (masks, runs)):
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        if field in table and (both or field != "Path"):
            table.loc[0, field] = value.encode("utf-8", "replace").decode()
        table.to_csv(path, index=False)
    source = CheXpert(str(root), str(masks), size=128)
    reason = ""
    try:
        for row in rows(source):
            sample = source.read(row)
            areas = sample.mask.sum((1, 2)) * np.prod(source.spacing)
            expected = [row[f"{name}_area"] for name in source.structures]
            np.testing.assert_allclose(areas, np.nan_to_num(expected), rtol=0.05, atol=0.3)
    except ValueError as error:
        reason = str(error)
    assert not reason or str(root) in reason


@pytest.fixture
def small_tree(chexpert_tree: Tree) -> tuple[Path, Path, str, str]:
    root, masks = chexpert_tree(patients=1)
    return root, masks, train_csv(root).read_text(), masks.read_text()


def test_images_that_cannot_serve(chexpert_tree: Tree, spoil: Spoil) -> None:
    root, masks = chexpert_tree()
    film = root / "CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg"
    origin = f"train.csv, row 5, Path = 'CheXpert-v1.0-small/{film.relative_to(root / 'CheXpert-v1.0-small')}': "

    def fails(message: str) -> None:
        source = CheXpert(str(root), str(masks))
        row = next(row for row in rows(source) if row["image"] == str(film))
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            source.read(row)
        assert origin in str(error.value)

    whole = film.read_bytes()
    film.write_bytes(whole[: len(whole) // 2])
    fails("cannot be read as an image: ")
    film.write_text("no image")
    fails("cannot be read as an image: ")
    film.unlink()
    fails(f"no image at {film}")
    Image.fromarray(np.full((84, 70), 900, np.uint16)).save(film, format="png")
    fails("has uint16 pixels; 8-bit grey is needed")
    film.write_bytes(whole)
    for field, value in (("Height", "70"), ("Width", "84")):
        spoil(masks, 4, field, value)
    fails("the image is 84 x 70 (height x width), its CheXmask row says 70 x 84; Height and Width seem to be exchanged")
    for field in ("Height", "Width"):
        spoil(masks, 4, field, "1024")
    fails("says 1024 x 1024; this looks like a row of the Preprocessed variant")


def test_folders_and_tables_that_cannot_serve(chexpert_tree: Tree, tmp_path: Path) -> None:
    root, masks = chexpert_tree()
    with pytest.raises(ValueError, match=r"train\.csv is needed"):
        CheXpert(str(tmp_path / "nowhere"), str(masks)).table()
    pd.read_csv(train_csv(root)).drop(columns="Age").to_csv(train_csv(root), index=False)
    table = CheXpert(str(root), str(masks)).table()
    assert table.loc[table["split"] == "train", "age"].isna().all()
    pd.read_csv(train_csv(root)).drop(columns="Path").to_csv(train_csv(root), index=False)
    with pytest.raises(ValueError, match="no column 'Path'"):
        CheXpert(str(root), str(masks)).table()
    text = train_csv(root).read_text()
    for broken, message in ((text + "one cell\n", "Expected 17 columns"), ("", "No columns"), ("a,a\n", "occur twice")):
        train_csv(root).write_text(broken)
        with pytest.raises(ValueError, match=message) as error:
            list(read_columns(train_csv(root), []))
        assert str(train_csv(root)) in str(error.value)


def test_real_chexpert_rows(shared: Path) -> None:
    path = shared / "data/chexpert_train_head.csv"
    table, raw = read_table(path), pd.read_csv(path)
    raw = raw[raw["Frontal/Lateral"] == "Frontal"]
    assert len(table) == len(raw) == 148
    assert table["id"].tolist() == raw["Path"].str.removeprefix("CheXpert-v1.0-small/").tolist()
    assert table["age"].tolist() == raw["Age"].tolist()
    assert table["sex"].sum() == (raw["Sex"] == "Male").sum()
    assert table["ap"].sum() == (raw["AP/PA"] == "AP").sum()
    assert table["pleural_effusion"].notna().sum() == raw["Pleural Effusion"].isin([0, 1]).sum()


def test_real_radiographs(real_tree: tuple[Path, Path]) -> None:
    """Left on the right, patients apart, lungs darker, and areas of 64-pixel masks within 4 % of the run lengths."""
    source = CheXpert(str(real_tree[0]), str(real_tree[1]), LUNGS, size=64)
    names = patients(source)
    assert sum(map(len, names)) == len(set.union(*names))
    table = source.table()
    samples = [source.read(row) for row in rows(source)]
    assert len(samples) == 190
    masks = np.stack([sample.mask for sample in samples])
    profile = masks.sum(2)  # (N, K, W)
    centre = profile @ np.arange(64) / profile.sum(2)
    assert (centre[:, 1] < 32).all()
    assert (centre[:, 0] > 32).all()
    areas = table[[f"{name}_area" for name in LUNGS]].to_numpy()
    error = masks.sum((2, 3)) * np.prod(source.spacing) / areas - 1
    assert np.quantile(np.abs(error), 0.99) < 0.03
    assert np.abs(error).max() < 0.04
    assert abs(error.mean()) < 0.003
    assert all(sample.values["lung_contrast"] > 0 for sample in samples)
    assert areas[:, 0].mean() == pytest.approx(13.5, abs=1)
