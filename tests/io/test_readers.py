"""Image files of every kind, written here: levels against arithmetic, and damage that is always a named ValueError."""

import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import JPEG2000Lossless, RLELossless

from segcft.io.readers import read_grey, read_labels, read_picture
from tests.dicoms import write_dicom

RAMP = np.arange(48, dtype=np.int16).reshape(6, 8) * 20


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.Nifti1Image(data, affine).to_filename(path)
    return path


def levels_or_reason(path: Path) -> np.ndarray | str:
    try:
        return read_picture(path, (0, 255)).levels
    except ValueError as error:
        return str(error)


def test_grey_files(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4, 3), 9, np.uint8)).save(tmp_path / "colour.png")
    assert read_grey(tmp_path / "colour.png").tolist() == [[9] * 4] * 3
    deep = np.full((3, 4), 900, np.uint16)
    deep[0, 0] = 901
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_grey(tmp_path / "deep.png"), deep)
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png", (0, 4095)).levels, deep)
    with pytest.raises(ValueError, match=r"deep\.png holds uint16 levels and states no window"):
        read_picture(tmp_path / "deep.png")
    Image.new("RGBA", (3, 3)).save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match="mode 'RGBA'"):
        read_grey(tmp_path / "clear.png")


def test_labels_are_taken_as_stored(tmp_path: Path) -> None:
    """A palette's indices are labels, whatever its colours; colours are none."""
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    palette = Image.fromarray(labels, "L").convert("P")
    palette.putdata(labels.ravel())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png")
    assert read_labels(tmp_path / "palette.png").levels.tolist() == labels.tolist()
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "red.png")
    with pytest.raises(ValueError, match=r"red\.png .*colours"):
        read_labels(tmp_path / "red.png")
    affine = np.eye(4)
    half = write_nifti(tmp_path / "half.nii", np.full((2, 2, 2), 0.5, np.float32), affine)
    with pytest.raises(ValueError, match="not whole numbers"):
        read_labels(half)


def test_dicom_rescale_and_spacing(tmp_path: Path) -> None:
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1024, "PixelSpacing": [0.5, 0.7]}
    picture = read_picture(write_dicom(tmp_path / "ct.dcm", RAMP, **tags), (-1000, 1000))
    np.testing.assert_array_equal(picture.levels, 2 * RAMP - 1024)
    assert picture.spacing == (0.5, 0.7)
    with pytest.raises(ValueError, match=r"ct\.dcm holds float64 levels and states no window"):
        read_picture(tmp_path / "ct.dcm")


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_errors_of_decoders_are_one_line(tmp_path: Path, syntax: str) -> None:
    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", np.tile(RAMP, (16, 12)).astype(np.uint16)))
    data.compress(syntax)
    data.PixelData = data.PixelData[:100] + bytes(len(data.PixelData) - 100)
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=r"a\.dcm cannot be read as an image") as error:
        read_picture(tmp_path / "a.dcm", (0, 4095))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_dicoms_of_any_name(tmp_path: Path, syntax: str) -> None:
    pixels = np.tile(RAMP, (16, 12)).astype(np.uint16)
    data = pydicom.dcmread(write_dicom(tmp_path / "plain.dcm", pixels))
    data.compress(syntax)
    data.save_as(tmp_path / "IM000001")
    np.testing.assert_array_equal(read_picture(tmp_path / "IM000001", (0, 4095)).levels, pixels)


