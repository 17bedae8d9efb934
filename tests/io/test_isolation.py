"""Files are decoded in other processes, which are limited in memory and time; the result is the same."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from segcft.io.isolation import Decoders
from segcft.io.readers import read_picture
from segcft.io.writers import write_changed
from tests.dicoms import write_dicom
from tests.hostile_files import HOSTILE, compressed, runs

FILM = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)


@pytest.fixture(scope="module")
def decoders():
    return Decoders()


@pytest.fixture
def files(tmp_path):
    Image.fromarray(FILM).save(tmp_path / "a.png")
    write_dicom(tmp_path / "b.dcm", FILM, PixelSpacing=[0.5, 0.7], PatientOrientation=["P", "F"])
    affine = np.array([[0, 0, -2.0, 5], [-1.5, 0, 0, 7], [0, 3.0, 0, 9], [0, 0, 0, 1]])
    volume = nibabel.Nifti1Image(np.arange(24, dtype=np.float64).reshape(2, 3, 4), affine)
    nibabel.save(volume, tmp_path / "c.nii.gz")
    return sorted(tmp_path.iterdir())


def test_a_picture_is_the_same(decoders, files):
    for path in files:
        found, expected = decoders.read_picture(path, (0, 255)), read_picture(path, (0, 255))
        assert np.array_equal(found.levels, expected.levels)
        assert found.levels.dtype == (np.uint8 if path.suffix != ".gz" else np.float32)
        for name in ("spacing", "turn", "anatomical"):
            assert getattr(found, name) == getattr(expected, name)
        for name in ("affine", "corners"):
            one, other = getattr(found, name), getattr(expected, name)
            assert (one is other is None) or np.array_equal(one, other)


def test_a_changed_file_is_the_same(decoders, files, tmp_path):
    for path in files:
        change = np.zeros(read_picture(path, (0, 255)).levels.shape, np.float32)
        change[1:] = 9
        decoders.write_changed(path, change, tmp_path / "one", (0, 255), "test")
        write_changed(path, change, tmp_path / "other", (0, 255), "test")
        one, other = (read_picture(tmp_path / name, (0, 255)) for name in ("one", "other"))
        assert np.array_equal(one.levels, other.levels)
        assert one.levels.max() > change.max()


def test_refusals_are_those_of_the_reader(decoders, tmp_path):
    for name in ("complex.nii.gz", "postscript.png", "short.nii"):
        draw, message = HOSTILE[name]
        draw(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{tmp_path / name} cannot be read as an image: .*{message}"):
            decoders.read_picture(tmp_path / name, (0, 255))
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4)), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ValueError, match="one image or volume of at most 23 voxels"):
        decoders.read_picture(tmp_path / "a.nii", (0, 255), 23)


def test_memory_and_time_are_limited(decoders, tmp_path):
    levels = np.zeros((8000, 8000), np.uint8)
    levels[0] = 9
    Image.fromarray(levels).save(tmp_path / "large.png")
    assert np.array_equal(decoders.read_picture(tmp_path / "large.png").levels, levels)
    with pytest.raises(ValueError, match=r"large\.png cannot be read as an image: it takes too much memory"):
        Decoders(memory=2**25).read_picture(tmp_path / "large.png")
    compressed(tmp_path / "slow.dcm", RLELossless, runs(b"\0\1" * 4000**2), 4000)
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"slow\.dcm cannot be read as an image: it takes longer than 1 s"):
        Decoders(seconds=1).read_picture(tmp_path / "slow.dcm")
    assert time.perf_counter() - began < 10


def test_a_process_that_died_is_replaced(files):
    decoders = Decoders(count=1)
    decoders.start()
    with decoders._process() as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert np.array_equal(decoders.read_picture(files[0]).levels, FILM)
    with decoders._process() as other:
        pass
    assert other.pid != process.pid
    del decoders
    assert other.wait(10) is not None, "it ends with its owner"


def test_files_of_many_are_not_mixed(decoders, tmp_path):
    pictures = [np.random.default_rng(seed).integers(0, 255, (9, 9)).astype(np.uint8) for seed in range(20)]
    for number, levels in enumerate(pictures):
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda number: decoders.read_picture(tmp_path / f"{number}.png"), range(20)))
    assert all(np.array_equal(one.levels, levels) for one, levels in zip(found, pictures, strict=True))


def test_a_small_file_waits_for_a_fraction_of_a_second(decoders, files):
    decoders.read_picture(files[0])
    began = time.perf_counter()
    for _ in range(5):
        decoders.read_picture(files[0])
    assert (time.perf_counter() - began) / 5 < 0.3
