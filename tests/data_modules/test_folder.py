"""Manifests: every kind of file and geometry, areas against arithmetic, and every bad row named."""

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_modules.folder import Folder
from segcft.io.resampling import box_weights, resample
from tests.dicoms import write_dicom

Rows = list[dict[str, Any]]


def disc(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape) + 0.5
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) < radius**2


def manifest(folder: Path, rows: Rows) -> Path:
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Rows]:
    """Four PNGs of 40 x 30 with two masks each, in a folder with spaces and an accent: (folder, rows)."""
    folder, rows = tmp_path / "mes données", []
    folder.mkdir()
    for k in range(4):
        organs = [disc((40, 30), (20, x), 5 + k) for x in (9, 21)]
        Image.fromarray((40 + 100 * organs[0] + 50 * organs[1]).astype(np.uint8)).save(folder / f"film {k}.png")
        for name, organ in zip(("left", "right"), organs, strict=True):
            Image.fromarray(organ * np.uint8(255)).save(folder / f"{name} {k}.png")
        labels = organs[0] + 2 * organs[1].astype(np.uint8)
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"label {k}.png")
        row = {"image": f"film {k}.png", "mask_left": f"left {k}.png", "mask_right": f"right {k}.png"}
        row |= {"label": f"label {k}.png", "patient": f"p{k}", "split": ["train", "train", "valid", "test"][k]}
        rows.append(row | {"age": ["60", "", "71.5", "40"][k], "sex": ["F", "M", "", "M"][k], "comment": "fine"})
    return folder, rows


def values(source: Folder) -> list[dict[str, float]]:
    return [dict(source.read(row).values) for row in source.table().to_dict("records")]


def test_a_manifest_of_pictures(pictures: tuple[Path, Rows]) -> None:
    folder, rows = pictures
    source = Folder(str(manifest(folder, rows)), ["left", "right"], frame=[80, 80])
    table = source.table()
    assert table["split"].tolist() == ["train", "train", "val", "test"]
    assert table["age"].tolist() == pytest.approx([60, np.nan, 71.5, 40], nan_ok=True)
    assert table["sex"].tolist() == pytest.approx([0, 1, np.nan, 1], nan_ok=True)
    assert "comment" not in table
    assert source.unit == "% of image"
    for k, row in enumerate(table.to_dict("records")):
        sample = source.read(row)
        assert sample.image.shape == (1, 80, 80)
        assert sample.image.dtype == np.uint8
        assert (sample.image[0, :, :10] == 0).all()  # padding
        assert (sample.image[0, :, 10:70] >= 40).all()
        for mask, x, name in zip(sample.mask, (28, 52), ("left", "right"), strict=True):
            area = disc((40, 30), (20, 9 if name == "left" else 21), 5 + k).sum() / 16
            assert sample.values[f"{name}_area"] == pytest.approx(area)
            assert mask.sum() * np.prod(source.spacing) == pytest.approx(area)
            assert np.indices((80, 80))[1][mask].mean() == pytest.approx(x - 0.5, abs=0.01)


def test_a_label_map_says_the_same(pictures: tuple[Path, Rows]) -> None:
    folder, rows = pictures
    path = manifest(folder, rows)
    both = Folder(str(path), ["both", "right"], labels={"both": [1, 2], "right": [2]}, frame=[20, 20])
    plain = Folder(str(path), ["left", "right"], frame=[20, 20])
    for joined, single in zip(values(both), values(plain), strict=True):
        assert joined["right_area"] == pytest.approx(single["right_area"], abs=2)  # the discs may overlap
        assert joined["both_area"] <= single["left_area"] + single["right_area"] + 1e-9


def test_a_blank_mask_is_unknown_and_splits_may_be_hashed(pictures: tuple[Path, Rows]) -> None:
    folder, rows = pictures
    rows[1]["mask_left"] = ""
    for row in rows:
        del row["split"]
    source = Folder(str(manifest(folder, rows)), ["left", "right"])
    assert np.isnan([entry["left_area"] for entry in values(source)]).tolist() == [False, True, False, False]
    again = Folder(str(folder / "manifest.csv"), ["left", "right"])
    assert source.table()["split"].tolist() == again.table()["split"].tolist()