def test_dicom_windows_and_inversion(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5), cut to 0 and 1; MONOCHROME1 turns black into white."""
    pixels = RAMP.astype(np.uint16)
    window = {"WindowCenter": 400, "WindowWidth": 401}
    expected = 255 * ((pixels - 399.5) / 400 + 0.5).clip(0, 1)
    seen = read_picture(write_dicom(tmp_path / "a.dcm", pixels, **window)).levels
    assert seen.dtype == np.uint8
    np.testing.assert_allclose(seen, expected, atol=0.6)
    inverted = write_dicom(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_array_equal(read_picture(inverted).levels, 255 - seen)
    np.testing.assert_array_equal(read_picture(inverted, (0, 1000)).levels, 1000 - pixels)
    plain = write_dicom(tmp_path / "c.dcm", (pixels // 4).astype(np.uint8), RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(read_picture(plain).levels, pixels // 4)


def test_dicom_voi_table(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [1024, 0, 16])
    table.add_new("LUTData", "US", (np.arange(1024) ** 2 // 16).tolist())
    path = write_dicom(tmp_path / "voi.dcm", RAMP.astype(np.uint16), VOILUTSequence=[table])
    np.testing.assert_allclose(read_picture(path).levels, 255 * (RAMP.astype(int) ** 2 // 16) / 65535, atol=0.51)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "one frame of grey levels"),
        ({"NumberOfFrames": 2}, "one frame of grey levels"),
        ({"Rows": 60000, "Columns": 60000}, "too many"),
        ({"Rows": 7}, "cannot be read"),
        ({"SharedFunctionalGroupsSequence": []}, "enhanced DICOM"),
        ({"PerFrameFunctionalGroupsSequence": []}, "enhanced DICOM"),
        ({"HighBit": 15}, "HighBit 15 does not fit BitsStored 12"),
    ],
)
def test_dicoms_that_cannot_serve(tmp_path: Path, tags: dict[str, Any], message: str) -> None:
    path = write_dicom(tmp_path / "bad file é.dcm", RAMP.astype(np.uint16), **tags)
    with pytest.raises(ValueError, match=message) as error:
        read_picture(path, (0, 1000))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_volumes_are_turned_to_ras(tmp_path: Path, name: str) -> None:
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    turned = np.array([[0, 0, -2.0, 5], [-1.5, 0, 0, 7], [0, 3.0, 0, 9], [0, 0, 0, 1]])  # PSL
    picture = read_picture(write_nifti(tmp_path / name, data, turned), (0, 30))
    assert picture.levels.shape == (4, 2, 3)
    assert picture.spacing == pytest.approx((2, 1.5, 3))
    np.testing.assert_array_equal(picture.levels, data.transpose(2, 0, 1)[::-1, ::-1])
    straight = write_nifti(tmp_path / "ras.nii", picture.levels, np.asarray(picture.affine))
    np.testing.assert_array_equal(read_picture(straight, (0, 30)).levels, picture.levels)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1)])
def test_a_slice_is_shown_as_films_are(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Voxel (2, 3) is the most right and anterior one in RAS+: the upper left of the picture."""
    data = np.arange(12, dtype=np.uint8).reshape(shape)
    picture = read_picture(write_nifti(tmp_path / "slice.nii", data, np.diag([0.5, 0.7, 1.0, 1.0])))
    assert picture.levels.shape == (4, 3)
    assert picture.levels[0].tolist() == [11, 7, 3]
    assert picture.spacing == pytest.approx((0.7, 0.5))


def test_niftis_that_cannot_serve(tmp_path: Path) -> None:
    for name, data, message in (
        ("nan", np.full((2, 2, 2), np.nan, np.float32), "not finite"),
        ("four", np.zeros((2, 2, 2, 2), np.uint8), "one image or volume"),
    ):
        path = write_nifti(tmp_path / f"{name}.nii", data, np.eye(4))
        with pytest.raises(ValueError, match=message):
            read_picture(path, (0, 1))
    (tmp_path / "a.tiff").write_text("")
    with pytest.raises(ValueError, match=r"a\.tiff .*content is not PNG, JPEG, DICOM or NIfTI"):
        read_picture(tmp_path / "a.tiff")
    for name in ("none.png", "none.dcm", "none.nii", "x" * 300 + ".png"):
        with pytest.raises(ValueError, match="no image at"):
            read_picture(tmp_path / name)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "bomb.png")
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read"):
        read_grey(tmp_path / "bomb.png")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, np.ndarray]]:
    """Suffix -> bytes of a whole file and what it holds."""
    folder = tmp_path_factory.mktemp("whole")
    image = np.random.default_rng(0).integers(0, 200, (24, 20)).astype(np.uint8)
    for suffix, quality in ((".png", {}), (".jpg", {"quality": 90})):
        Image.fromarray(image).save(folder / f"a{suffix}", **quality)
    Image.fromarray(image.astype(np.uint16) * 100).save(folder / "a.16.png")
    write_dicom(folder / "a.dcm", image)
    for suffix in (".nii", ".nii.gz"):
        write_nifti(folder / f"a{suffix}", image[:, :, None], np.eye(4))
    found = sorted(folder.iterdir())
    return {path.name[1:]: (path.read_bytes(), read_picture(path, (0, 255)).levels) for path in found}


@pytest.mark.parametrize("suffix", [".png", ".16.png", ".jpg", ".dcm", ".nii", ".nii.gz"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_refused(
    tmp_path: Path, whole: dict[str, tuple[bytes, np.ndarray]], suffix: str, share: float
) -> None:
    """Wherever it is cut: refused by name, or, when only its tail is gone, read as before."""
    data, levels = whole[suffix]
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(share * len(data))])
    seen = levels_or_reason(path)
    assert str(path) in seen if isinstance(seen, str) else (seen == levels).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".dcm", ".nii"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_else(
    tmp_path: Path, whole: dict[str, tuple[bytes, np.ndarray]], suffix: str, place: float, value: int
) -> None:
    data = bytearray(whole[suffix][0])
    data[int(place * len(data))] = value
    path = tmp_path / f"changed{suffix}"
    path.write_bytes(data)
    seen = levels_or_reason(path)
    assert not isinstance(seen, str) or str(path) in seen
