"""What is read is what viewers show, and it is written back as it was stored."""

import itertools

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageOps

from segcft.io.orientation import OF_EXIF, UPRIGHT, Turn, of_codes
from segcft.io.picture import apart
from segcft.io.readers import read_grey, read_labels, read_mask, read_picture
from segcft.io.writers import write_changed, write_mask
from tests.dicoms import write_dicom

FILM = np.random.default_rng(0).integers(1, 255, (5, 7), dtype=np.uint8)
TURNS = [Turn(*flags) for flags in itertools.product((False, True), repeat=3)]
FRONTAL = [(a, b) for a, b in itertools.permutations("LRHF", 2) if {a, b} not in ({"L", "R"}, {"H", "F"})]


@pytest.mark.parametrize("turn", TURNS)
def test_storing_inverts_showing(turn):
    for pixels in (FILM, np.stack([FILM] * 3, -1)):
        assert np.array_equal(turn.store(turn.show(pixels)), pixels)
        assert np.array_equal(turn.show(turn.store(pixels)), pixels)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_exif_orientation_is_read_as_pillow_shows_it_and_written_upright(tag, mode, tmp_path):
    pixels = {"L": FILM, "RGB": np.stack([FILM] * 3, -1), "I;16": FILM.astype(np.uint16) * 200}[mode]
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = tag
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        wanted = np.asarray(ImageOps.exif_transpose(stored))
    window = (0.0, 60000.0) if mode == "I;16" else None
    found = read_picture(tmp_path / "a.png", window).levels
    assert np.array_equal(found, wanted[..., 0] if mode == "RGB" else wanted)
    assert np.array_equal(read_grey(tmp_path / "a.png"), found)
    change = np.zeros(found.shape, np.float32)
    change[0, 0] = 1
    write_changed(tmp_path / "a.png", change, tmp_path / "b.png", window, "test")
    with Image.open(tmp_path / "b.png") as written:
        assert written.getexif().get(274) is None
    again = read_picture(tmp_path / "b.png", window).levels
    assert again[0, 0] == found[0, 0] + 1
    assert (again != found).sum() == 1


def test_every_exif_orientation_is_another_turn():
    assert len(set(OF_EXIF.values())) == 8


