"""Files that lie about their format or size are refused from their headers, in little memory."""

import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from data_modules.coronary.files import read_volume
from segcft.inference.command import find_files
from segcft.io.readers import is_picture, read_grey, read_labels, read_mask, read_picture
from segcft.io.writers import suffix, write_changed
from tests.dicoms import write_dicom
from tests.hostile_files import HOSTILE, POSTSCRIPT, compressed, runs

PEAK = """
import resource, sys
from pathlib import Path
from segcft.io.readers import is_picture, read_picture
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    is_picture(path)
    try:
        read_picture(path, (0, 255))
    except ValueError as error:
        print(path.name, int(peak() - before), error, sep="|")
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for name, (draw, _) in HOSTILE.items():
        draw(folder / name)
        assert (folder / name).stat().st_size < 3 * 2**20
    return folder


def test_hostile_files_are_refused_in_little_memory(hostile):
    done = subprocess.run([sys.executable, "-c", PEAK, hostile], capture_output=True, text=True, check=True)
    said = {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines()}
    assert set(said) == set(HOSTILE)
    for name, (_, message) in HOSTILE.items():
        peak, reason = said[name]
        assert message in reason, reason
        assert f"{name} cannot be read as an image" in reason
        assert int(peak) < 100, f"{name}: {peak} MB"


def test_all_readers_refuse_them(hostile, tmp_path):
    for name in HOSTILE:
        for read in (read_picture, read_labels, read_mask):
            with pytest.raises(ValueError, match=name):
                read(hostile / name)
        with pytest.raises(ValueError):  # noqa: PT011, some name no file, as it was read before
            write_changed(hostile / name, np.zeros((2, 2), np.float32), tmp_path / "out", (0, 255), "test")
        if ".nii" in name:
            with pytest.raises(ValueError, match=name):
                read_volume(hostile / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [read_grey, read_picture, read_labels])
def test_no_other_program_is_started(read, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.dcm", "a.nii.gz", "a"])
def test_a_file_is_what_its_content_is(name, tmp_path):
    levels = np.random.default_rng(0).integers(0, 200, (6, 8)).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / name, format="PNG")
    assert np.array_equal(read_picture(tmp_path / name).levels, levels)
    assert (is_picture(tmp_path / name), suffix(tmp_path / name)) == (True, ".png")
    write_dicom(tmp_path / name, levels)
    assert np.array_equal(read_picture(tmp_path / name).levels, levels)
    assert suffix(tmp_path / name) == ".dcm"
    assert list(find_files(tmp_path, tmp_path / "out")) == [tmp_path / name]


def test_a_file_that_calls_itself_an_image_is_not_passed_over(tmp_path):
    (tmp_path / "a.png").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_bytes(b"junk")
    assert list(find_files(tmp_path, tmp_path / "out")) == [tmp_path / "a.png"]


@pytest.mark.parametrize("padding", [0, 1, 16])
def test_run_lengths_with_padding_are_read(padding, tmp_path):
    compressed(tmp_path / "a.dcm", RLELossless, runs(bytes([3, 1, 2, 3, 4, *[0] * padding])))
    with pytest.warns(UserWarning, match="padding") if padding > 1 else pytest.MonkeyPatch.context():
        assert read_picture(tmp_path / "a.dcm", (0, 255)).levels.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize(
    "tags", [{}, {"RescaleSlope": 2, "RescaleIntercept": -9}, {"WindowCenter": 9, "WindowWidth": 99}]
)
def test_levels_by_a_table_are_those_of_each_pixel(kind, tags, tmp_path):
    from segcft.io.dicom import dicom_levels, levels_of

    limits = np.iinfo(kind)
    pixels = np.random.default_rng(0).integers(limits.min, limits.max, (9, 7)).astype(kind)
    pixels[0, :2] = limits.min, limits.max
    tags = {**tags, "BitsStored": limits.bits, "HighBit": limits.bits - 1}
    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", pixels, **tags))
    for window in (None, (0.0, 100.0)):
        found = dicom_levels(data, window)
        expected = levels_of(data, window, pixels)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
