"""Random files read as the field's own tools read them: pydicom, nibabel, Pillow, SimpleITK; or refused by name."""

from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from PIL import Image, ImageOps
from pydicom.uid import JPEG2000Lossless, RLELossless

from segcft.io.readers import read_labels, read_picture
from segcft.io.writers import suffix, write_changed
from tests.dicoms import write_dicom
from tests.io.test_orientation import FRONTAL, grey_png

try:
    import SimpleITK
except ImportError:  # no dependency of segcft
    SimpleITK = None

FILES = 2000
AXES = {"L": (1, 0, 0), "R": (-1, 0, 0), "H": (0, 0, 1), "F": (0, 0, -1)}  # LPS


@dataclass
class Drawn:
    """A file, what another tool reads in it, and why it may be refused: any of these words, or not at all."""

    path: Path
    wanted: np.ndarray
    window: tuple[float, float] | None = None
    spacing: tuple[float, ...] | None = None
    refused: list[str] = field(default_factory=list)
    tolerance: float = 0.0
    stored: np.ndarray | None = None  # what an unchanged copy holds


@pytest.mark.slow
def test_two_thousand_random_files(tmp_path):
    random, refusals = np.random.default_rng(0), 0
    for number in range(FILES):
        drawn = [a_dicom, a_nifti, a_picture][number % 3](random, tmp_path)
        if len(np.unique(np.rint(drawn.wanted))) == 1:
            drawn.refused.append("is flat")
        if drawn.refused:
            with pytest.raises(ValueError, match="|".join(drawn.refused)) as error:
                read_picture(drawn.path, drawn.window)
            assert str(drawn.path) in str(error.value)
            refusals += 1
            continue
        picture = read_picture(drawn.path, drawn.window)
        np.testing.assert_allclose(picture.levels, drawn.wanted, rtol=1e-6, atol=drawn.tolerance, err_msg=f"{number}")
        assert picture.spacing == (None if drawn.spacing is None else pytest.approx(drawn.spacing, rel=1e-4)), number
        unchanged(drawn, picture.levels.shape)
    assert 0 < refusals < 0.4 * FILES


def unchanged(drawn, shape):
    target = drawn.path.with_name(f"again{suffix(drawn.path)}")
    write_changed(drawn.path, np.zeros(shape, np.float32), target, drawn.window, "nothing")
    if target.suffix == ".png":
        with Image.open(target) as image:
            found = np.asarray(image)
    elif target.suffix == ".dcm":
        found = pydicom.dcmread(target).pixel_array
    else:
        found = np.asarray(nibabel.load(target).dataobj.get_unscaled())
    assert found.dtype.itemsize == drawn.stored.dtype.itemsize
    assert np.array_equal(found, drawn.stored)


def a_dicom(random, folder):
    bits, signed = int(random.choice([8, 10, 12, 15, 16])), bool(random.integers(2))
    low = -(2 ** (bits - 1)) if signed else 0
    kind = np.dtype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    syntax = random.choice([None, None, RLELossless, JPEG2000Lossless])
    least = 32 if syntax == JPEG2000Lossless else 2  # pixels that the encoder needs
    stored = random.integers(low, low + 2**bits, tuple(random.integers(least, least + 7, 2))).astype(kind)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(signed)}
    tags["PhotometricInterpretation"] = str(random.choice(["MONOCHROME1", "MONOCHROME2"]))
    if random.random() < 0.7:
        tags["RescaleSlope"] = float(random.choice([1, 2, 0.5, -1]))
        tags["RescaleIntercept"] = int(random.integers(-1000, 1000))
    if random.random() < 0.5:
        tags["WindowCenter"], tags["WindowWidth"] = int(random.integers(-500, 3000)), int(random.integers(2, 4000))
        tags["VOILUTFunction"] = str(random.choice(["LINEAR", "LINEAR_EXACT", "SIGMOID"]))
    orientation, affine, refused = an_orientation(random)
    sides = random.uniform(0.1, 1, 2).round(3).tolist()
    path = write_dicom(folder / "a.dcm", stored, **tags, **orientation, PixelSpacing=sides)
    if syntax is not None:
        data = pydicom.dcmread(path)
        data.compress(str(syntax))
        data.save_as(path)
    data = pydicom.dcmread(path)
    window = None if "WindowWidth" in tags and random.random() < 0.7 else (-2000.0, 9000.0)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "I", "A")))
    wanted = apply_orientation(levels_of(data, window).T[..., None], turn)[..., 0].T
    if turn[0, 0] == 1:
        sides = sides[::-1]
    rounding = 0 if window else 0.6
    return Drawn(path, wanted, window, tuple(sides), refused, rounding, data.pixel_array)


def an_orientation(random):
    """Tags, the affine of (columns, rows, slices) in RAS, and whether the tags contradict each other."""
    codes = FRONTAL[random.integers(len(FRONTAL))]
    vectors = np.array([AXES[code] for code in codes], float)
    lean = random.uniform(-0.3, 0.3)  # about the axis from left to right
    tilted = vectors @ np.array([[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]]).T
    by_codes, by_vectors = (
        {"PatientOrientation": list(codes)},
        {"ImageOrientationPatient": tilted.round(6).ravel().tolist()},
    )
    choice = int(random.integers(5))
    if choice == 0:
        return {}, affine_of(np.array([AXES["L"], AXES["F"]], float)), []
    if choice == 1:
        other = [code for code in FRONTAL if code != codes][random.integers(len(FRONTAL) - 1)]
        return by_vectors | {"PatientOrientation": list(other)}, affine_of(vectors), ["contradicts"]
    return {2: by_codes, 3: by_vectors, 4: by_codes | by_vectors}[choice], affine_of(vectors), []