@pytest.mark.parametrize("codes", FRONTAL)
def test_the_patients_left_is_on_the_right_of_a_frontal_image(codes, tmp_path):
    """The film is drawn as it should be shown, and stored in every orientation."""
    turn = of_codes(codes)
    write_dicom(tmp_path / "a.dcm", np.ascontiguousarray(turn.store(FILM)), PatientOrientation=list(codes))
    picture = read_picture(tmp_path / "a.dcm")
    assert np.array_equal(picture.levels, FILM)
    moved = {"L": (1, 1), "R": (1, -1), "F": (0, 1), "H": (0, -1)}  # of the shown image: axis and direction
    for stored_axis, code in ((1, codes[0]), (0, codes[1])):
        ramp = np.indices(turn.store(FILM).shape)[stored_axis]
        axis, direction = moved[code]
        steps = np.diff(turn.show(ramp), axis=axis) * direction
        assert (steps == 1).all(), "the direction that is said is the direction in which it is shown"
    change = np.zeros(FILM.shape, np.float32)
    change[1, 2] = 3
    write_changed(tmp_path / "a.dcm", change, tmp_path / "b.dcm", None, "test")
    again = read_picture(tmp_path / "b.dcm").levels
    assert (again != FILM).sum() == 1
    assert abs(int(again[1, 2]) - int(FILM[1, 2]) - 3) <= 1
    assert pydicom.dcmread(tmp_path / "b.dcm").pixel_array.shape == turn.store(FILM).shape
    write_mask(tmp_path / "a.dcm", FILM > 99, tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as mask:
        assert np.array_equal(turn.show(np.asarray(mask)) > 0, FILM > 99)


def test_the_images_orientation_in_the_patient_goes_before_the_letters(tmp_path):
    write_dicom(tmp_path / "a.dcm", FILM[:, ::-1].copy(), ImageOrientationPatient=[-1, 0, 0, 0, 0, -1],
                PatientOrientation=["L", "F"])  # fmt: skip
    assert np.array_equal(read_picture(tmp_path / "a.dcm").levels, FILM)
    assert of_codes(["L", "P"]) == UPRIGHT == of_codes(["P", "F"]), "axial and sagittal, as they are usual"


@pytest.mark.parametrize("codes", [["L", "R"], ["X", "F"], ["L"]])
def test_letters_that_make_no_image_are_refused(codes, tmp_path):
    write_dicom(tmp_path / "a.dcm", FILM, PatientOrientation=codes)
    with pytest.raises(ValueError, match=r"a\.dcm.*PatientOrientation .* not two directions"):
        read_picture(tmp_path / "a.dcm")


def test_spacing_of_zero_is_unknown_and_the_detectors_is_divided_by_the_magnification(tmp_path):
    write_dicom(tmp_path / "a.dcm", FILM, PixelSpacing=[0, 0])
    assert read_picture(tmp_path / "a.dcm").spacing is None
    write_dicom(tmp_path / "b.dcm", FILM, ImagerPixelSpacing=[0.5, 0.5], EstimatedRadiographicMagnificationFactor=1.2)
    spacing = read_picture(tmp_path / "b.dcm").spacing
    assert 716 * spacing[0] * spacing[1] == pytest.approx(124.3, abs=0.05)
    write_dicom(tmp_path / "c.dcm", FILM, PixelSpacing=[0.5, 0.2], PatientOrientation=["F", "L"])
    assert read_picture(tmp_path / "c.dcm").spacing == (0.2, 0.5), "turned with the image"


def test_levels_that_cannot_be_trusted_are_refused_by_name(tmp_path):
    write_dicom(tmp_path / "a.dcm", FILM, RescaleSlope=0, RescaleIntercept=0)
    with pytest.raises(ValueError, match="RescaleSlope is 0"):
        read_picture(tmp_path / "a.dcm")
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(ValueError, match=r"flat\.png is flat: all of its pixels are 7"):
        read_picture(tmp_path / "flat.png")
    (tmp_path / "deep.png").write_bytes(colour_png_of_16_bits())
    with pytest.raises(ValueError, match="16 bits a colour"):
        read_picture(tmp_path / "deep.png")


def colour_png_of_16_bits():
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + struct.pack(">6H", *[300 * row] * 6) for row in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_are_as_stored(bits, tmp_path):
    labels = np.arange(2**bits, dtype=np.uint8)[None].repeat(3, 0)
    if bits == 1:
        Image.fromarray(labels.astype(bool)).save(tmp_path / "a.png")
    else:
        (tmp_path / "a.png").write_bytes(grey_png(labels, bits))
    assert np.array_equal(read_labels(tmp_path / "a.png").levels, labels)


def grey_png(labels, bits):
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b""
    for row in labels:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        rows += b"\0" + bytes(int(text[place : place + 8], 2) for place in range(0, len(text), 8))
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_the_brighter_level_of_a_mask_is_the_structure(tmp_path):
    mask = FILM > 128
    palette = Image.fromarray((~mask).astype(np.uint8))  # index 0 is the structure, and white
    palette.putpalette([255, 255, 255, 0, 0, 0])
    palette.save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png").levels, mask)
    write_dicom(tmp_path / "a.dcm", np.where(mask, 0, 200).astype(np.uint8), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_mask(tmp_path / "a.dcm").levels, mask)
    palette.putpalette([9, 9, 9, 9, 9, 9])
    palette.save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="equally bright"):
        read_mask(tmp_path / "b.png")


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
    assert apart(one, other) == pytest.approx(35.1, abs=0.1)
    assert apart(one, one) == 0


