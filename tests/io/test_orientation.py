"""What is read is what viewers show, and it is written back as it was stored."""

import itertools

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageOps

from segcft.io.orientation import OF_EXIF, UPRIGHT, Turn, of_codes, of_directions
from segcft.io.readers import read_grey, read_labels, read_mask, read_picture
from segcft.io.writers import write_changed, write_mask
from tests import films
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


@pytest.mark.parametrize("tag", range(2, 9))
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_lungs_of_a_turned_photograph_are_on_their_own_sides(tag, kind, tmp_path):
    levels, _, _ = films.draw()
    exif = Image.Exif()
    exif[274] = tag
    path = tmp_path / f"a.{kind}"
    Image.fromarray(OF_EXIF[tag].store(levels)).save(path, exif=exif, dpi=(300, 150))
    assert films.lungs(read_picture(path).levels) == pytest.approx((films.LEFT, films.RIGHT), abs=0)
    write_changed(path, np.zeros(levels.shape, np.float32), tmp_path / "b.png", None, "test")
    with Image.open(tmp_path / "b.png") as written, Image.open(path) as stored:
        assert np.array_equal(np.asarray(written), np.asarray(ImageOps.exif_transpose(stored)))
        assert written.info["dpi"] == pytest.approx((300, 150) if tag < 5 else (150, 300), rel=0.01)


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


@pytest.mark.parametrize("codes", FRONTAL)
def test_both_tags_of_orientation_say_the_same_or_the_film_is_refused(codes, tmp_path):
    axes = {"L": (1, 0, 0), "R": (-1, 0, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
    vectors = [*axes[codes[0]], *axes[codes[1]]]
    stored = np.ascontiguousarray(of_codes(codes).store(FILM))
    for tags in ({}, {"PatientOrientation": list(codes)}):
        path = write_dicom(tmp_path / "a.dcm", stored, ImageOrientationPatient=vectors, **tags)
        assert np.array_equal(read_picture(path).levels, FILM)
    for other in {("R", "F"), ("L", "H")} - {codes}:
        path = write_dicom(tmp_path / "b.dcm", stored, ImageOrientationPatient=vectors, PatientOrientation=list(other))
        with pytest.raises(ValueError, match=r"b\.dcm .*PatientOrientation ./. contradicts ImageOrientationPatient"):
            read_picture(path)


def test_usual_slices_are_shown_as_they_are_stored():
    assert of_codes(["L", "P"]) == UPRIGHT == of_codes(["P", "F"]), "axial and sagittal"
    assert of_directions([0.8, 0.6, 0, -0.6, 0.8, 0]) == UPRIGHT, "oblique"


@pytest.mark.parametrize(
    "vectors", [[1, 0, 0], [0] * 6, [1, 0, 0, 1, 0, 0], [2, 0, 0, 0, 2, 0], [1, 0, 0, 0.5, 0.9, 0]]
)
def test_directions_that_make_no_image_are_refused(vectors, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", FILM, ImageOrientationPatient=vectors)
    with pytest.raises(ValueError, match=r"a\.dcm .*ImageOrientationPatient .*not two perpendicular unit vectors"):
        read_picture(path)


@pytest.mark.parametrize("codes", FRONTAL)
def test_lungs_of_a_turned_dicom_are_on_their_own_sides(codes, tmp_path):
    levels, _, _ = films.draw()
    stored = np.ascontiguousarray(of_codes(codes).store(levels))
    path = write_dicom(tmp_path / "a.dcm", stored, PatientOrientation=list(codes))
    assert films.lungs(read_picture(path).levels) == (films.LEFT, films.RIGHT)
    write_changed(path, np.zeros(levels.shape, np.float32), tmp_path / "b.dcm", None, "test")
    written = pydicom.dcmread(tmp_path / "b.dcm")
    assert np.array_equal(written.pixel_array, stored)
    assert list(written.PatientOrientation) == list(codes)


def test_a_dicom_that_states_no_orientation_is_taken_as_stored_and_says_so(tmp_path):
    picture = read_picture(write_dicom(tmp_path / "a.dcm", FILM))
    assert np.array_equal(picture.levels, FILM)
    assert picture.doubts == (
        "the DICOM file states no orientation: it is taken as stored, the patient's left on the right of the image",
    )
    assert read_picture(write_dicom(tmp_path / "b.dcm", FILM, PatientOrientation=["L", "F"])).doubts == ()
    Image.fromarray(FILM).save(tmp_path / "c.png")
    assert read_picture(tmp_path / "c.png").doubts == (), "a PNG has no tag to state it"


@pytest.mark.parametrize("codes", [["L", "R"], ["X", "F"], ["L"]])
def test_letters_that_make_no_image_are_refused(codes, tmp_path):
    write_dicom(tmp_path / "a.dcm", FILM, PatientOrientation=codes)
    with pytest.raises(ValueError, match=r"a\.dcm.*PatientOrientation .* not two directions"):
        read_picture(tmp_path / "a.dcm")


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
