"""``segcft check`` finds what is wrong before anything is trained."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from segcft.cli.main import main
from segcft.study.check import FEW
from tests import trees


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = Path(trees.folder(tmp_path)[0].split("=", 1)[1])
    assert main(["init", "mine", "--like", "folder"]) == 0
    data = Path("experiments/mine/data.yaml")
    data.write_text(data.read_text().replace("data/my_images/manifest.csv", str(manifest)))
    assert str(manifest) in data.read_text()
    return manifest


def checked(capsys, *options):
    capsys.readouterr()
    status = main(["check", "mine", *options])
    return status, capsys.readouterr().out


def test_data_that_can_be_trained_on_pass_with_a_warning_that_they_are_few(mine, capsys):
    status, text = checked(capsys)
    assert status == 0, text
    assert f"unwise  train: 16 patients, 16 images: {FEW['train']} or more" in text
    assert "images could be read" in text
    assert "left_lung: " in text
    assert "MiB on disk" in text
    assert not Path("data").exists(), "no cache is made"


def test_a_missing_manifest_and_a_broken_image_are_named(mine, capsys):
    (mine.parent / pd.read_csv(mine)["image"][0]).write_bytes(b"no image")
    status, text = checked(capsys)
    assert status == 2
    assert " wrong  " in text
    assert "row 2" in text, "of the manifest"
    status, text = checked(capsys, "--data.source.manifest=nowhere.csv")
    assert status == 2
    assert "nowhere.csv" in text


def test_empty_masks_and_a_constant_variable_are_wrong(mine, capsys):
    table = pd.read_csv(mine)
    for name in table["mask_left_lung"].dropna():
        path = mine.parent / name
        Image.fromarray(np.zeros(np.asarray(Image.open(path)).shape[:2], np.uint8)).save(path)
    table.assign(age=50).to_csv(mine, index=False)
    status, text = checked(capsys, "--data.variables.age={unit: years}")
    assert status == 2
    assert "left_lung: its mask is empty in 10 of 10 images" in text
    assert "age: all subjects have 50" in text


def test_an_hvae_of_another_size_than_the_images_is_wrong(mine, capsys):
    status, text = checked(capsys, "--data.source.frame=[96, 96]")
    assert status == 2
    assert "the HVAE's finest stage has [64, 64] pixels, images have [96, 96]" in text


def test_a_phantom_is_fine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "chest_phantom"]) == 0
    assert "8 stages: " in capsys.readouterr().out
