"""Areas of one phantom however its film and masks are stored: 14,324 mm^2 of left lung, or a refusal by name."""

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_modules.folder import Folder
from segcft.io.orientation import OF_EXIF, of_codes
from tests import films
from tests.dicoms import write_dicom
from tests.io.test_orientation import FRONTAL, grey_png

LEVELS, LEFT, RIGHT = films.draw()


def read(folder: Path, image: Path, labels: dict[str, list[int]] | None = None, **masks: Path):
    """The sample of one film, and whether its lungs lie where they are drawn."""
    columns = {name if name == "label" else f"mask_{name}": path.name for name, path in masks.items()}
    pd.DataFrame([{"image": image.name, **columns}]).to_csv(folder / "manifest.csv", index=False)
    structures = list(labels or masks)
    source = Folder(str(folder / "manifest.csv"), structures, labels, frame=[films.SIDE] * 2)
    (row,) = source.table().to_dict("records")
    return source.read(row)


def agrees(sample) -> bool:
    """Whether film and masks are as drawn, left (and right) lung."""
    drawn = np.stack([LEFT, RIGHT])[: len(sample.mask)]
    assert np.abs(sample.image[0].astype(int) - LEVELS).max() <= 30, "JPEG rounds edges"
    return bool((sample.mask == drawn).all())


def png(path: Path, pixels: np.ndarray, tag: int = 1) -> Path:
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(np.ascontiguousarray(OF_EXIF[tag].store(pixels))).save(path, exif=exif)
    return path


@pytest.mark.parametrize("tag", range(1, 9))
def test_films_and_masks_with_an_exif_orientation(tag: int, tmp_path: Path) -> None:
    film = png(tmp_path / "a.png", LEVELS, tag)
    left, right = (
        png(tmp_path / f"{n}.png", mask * np.uint8(255), t) for n, mask, t in (("l", LEFT, tag), ("r", RIGHT, 1))
    )
    sample = read(tmp_path, film, left=left, right=right)
    assert agrees(sample)
    assert sample.values["left_area"] == pytest.approx(8.952, abs=0.001)
    assert sample.values["right_area"] == pytest.approx(100 * films.RIGHT / films.SIDE**2)


@pytest.mark.parametrize("codes", FRONTAL)
@pytest.mark.parametrize("kind", ["png", "dicom without", "dicom as shown", "nifti"])
def test_masks_of_a_turned_dicom(codes: tuple[str, str], kind: str, tmp_path: Path) -> None:
    """A mask that states its orientation is read by that; a PNG lies on the stored pixels."""
    turn = of_codes(codes)
    film = write_dicom(tmp_path / "a.dcm", np.ascontiguousarray(turn.store(LEVELS)), PatientOrientation=list(codes))
    stored, shown = (np.ascontiguousarray(each).astype(np.uint8) for each in (turn.store(LEFT), LEFT))
    if kind == "png":
        mask = png(tmp_path / "m.png", stored)
    elif kind == "nifti":
        mask = tmp_path / "m.nii"
        nibabel.save(nibabel.Nifti1Image(shown.T[::-1, None, ::-1], np.eye(4)), mask)
    else:
        tags = {"PatientOrientation": ["L", "F"]} if "shown" in kind else {}
        mask = write_dicom(tmp_path / "m.dcm", shown if tags else stored, **tags)
    sample = read(tmp_path, film, left=mask)
    assert agrees(sample)
    assert sample.values["left_area"] == pytest.approx(8.952, abs=0.001)


def test_it_is_said_once_that_masks_are_taken_as_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film = write_dicom(tmp_path / "a.dcm", LEVELS[:, ::-1].copy(), PatientOrientation=["R", "F"])
    for _ in range(2):
        read(tmp_path, film, left=png(tmp_path / "m.png", LEFT[:, ::-1] * np.uint8(1)))
    assert [str(tmp_path) in message for message in caplog.messages if "stored pixels" in message] == [True]