def affine_of(vectors):
    ras = vectors * [-1, -1, 1]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([*ras, np.cross(*ras)], 1)
    return affine


def levels_of(data, window):
    """DICOM PS3.3, C.7.6.3.1.2, C.11.1 and C.11.2, by arithmetic on pydicom's pixels."""
    x = data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    if window is not None:
        return sum(window) - x if inverted else x
    c, w = float(data.WindowCenter), float(data.WindowWidth)
    share = {
        "LINEAR": lambda: ((x - (c - 0.5)) / (w - 1) + 0.5).clip(0, 1),
        "LINEAR_EXACT": lambda: ((x - c) / w + 0.5).clip(0, 1),
        "SIGMOID": lambda: 1 / (1 + np.exp((-4 * (x - c) / w).clip(-700, 700))),
    }[data.VOILUTFunction]()
    return 255 * (1 - share if inverted else share)


def a_nifti(random, folder):
    kind = np.dtype(str(random.choice(["u1", "i2", "u2", "i4", "f4"])))
    shape = random.integers(2, 7, 3)
    if random.random() < 0.4:
        shape[random.integers(3)] = 1
    voxels = random.integers(0, 200, shape).astype(kind)
    affine = np.eye(4)
    oblique = random.random() < 0.3
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0] if oblique else np.eye(3)[random.permutation(3)]
    affine[:3, :3] = turn @ np.diag(random.uniform(0.5, 3, 3) * random.choice([-1, 1], 3))
    affine[:3, 3] = random.uniform(-50, 50, 3)
    image = [nibabel.Nifti1Image, nibabel.Nifti2Image][random.integers(2)](voxels, affine)
    codes = random.choice([0, 1, 2], 2).tolist()
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    if scaled := bool(random.random() < 0.4):
        image.header.set_slope_inter(float(random.choice([0.5, 2])), float(random.integers(-9, 9)))
    unit = str(random.choice(["mm", "micron", "unknown"]))
    image.header.set_xyzt_units(unit)
    path = folder / f"a{random.choice(['.nii', '.nii.gz'])}"
    path.unlink(missing_ok=True)
    nibabel.save(image, path)
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    wanted, sides = (
        np.asarray(canonical.dataobj),
        np.array(canonical.header.get_zooms()) * (0.001 if unit == "micron" else 1),
    )
    if SimpleITK is not None and type(image) is nibabel.Nifti1Image and any(codes) and not oblique:
        nibabel.save(image, folder / "b.nii")  # SimpleITK 2.5 reads other numbers in small files of .nii.gz
        again = SimpleITK.DICOMOrient(
            SimpleITK.ReadImage(str(folder / "b.nii")), "RAS"
        )  # the directions in which indices grow
        np.testing.assert_allclose(SimpleITK.GetArrayFromImage(again).T, wanted, rtol=1e-6)
        np.testing.assert_allclose(again.GetSpacing(), sides, rtol=1e-5)
    if 1 in wanted.shape:
        flat = 2 if wanted.shape[2] == 1 else wanted.shape.index(1)
        wanted, sides = np.rot90(wanted.take(0, flat)), np.delete(sides, flat)[::-1]
        wanted = wanted[:, ::-1]
    window = None if kind == np.uint8 and not scaled else (0.0, 200.0)
    refused = [] if any(codes) else ["neither sform nor qform is set"]
    stored = np.asarray(nibabel.load(path).dataobj.get_unscaled())
    return Drawn(path, wanted, window, tuple(sides), refused, 0, stored)


def a_picture(random, folder):
    shape, mode = tuple(random.integers(2, 9, 2)), str(random.choice(["1", "2", "4", "8", "16", "P", "RGB", "JPEG"]))
    exif = Image.Exif()
    exif[274] = int(random.integers(1, 9))
    path = folder / ("a.jpg" if mode == "JPEG" else "a.png")
    if mode in ("2", "4"):  # Pillow does not write them
        labels = random.integers(0, 2 ** int(mode), shape).astype(np.uint8)
        path.write_bytes(grey_png(labels, int(mode)))
        assert np.array_equal(read_labels(path).levels, labels)
    else:
        a_pillow(random, shape, mode).save(path, exif=exif)
    with Image.open(path) as stored:
        shown = ImageOps.exif_transpose(stored)
        wanted = np.asarray(shown if mode == "16" else shown.convert("L"))
        copy = np.asarray(shown if mode in ("16", "RGB") or shown.mode == "RGB" else shown.convert("L"))
    return Drawn(path, wanted, (0.0, 65535.0) if mode == "16" else None, stored=copy)


def a_pillow(random, shape, mode):
    deep = random.integers(0, 2 ** (16 if mode == "16" else 8), shape)
    if mode == "1":
        return Image.fromarray(deep > 99)
    if mode == "16":
        return Image.fromarray(deep.astype(np.uint16))
    if mode == "RGB" or (mode == "JPEG" and random.random() < 0.5):
        return Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8))
    image = Image.fromarray(deep.astype(np.uint8))
    if mode == "P":
        image.putpalette(random.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image
