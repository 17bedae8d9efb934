"""Sizes and positions: what a file states is used, what it does not is unknown, what contradicts itself is refused."""

import nibabel
import numpy as np
import pytest

from data_modules.coronary.files import read_header
from segcft.io.picture import apart, check_alike
from segcft.io.readers import read_labels, read_picture
from segcft.io.writers import write_mask
from tests.dicoms import write_dicom

FILM = np.random.default_rng(0).integers(1, 255, (5, 7), dtype=np.uint8)


def test_spacing_of_zero_is_unknown_and_the_detectors_is_divided_by_the_magnification(tmp_path):
    write_dicom(tmp_path / "a.dcm", FILM, PixelSpacing=[0, 0])
    assert read_picture(tmp_path / "a.dcm").spacing is None
    write_dicom(tmp_path / "b.dcm", FILM, ImagerPixelSpacing=[0.5, 0.5], EstimatedRadiographicMagnificationFactor=1.2)
    spacing = read_picture(tmp_path / "b.dcm").spacing
    assert 716 * spacing[0] * spacing[1] == pytest.approx(124.3, abs=0.05)
    write_dicom(tmp_path / "c.dcm", FILM, PixelSpacing=[0.5, 0.2], PatientOrientation=["F", "L"])
    assert read_picture(tmp_path / "c.dcm").spacing == (0.2, 0.5), "turned with the image"


def test_a_pixel_spacing_that_repeats_the_detectors_is_no_calibration(tmp_path):
    """DICOM PS3.3, 10.7.1.3."""
    tags = {"PixelSpacing": [0.5, 0.5], "ImagerPixelSpacing": [0.5, 0.5]}
    tags["EstimatedRadiographicMagnificationFactor"] = 1.2
    spacing = read_picture(write_dicom(tmp_path / "a.dcm", FILM, **tags)).spacing
    assert 716 * spacing[0] * spacing[1] == pytest.approx(124.3, abs=0.05)
    calibrated = write_dicom(tmp_path / "b.dcm", FILM, **tags, PixelSpacingCalibrationType="GEOMETRY")
    assert read_picture(calibrated).spacing == (0.5, 0.5)
    own = write_dicom(tmp_path / "c.dcm", FILM, **(tags | {"PixelSpacing": [0.4, 0.4]}))
    assert read_picture(own).spacing == (0.4, 0.4)
    wrong = write_dicom(tmp_path / "d.dcm", FILM, **(tags | {"EstimatedRadiographicMagnificationFactor": 0.8}))
    with pytest.raises(ValueError, match=r"EstimatedRadiographicMagnificationFactor is 0\.8, which is below 1"):
        read_picture(wrong)


def nifti(path, affine, codes=(1, 1), voxels=None, **header):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4) if voxels is None else voxels, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def test_a_volume_has_to_state_where_it_lies_and_only_once(tmp_path):
    with pytest.raises(ValueError, match=r"a\.nii.*neither sform nor qform is set"):
        read_picture(nifti(tmp_path / "a.nii", np.eye(4), (0, 0)), (0, 30))
    image = nibabel.load(nifti(tmp_path / "b.nii", np.eye(4)))
    image.set_sform(np.diag([3, 1, 1, 1]), 1)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "c.nii")
    with pytest.raises(ValueError, match=r"sform and qform place its corners up to \d\.\d mm apart"):
        read_picture(tmp_path / "c.nii", (0, 30))


def test_masks_are_compared_with_their_image_by_millimetres_at_the_corners(tmp_path):
    """Five degrees about one axis of 400 x 40 x 4 mm: hardly an entry of the affine differs by much."""
    angle = np.deg2rad(5)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    voxels = np.zeros((400, 40, 4), np.int16)
    voxels[0] = 1
    one, other = (read_labels(nifti(tmp_path / f"{name}.nii", affine, voxels=voxels))
                  for name, affine in (("a", np.eye(4)), ("b", turned)))  # fmt: skip
    assert apart(one.corners, other.corners) == pytest.approx(35.1, abs=0.1)
    check_alike(one.corners, one.corners, 1.0)
    with pytest.raises(ValueError, match=r"corners are up to 35\.\d\d mm apart"):
        check_alike(other.corners, one.corners, 1.0)


def both(path):
    """What the reader of films and slices and the reader of coronary volumes say of a volume."""
    yield lambda: read_picture(path, (0, 30))
    yield lambda: read_header(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sform_code": 0, "qform_code": 0}, "neither sform nor qform is set"),
        ({"srow_x": [3, 0, 0, 0]}, r"sform and qform place its corners up to 3\.0 mm apart"),
        ({"srow_x": [1, 0, 0, 9]}, r"sform and qform place its corners up to 9\.0 mm apart"),
        ({"qform_code": 0, "srow_x": [3, 0, 0, 0]}, r"voxels of 3 mm\^3, its pixdim of 1"),
        ({"qform_code": 0, "srow_x": [0, 0, 0, 0]}, "affine has no inverse"),
        ({"qform_code": 0, "srow_x": [np.nan, 0, 0, 0]}, "affine has no inverse"),
    ],
)
def test_one_rule_of_positions_for_all_readers(changes, message, tmp_path):
    path = nifti(tmp_path / "a.nii", np.eye(4))
    header = nibabel.Nifti1Header.from_fileobj(path.open("rb"), check=False)
    for name, value in changes.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    for read in both(path):
        with pytest.raises(ValueError, match=rf"a\.nii.*{message}"):
            read()


def test_colours_are_refused_by_all_readers(tmp_path):
    rgb = np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "a.nii")
    for read in both(tmp_path / "a.nii"):
        with pytest.raises(ValueError, match="it holds colours; grey levels are needed"):
            read()


def test_a_volume_in_micrometres_has_the_same_place_for_all_readers_and_its_mask_as_well(tmp_path):
    image = nibabel.load(nifti(tmp_path / "a.nii", np.diag([500.0, 500.0, 2000.0, 1.0])))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "b.nii")
    picture = read_picture(tmp_path / "b.nii", (0, 30))
    assert picture.spacing == pytest.approx((0.5, 0.5, 2.0))
    np.testing.assert_allclose(read_header(tmp_path / "b.nii")[1], picture.affine)
    write_mask(tmp_path / "b.nii", picture.levels > 9, tmp_path / "m.nii.gz")
    mask = read_labels(tmp_path / "m.nii.gz")
    check_alike(mask.corners, picture.corners, 0.5)
    assert np.array_equal(mask.levels > 0, picture.levels > 9)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5])
def test_half_a_voxel_is_another_place(share):
    corners = np.random.default_rng(0).random((8, 3))
    if share < 0.25:
        check_alike(corners, corners + share * 0.8 * np.array([1, 0, 0]), 0.8)
        return
    with pytest.raises(ValueError, match="not aligned with its image"):
        check_alike(corners, corners + share * 0.8 * np.array([1, 0, 0]), 0.8)