def test_free_text_of_a_nifti_header_is_cleared(tmp_path):
    source = nifti(tmp_path / "a.nii", np.eye(4), aux_file=b"Doe^Jane", intent_name=b"Doe", db_name=b"Jane")
    change = np.zeros(read_picture(source, (0, 30)).levels.shape, np.float32)
    write_changed(source, change, tmp_path / "b.nii", (0, 30), "test")
    assert b"Doe" not in (tmp_path / "b.nii").read_bytes()
    assert b"Jane" not in (tmp_path / "b.nii").read_bytes()


@pytest.mark.slow
def test_two_thousand_random_files_are_read_as_the_fields_own_tools_read_them(tmp_path):
    """DICOM by pydicom and the letters of the directions, NIfTI by nibabel, PNG by Pillow."""
    random = np.random.default_rng(0)
    for number in range(2000):
        shape = tuple(random.integers(2, 7, 2))
        {0: differs_in_dicom, 1: differs_in_nifti, 2: differs_in_png}[number % 3](random, shape, tmp_path)


def differs_in_dicom(random, shape, folder):
    bits = int(random.choice([8, 12, 16]))
    stored = random.integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
    codes = FRONTAL[random.integers(len(FRONTAL))]
    slope, intercept = float(random.choice([1, 2, 0.5])), float(random.integers(-1000, 1000))
    inverted = "MONOCHROME1" if random.random() < 0.5 else "MONOCHROME2"
    write_dicom(folder / "a.dcm", stored, BitsStored=bits, PatientOrientation=list(codes), RescaleSlope=slope,
                RescaleIntercept=intercept, PhotometricInterpretation=inverted)  # fmt: skip
    window = (-2000.0, 200000.0)
    data = pydicom.dcmread(folder / "a.dcm")
    levels = pydicom.pixels.apply_modality_lut(data.pixel_array, data).astype(np.float64)
    wanted = levels if inverted == "MONOCHROME2" else sum(window) - levels
    ornt = nibabel.orientations.ornt_transform(  # of (columns, rows) to left and foot, as RAS axes
        nibabel.orientations.axcodes2ornt([{"H": "S", "F": "I"}.get(c, c) for c in codes] + ["A"]),
        nibabel.orientations.axcodes2ornt(["L", "I", "A"]),
    )
    wanted = nibabel.orientations.apply_orientation(wanted.T[..., None], ornt)[..., 0].T
    if stored.min() == stored.max():
        return
    np.testing.assert_allclose(read_picture(folder / "a.dcm", window).levels, wanted, rtol=1e-6)


def differs_in_nifti(random, shape, folder):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(random.uniform(0.5, 3, 3) * random.choice([-1, 1], 3))[random.permutation(3)]
    affine[:3, 3] = random.uniform(-50, 50, 3)
    voxels = random.integers(-1000, 1000, (*shape, 3)).astype(np.int16)
    image = nibabel.load(nifti(folder / "a.nii", affine, voxels=voxels))
    canonical = nibabel.as_closest_canonical(image)
    found = read_picture(folder / "a.nii", (-1000, 1000))
    assert np.array_equal(found.levels, np.asarray(canonical.dataobj))
    np.testing.assert_allclose(found.affine, canonical.affine, atol=1e-4)
    np.testing.assert_allclose(found.spacing, canonical.header.get_zooms(), rtol=1e-5)


def differs_in_png(random, shape, folder):
    deep = random.random() < 0.5
    image = Image.fromarray(random.integers(0, 256, shape).astype(np.uint16 if deep else np.uint8))
    exif = image.getexif()
    exif[274] = int(random.integers(1, 9))
    image.save(folder / "a.png", exif=exif)
    with Image.open(folder / "a.png") as stored:
        wanted = np.asarray(ImageOps.exif_transpose(stored))
    if wanted.min() < wanted.max():
        assert np.array_equal(read_picture(folder / "a.png", (0, 255) if deep else None).levels, wanted)
