"""MIMIC-CXR-JPG: real radiographs in its layout, its tables joined, black borders cut as CheXmask did."""

import gzip
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_modules.chest.chexmask import encode
from data_modules.mimic_cxr import MimicCXR
from segcft.io.resampling import pad_square

DICOMS = [f"{i:08x}-{i:08x}-00000000-00000000-00000000" for i in range(1, 7)]
SUBJECTS = ["10000001", "10000001", "10000002", "10000003", "10000004", "10000005"]


def organ(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None]
    return (((x - 0.7) / 0.2) ** 2 + ((y - 0.45) / 0.3) ** 2 < 1).astype(np.uint8)


def zipped(path: Path, table: pd.DataFrame) -> None:
    with gzip.open(path, "wt", newline="") as file:
        table.to_csv(file, index=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six films of five patients: AP, PA, LATERAL, blank, AP, AP; the mask table is Preprocessed."""
    studies = [f"5000000{i}" for i in range(1, 7)]
    views = ["AP", "PA", "LATERAL", "", "AP", "AP"]
    ids = {"dicom_id": DICOMS, "subject_id": SUBJECTS, "study_id": studies}
    zipped(
        tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz",
        pd.DataFrame(ids | {"ViewPosition": views, "StudyDate": [21800506] * 6}),
    )
    splits = ["train", "train", "train", "train", "validate", "test"]
    pd.DataFrame(ids | {"split": splits}).to_csv(tmp_path / "mimic-cxr-2.0.0-split.csv", index=False)
    labels = {"subject_id": SUBJECTS[:4], "study_id": studies[:4], "Edema": [1.0, -1.0, 0.0, ""]}
    zipped(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", pd.DataFrame(labels))
    people = {"subject_id": ["10000001", "10000004"], "gender": ["F", "M"], "anchor_age": [52, 91]}
    zipped(tmp_path / "patients.csv.gz", pd.DataFrame(people | {"anchor_year": [2178, 2180]}))
    masks = []
    for k, dicom in enumerate(DICOMS):
        film = 60 + 120 * (1 - organ((90, 60 + 10 * k)))
        framed = np.pad(film, ((7, 12), (20, 0))).astype(np.uint8)  # black borders
        path = tmp_path / f"files/p10/p{SUBJECTS[k]}/s{studies[k]}/{dicom}.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(framed).save(path, format="PNG")  # no loss, so that borders are exact
        drawn = cv2.resize(pad_square(organ(film.shape)) * 255, (1024, 1024)) > 127
        masks.append({"dicom_id": dicom, "Dice RCA (Mean)": 0.8, "Left Lung": encode(drawn)})
    pd.DataFrame(masks).assign(Height=1024, Width=1024).to_csv(tmp_path / "masks.csv", index=False)
    return tmp_path


def make(tree: Path, **options: object) -> MimicCXR:
    return MimicCXR(str(tree), str(tree / "masks.csv"), structures=["left_lung"], size=64, **options)


def test_tables_are_joined(tree: Path) -> None:
    source = make(tree)
    table = source.table().set_index("id")
    assert table.index.tolist() == [DICOMS[k] for k in (0, 1, 4, 5)]
    assert table["split"].tolist() == ["train", "train", "val", "test"]
    assert table["ap"].tolist() == [1, 0, 1, 1]
    assert table["edema"].tolist() == pytest.approx([1, np.nan, np.nan, np.nan], nan_ok=True)
    assert table["age"].tolist() == pytest.approx([54, 54, np.nan, np.nan], nan_ok=True)  # 2180 - 2178; 91 is unknown
    assert table["sex"].tolist() == pytest.approx([0, 0, 1, np.nan], nan_ok=True)
    assert [path.name.split("-")[-1] for path in source.files()] == [
        *("metadata.csv.gz", "split.csv", "chexpert.csv.gz", "patients.csv.gz", "masks.csv")
    ]
    assert len(make(tree, views=["LATERAL"]).table()) == 1
    (tree / "patients.csv.gz").unlink()
    assert "age" not in make(tree).table()


def test_black_borders_are_cut_before_padding(tree: Path) -> None:
    """The frame is the film without its borders; a mask drawn on it fits."""
    source = make(tree)
    for row, wide in zip(source.table().to_dict("records"), (60, 70, 100, 110), strict=True):
        sample, shape = source.read(row), (90, wide)
        assert (sample.values["image_height"], sample.values["image_width"]) == shape
        assert sample.values["lung_contrast"] > 80
        assert row["left_lung_area"] == pytest.approx(100 * organ(shape).sum() / max(shape) ** 2, rel=0.01)
        dark = (sample.image[0] < 120) & (sample.image[0] > 30)
        assert (dark == sample.mask[0])[sample.image[0] > 30].mean() > 0.93  # but for blurred edges
    Image.fromarray(np.zeros((50, 40), np.uint8)).save(row["image"])
    with pytest.raises(ValueError, match=r"metadata\.csv\.gz, row 7, dicom_id = .*the image is black"):
        source.read(row)


BAD_CELLS = [
    ("metadata.csv", 2, "subject_id", "x1", "not a subject_id of MIMIC-CXR"),
    ("metadata.csv", 2, "dicom_id", "../../secret", "not a dicom_id of MIMIC-CXR"),
    ("metadata.csv", 3, "dicom_id", DICOMS[0], "this image occurs twice"),
    ("metadata.csv", 2, "StudyDate", "180-01-01", "a number is needed"),
    ("metadata.csv", 2, "StudyDate", "21801301", "a date as YYYYMMDD"),
    ("split.csv", 2, "split", "valid", "train, validate or test"),
    ("split.csv", 3, "dicom_id", DICOMS[0], "this image occurs twice"),
    ("chexpert.csv", 2, "Edema", "3", "1, 0, -1 or blank"),
    ("chexpert.csv", 3, "study_id", "50000001", "this study occurs twice"),
    ("patients.csv", 2, "gender", "X", "one of F, M or blank"),
    ("patients.csv", 2, "anchor_age", "-3", "between 0 and 120"),
]


@pytest.mark.parametrize(("name", "row", "field", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_named(tree: Path, name: str, row: int, field: str, value: str, message: str) -> None:
    stem = name if name == "patients.csv" else f"mimic-cxr-2.0.0-{name}"
    path = next(path for path in (tree / stem, tree / f"{stem}.gz") if path.exists())
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[row - 2, field] = value
    zipped(path, table) if path.suffix == ".gz" else table.to_csv(path, index=False)
    with pytest.raises(ValueError, match=re.escape(f"{path}, row {row}, {field} = '{value}'")) as error:
        make(tree).table()
    assert message in str(error.value)


def test_a_film_without_a_split_and_missing_tables_are_refused(tree: Path) -> None:
    split = tree / "mimic-cxr-2.0.0-split.csv"
    pd.read_csv(split).iloc[1:].to_csv(split, index=False)
    with pytest.raises(ValueError, match=r"row 2, dicom_id = .*split\.csv gives it no split"):
        make(tree).table()
    (tree / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(ValueError, match=r"metadata\.csv\.gz"):
        make(tree).table()
    split.unlink()
    with pytest.raises(ValueError, match=r"no mimic-cxr-2\.0\.0-split\.csv or"):
        make(tree).files()


def test_real_radiographs(real_mimic: tuple[Path, Path]) -> None:
    """Every third real film in the layout: left on the right, areas of run lengths, patients apart."""
    source = MimicCXR(str(real_mimic[0]), str(real_mimic[1]), structures=["left_lung", "right_lung"], size=64)
    table = source.table()
    assert len(table) == 190
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert set(table["split"]) == {"train", "val", "test"}
    for row in table.iloc[::8].to_dict("records"):
        sample = source.read(row)
        left, right = (mask.sum(0) @ np.arange(64) / mask.sum() for mask in sample.mask)
        assert right < 32 < left
        areas = sample.mask.sum((1, 2)) * np.prod(source.spacing)
        np.testing.assert_allclose(areas, [row["left_lung_area"], row["right_lung_area"]], rtol=0.04)
        assert sample.values["lung_contrast"] > 0