def test_a_turned_mask_of_a_film_that_does_not_say_is_refused(tmp_path: Path) -> None:
    mask = write_dicom(tmp_path / "m.dcm", LEFT[:, ::-1].astype(np.uint8), PatientOrientation=["R", "F"])
    for film in (png(tmp_path / "a.png", LEVELS), write_dicom(tmp_path / "a.dcm", LEVELS)):
        with pytest.raises(ValueError, match=r"m\.dcm states its orientation in the patient, but its image does not"):
            read(tmp_path, film, left=mask)


@pytest.mark.parametrize(
    "colours", [[(0, 0, 0), (255, 255, 255)], [(255, 255, 255), (0, 0, 0)], [(20, 0, 90), (9, 2, 0)]]
)
def test_masks_of_two_colours(colours: list[tuple[int, int, int]], tmp_path: Path) -> None:
    """The brighter colour is the structure, whichever index it has."""
    bright = int(np.argmax([0.299 * r + 0.587 * g + 0.114 * b for r, g, b in colours]))
    image = Image.fromarray(np.where(LEFT, bright, 1 - bright).astype(np.uint8))
    image.putpalette(np.ravel(colours).tolist())
    image.save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == "P"
    sample = read(tmp_path, png(tmp_path / "a.png", LEVELS), left=tmp_path / "m.png")
    assert agrees(sample)
    assert sample.values["left_area"] == pytest.approx(8.952, abs=0.001)


def test_an_inverted_dicom_mask(tmp_path: Path) -> None:
    pixels = np.where(LEFT, 0, 255).astype(np.uint8)
    mask = write_dicom(tmp_path / "m.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    sample = read(tmp_path, png(tmp_path / "a.png", LEVELS), left=mask)
    assert agrees(sample)
    assert sample.values["left_area"] == pytest.approx(8.952, abs=0.001)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_label_maps_of_few_bits(bits: int, tmp_path: Path) -> None:
    labels = LEFT * np.uint8(1) if bits == 1 else (LEFT + 2 * RIGHT).astype(np.uint8)
    wanted = {"left": [1]} if bits == 1 else {"left": [1], "right": [2]}
    (tmp_path / "l.png").write_bytes(grey_png(labels, bits))
    sample = read(tmp_path, png(tmp_path / "a.png", LEVELS), wanted, label=tmp_path / "l.png")
    assert agrees(sample)
    assert sample.values["left_area"] == pytest.approx(8.952, abs=0.001)


def test_maps_without_any_wanted_label_are_refused(tmp_path: Path) -> None:
    film, wanted = png(tmp_path / "a.png", LEVELS), {"left": [1], "right": [2]}
    for held, labels in (("0, 255", LEFT * np.uint8(255)), ("0, 7, 9", (7 * LEFT + 9 * RIGHT).astype(np.uint8))):
        with pytest.raises(ValueError, match=rf"l\.png holds the labels {held} and none of 1, 2"):
            read(tmp_path, film, wanted, label=png(tmp_path / "l.png", labels))
    assert not read(tmp_path, film, wanted, label=png(tmp_path / "l.png", 0 * LEFT.astype(np.uint8))).mask.any()


@pytest.mark.parametrize("degrees", [0, 5])
def test_a_mask_that_lies_elsewhere_is_refused_by_millimetres(degrees: float, tmp_path: Path) -> None:
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    organ = np.zeros((400, 40, 4), np.uint8)
    organ[150:250, 10:30, 1:3] = 1
    nibabel.save(nibabel.Nifti1Image(organ * np.uint8(90), np.eye(4)), tmp_path / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(organ, affine), tmp_path / "m.nii.gz")
    pd.DataFrame([{"image": "a.nii.gz", "mask_organ": "m.nii.gz"}]).to_csv(tmp_path / "manifest.csv", index=False)
    source = Folder(str(tmp_path / "manifest.csv"), ["organ"], frame=[100, 40, 4], spacing=[4.0, 1.0, 1.0])
    (row,) = source.table().to_dict("records")
    if degrees == 0:
        assert source.read(row).values["organ_volume"] == 4000
        return
    with pytest.raises(ValueError, match=r"m\.nii\.gz: it is not aligned with its image: .* up to 35\.\d\d mm apart"):
        source.read(row)