def test_empty_splits_and_manifests(pictures: tuple[Path, Rows]) -> None:
    folder, rows = pictures
    table = Folder(str(manifest(folder, rows[:1])), ["left"]).table()
    assert table["split"].tolist() == ["train"]
    path = manifest(folder, rows)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"manifest\.csv: .*no rows"):
        Folder(str(path), ["left"]).table()


BAD_CELLS = [
    ("image", "", "every row needs an image"),
    ("image", "../secret.png", "lies outside"),
    ("image", "/etc/hostname", "lies outside"),
    ("mask_left", "a/../../b.png", "lies outside"),
    ("image", "film 0.png", "this id occurs twice"),
    ("split", "training", "train, val or test"),
    ("split", "", "train, val or test"),
    ("age", "old", "a number is needed"),
    ("age", "inf", "a number is needed"),
    ("sex", "x", "one of F, M, Female, Male or blank"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_named(pictures: tuple[Path, Rows], field: str, value: str, message: str) -> None:
    folder, rows = pictures
    rows[2][field] = value
    path = manifest(folder, rows)
    with pytest.raises(ValueError, match=re.escape(f"{path}, row 4, ")) as error:
        Folder(str(path), ["left", "right"]).table()
    assert message in str(error.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(["image", "mask_left", "split", "age", "sex", "id", "patient"]), value=st.text(max_size=12)
)
def test_any_text_in_a_cell_is_read_or_refused(pictures: tuple[Path, Rows], field: str, value: str) -> None:
    folder, rows = pictures
    changed = [dict(row, id=f"id {k}") for k, row in enumerate(rows)]
    changed[2][field] = value.encode("utf-8", "replace").decode()
    path = manifest(folder, changed)
    source = Folder(str(path), ["left"], frame=[8, 8])
    reason = ""
    try:
        measured = [entry["left_area"] for entry in values(source)]
    except ValueError as error:
        reason = str(error)
    if reason:
        assert str(path) in reason
    elif field != "mask_left":
        assert measured == pytest.approx([disc((40, 30), (20, 9), 5 + k).sum() / 16 for k in range(4)])


def test_links_out_of_the_folder(pictures: tuple[Path, Rows], tmp_path: Path) -> None:
    folder, rows = pictures
    (tmp_path / "elsewhere.png").write_bytes((folder / "film 0.png").read_bytes())
    (folder / "link.png").symlink_to(tmp_path / "elsewhere.png")
    rows[0]["image"] = "link.png"
    path = manifest(folder, rows)
    with pytest.raises(ValueError, match="through a link; set allow_outside"):
        Folder(str(path), ["left"]).table()
    assert len(values(Folder(str(path), ["left"], allow_outside=True))) == 4


def test_masks_that_cannot_serve(pictures: tuple[Path, Rows]) -> None:
    folder, rows = pictures
    source = Folder(str(manifest(folder, rows)), ["left"])
    row = source.table().to_dict("records")[0]

    def fails(image: np.ndarray | None, message: str, suffix: str = ".png") -> None:
        if image is not None:
            Image.fromarray(image).save(folder / f"left 0{suffix}")
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            source.read(dict(row, mask_left=str(folder / f"left 0{suffix}")))
        assert "manifest.csv, row 2, image = 'film 0.png': " in str(error.value)

    fails(np.zeros((30, 40), np.uint8), "left 0.png has shape (30, 40), its image (40, 30)")
    fails(np.arange(1200, dtype=np.uint8).reshape(40, 30) % 5, "is not a binary mask: it holds 5 levels")
    fails(disc((40, 30), (20, 9), 6) * np.uint8(255), "is not a binary mask", ".jpg")
    (folder / "left 0.png").unlink()
    fails(None, "no image at")
    rows[0]["left_area"] = 3
    with pytest.raises(ValueError, match="the column 'left_area' would be overwritten"):
        Folder(str(manifest(folder, rows)), ["left"]).table()
    with pytest.raises(ValueError, match="no column 'mask_liver'"):
        Folder(str(folder / "manifest.csv"), ["liver"]).table()
    with pytest.raises(ValueError, match="does not state its spacing"):
        Folder(str(folder / "manifest.csv"), ["left"], spacing=[1, 1]).read(row)


def test_a_dicom_in_millimetres(tmp_path: Path) -> None:
    """Resampled to 1 mm about the centre; the area is that of the file's own pixels."""
    organ = disc((60, 50), (30, 25), 12)
    tags = {"PixelSpacing": [0.5, 0.8], "RescaleSlope": 1, "RescaleIntercept": -1000}
    write_dicom(tmp_path / "a.dcm", (1100 + 900 * organ).astype(np.int16), **tags)
    Image.fromarray(organ * np.uint8(1)).save(tmp_path / "m.png")
    path = manifest(tmp_path, [{"image": "a.dcm", "mask_organ": "m.png"}])
    window = [-1000.0, 1000.0]
    source = Folder(str(path), ["organ"], frame=[32, 44], spacing=[1.0, 1.0], window=window)
    assert (source.unit, source.dtype, source.window) == ("mm^2", "int16", (-1000, 1000))
    row = source.table().to_dict("records")[0]
    sample = source.read(row)
    area = organ.sum() * 0.4
    assert sample.values["organ_area"] == pytest.approx(area)
    assert sample.mask.sum() == pytest.approx(area, rel=0.03)
    assert sample.image[0, 16, 22] == 1000
    assert sample.image[0, 3, 22] == 100
    assert sample.image[0, 16, 0] == -1000  # beyond the image
    small = Folder(str(path), ["organ"], frame=[32, 16], spacing=[1.0, 1.0], window=window)
    with pytest.raises(ValueError, match="the frame would crop organ along axis 1: 20 pixels are needed, not 16"):
        small.read(row)


@pytest.mark.parametrize("spacing", [None, [2.0, 2.0, 2.0]])
def test_volumes(tmp_path: Path, spacing: list[float] | None) -> None:
    organ = disc((30, 24, 12), (15, 12, 6), 5)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    nibabel.Nifti1Image((-900 + 1000 * organ).astype(np.int16), affine).to_filename(tmp_path / "ct.nii.gz")
    nibabel.Nifti1Image(organ.astype(np.uint8), affine).to_filename(tmp_path / "m.nii.gz")
    path = manifest(tmp_path, [{"image": "ct.nii.gz", "label": "m.nii.gz"}])
    source = Folder(str(path), ["organ"], {"organ": [1]}, [15, 15, 15], spacing, [-1000.0, 400.0])
    row = source.table().to_dict("records")[0]
    sample = source.read(row)
    expected = organ.sum() * 2 if spacing else 100 * organ.sum() / 30**3
    assert sample.values == {"organ_volume": pytest.approx(expected)}
    assert sample.mask.sum() * np.prod(source.spacing) == pytest.approx(expected, rel=0.2)
    assert sample.image.shape == (1, 15, 15, 15)
    assert sample.image[0, 7, 7, 7] == 100
    moved = affine.copy()
    moved[0, 3] = 4
    nibabel.Nifti1Image(organ.astype(np.uint8), moved).to_filename(tmp_path / "m.nii.gz")
    with pytest.raises(ValueError, match="is not aligned with its image"):
        source.read(row)


def test_sixteen_bits_fit_the_cache(tmp_path: Path) -> None:
    levels = np.array([[0, 20000], [40000, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(np.ones((2, 2), np.uint8)).save(tmp_path / "m.png")
    path = manifest(tmp_path, [{"image": "a.png", "mask_all": "m.png"}])
    source = Folder(str(path), ["all"], frame=[2, 2], window=[0, 65535])
    sample = source.read(source.table().to_dict("records")[0])
    low, high = source.window
    np.testing.assert_allclose((sample.image[0].astype(float) - low) / (high - low) * 65535, levels, atol=1)
    assert sample.values["all_area"] == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame": [8, 9]}, "all sides must be equal"),
        ({"frame": [8]}, "two or three sides"),
        ({"spacing": [1.0]}, "give one value in mm per side"),
        ({"spacing": [1.0, -1.0]}, "give one value in mm per side"),
        ({"window": [3.0, 3.0]}, "levels apart"),
        ({"window": [0.0, 1e6]}, "levels apart"),
        ({"labels": {"b": [1]}}, "labels must name exactly"),
    ],
)
def test_options_that_cannot_serve(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folder("manifest.csv", ["a"], **options)


@pytest.mark.parametrize(("old", "new", "step"), [(12, 4, 3.0), (10, 4, 2.5), (5, 8, 0.5), (7, 20, 1.3), (20, 4, 1.0)])
def test_resampling_keeps_sums_and_centres(old: int, new: int, step: float) -> None:
    weights = box_weights(old, new, step)
    seen = weights.sum(0) * step  # how much of each old pixel lies in the frame
    assert (seen <= 1 + 1e-6).all()
    assert weights.sum() * step == pytest.approx(min(old, new * step), rel=1e-5)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)
    image = np.random.default_rng(0).random((old, old))
    np.testing.assert_allclose(resample(image, (new, new), (step, step)), weights @ image @ weights.T, rtol=1e-4)


def test_a_label_map_of_other_structures_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 20), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.uint8(255) * (np.indices((20, 20))[0] > 9).astype(np.uint8)).save(tmp_path / "l.png")
    (tmp_path / "manifest.csv").write_text("image,label\na.png,l.png\n")
    source = Folder(str(tmp_path / "manifest.csv"), ["lung"], labels={"lung": [1]}, frame=[20, 20])
    (row,) = source.table().to_dict("records")
    with pytest.raises(ValueError, match=r"l\.png holds the labels 0, 255 and none of 1"):
        source.read(row)


def test_a_png_beside_a_turned_dicom_lies_on_its_stored_pixels(tmp_path: Path) -> None:
    shown = np.random.default_rng(0).integers(1, 255, (20, 20), dtype=np.uint8)
    mask = np.zeros((20, 20), np.uint8)
    mask[3:9, 12:17] = 255  # as shown: the patient's left
    write_dicom(tmp_path / "a.dcm", shown[:, ::-1].copy(), PatientOrientation=["R", "F"])
    Image.fromarray(mask[:, ::-1].copy()).save(tmp_path / "m.png")
    (tmp_path / "manifest.csv").write_text("image,mask_lung\na.dcm,m.png\n")
    source = Folder(str(tmp_path / "manifest.csv"), ["lung"], frame=[20, 20])
    (row,) = source.table().to_dict("records")
    sample = source.read(row)
    assert np.array_equal(sample.image[0], shown)
    assert np.array_equal(sample.mask[0], mask > 0)


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        (["60,5", "71,2", "", "40"], "60,5"),
        (["061Y", "070Y", "012M", "003D"], "061Y"),
        (["", "12 mm", "9 mm", ""], "12 mm"),
    ],
)
def test_numbers_that_are_written_as_words_are_refused(
    pictures: tuple[Path, Rows], cells: list[str], value: str
) -> None:
    folder, rows = pictures
    for row, cell in zip(rows, cells, strict=True):
        row["age"] = cell
    place = 2 + cells.index(value)
    with pytest.raises(ValueError, match=rf"manifest.csv, row {place}, age = '{value}': a number is needed here"):
        Folder(str(manifest(folder, rows)), ["left", "right"], frame=[80, 80]).table()


@pytest.mark.parametrize("cells", [["fine", "good", "fine", ""], ["1.2.840", "1.2.841", "", ""], ["2020-01-05"] * 4])
def test_a_column_of_words_is_left_out_and_named(
    pictures: tuple[Path, Rows], cells: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, rows = pictures
    for row, cell in zip(rows, cells, strict=True):
        row["comment"] = cell
    table = Folder(str(manifest(folder, rows)), ["left", "right"], frame=[80, 80]).table()
    assert "comment" not in table
    assert f"manifest.csv, row 2, comment = '{cells[0]}': words" in caplog.text
