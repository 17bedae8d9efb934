"""PadChest: 16-bit films drawn on disk with the real CheXmask rows' identifiers."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_modules import padchest
from data_modules.chest.chexmask import decode, parse
from data_modules.padchest import PadChest


@pytest.fixture
def tree(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight real rows of masks, of which some lack Height and Width, and films drawn from these masks."""
    monkeypatch.setattr(padchest, "RARE", 2)
    masks = pd.read_csv(shared / "data/chexmask_sample/Padchest.csv").sort_values("Height", na_position="first")
    masks = pd.concat([masks.head(5), masks.dropna().tail(3)])
    masks.loc[masks.index[:5], "Dice RCA (Mean)"] = 0.9
    masks.to_csv(tmp_path / "masks.csv", index=False)
    rows = []
    for k, (name, text) in enumerate(zip(masks["ImageID"], masks["Left Lung"], strict=True)):
        lung = decode(parse(text, 2**20), (1024, 1024))[::4, ::4]
        film = (3500 - 1500 * lung.astype(np.uint16)) << (k % 3)
        film = (3500 << (k % 3)) + (1 << 10) - film if k == 1 else film
        folder = tmp_path / ("3" if k % 2 else "")
        folder.mkdir(exist_ok=True)
        Image.fromarray(film.astype(np.uint16)).save(folder / name)
        labels = ("['normal']", "['pleural effusion', ' COPD signs']", "", "['rare', 'normal', '']")[k % 4]
        row = {"ImageID": name, "ImageDir": "3" if k % 2 else "7", "PatientID": f"p{k}", "Labels": labels}
        row |= {"StudyDate_DICOM": 20150120, "PatientBirth": ["1950.0", "", "2020.0"][k % 3], "Projection": "PA"}
        row |= {"PatientSex_DICOM": ["F", "M", "O", ""][k % 4]}
        rows.append(row | {"PhotometricInterpretation_DICOM": f"MONOCHROME{1 if k == 1 else 2}"})
    rows[7]["Projection"] = "L"
    pd.DataFrame(rows).to_csv(tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", index=False)
    return tmp_path


def make(tree: Path, **options: object) -> PadChest:
    return PadChest(str(tree), str(tree / "masks.csv"), structures=["left_lung"], size=64, **options)


def test_attributes(tree: Path) -> None:
    table = make(tree).table()
    assert len(table) == 7  # one is lateral; rows without Height and Width are 1024 x 1024
    assert table["age"].tolist() == pytest.approx([65, np.nan, np.nan, 65, np.nan, np.nan, 65], nan_ok=True)
    assert table["sex"].tolist() == pytest.approx([0, 1, np.nan, np.nan, 0, 1, np.nan], nan_ok=True)
    assert table["normal"].tolist() == pytest.approx([1, 0, np.nan, 1, 1, 0, np.nan], nan_ok=True)
    assert set(table) > {"pleural_effusion", "copd_signs"}
    assert "rare" not in table
    assert table["inverted"].tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert len(make(tree, projections=["L"]).table()) == 1


def test_films_of_any_range_and_polarity_look_alike(tree: Path) -> None:
    source = make(tree)
    for row in source.table().to_dict("records"):
        sample = source.read(row)
        assert sample.image.dtype == np.uint8
        assert sample.values["lung_contrast"] > 100
        areas = sample.mask.sum() * np.prod(source.spacing)
        assert areas == pytest.approx(row["left_lung_area"], rel=0.04)
    Image.fromarray(np.full((9, 9), 700, np.uint16)).save(row["image"])
    with pytest.raises(ValueError, match=r"row 8, ImageID = .* is flat"):
        source.read(row)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("Labels", "normal", "a Python list of words"),
        ("Labels", "[1]", "a Python list of words"),
        ("PatientBirth", "old", "a number is needed"),
        ("StudyDate_DICOM", "2015", "a date as YYYYMMDD"),
        ("PatientSex_DICOM", "x", "one of F, M, O or blank"),
        ("PatientID", "", "every film needs one"),
        ("ImageID", "../secret.png", "leaves the data set's folder"),
        ("ImageID", "/etc/hostname", "leaves the data set's folder"),
        ("ImageDir", "..", "leaves the data set's folder"),
    ],
)
def test_a_bad_cell_is_named(tree: Path, field: str, value: str, message: str) -> None:
    path = next(tree.glob("PADCHEST*"))
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[2, field] = value
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match=re.escape(f"{path}, row 4, {field} = ")) as error:
        make(tree).table()
    assert message in str(error.value)
    path.rename(tree / "other.csv.gz")
    with pytest.raises(ValueError, match="one PADCHEST"):
        make(tree).files()
    assert make(tree, labels=str(tree / "other.csv.gz")).files()[0].name == "other.csv.gz"
