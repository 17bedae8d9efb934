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


def test_a_frame_that_cannot_be_halved_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "coronary_phantom", "--data.init_args.frame=[96, 40]"]) == 2
    assert "images of 96 x 40 pixels cannot be halved" in capsys.readouterr().out


def test_values_that_a_variable_cannot_have_are_named(mine, capsys):
    table = pd.read_csv(mine)
    table["age"], table["ap"] = 20 + 365 * table.index, table.index % 3
    table.to_csv(mine, index=False)
    status, text = checked(capsys, "--data.variables.age={unit: years}", "--data.variables.ap={kind: binary}")
    assert status == 2
    assert "wrong  ap: a binary variable has the values 0 to 1, and here 2 as well" in text
    assert "unwise  age: 20 to 8" in text
    status, _ = checked(capsys, "--data.variables.age={unit: days}")
    assert status == 0


def test_millimetres_that_no_file_states_are_wrong(mine, capsys):
    status, text = checked(capsys, "--data.variables.left_lung_area.unit=mm^2")
    assert status == 2
    assert "measures in '% of image', not 'mm^2'" in text
    mm = "--data.variables={left_lung_area: {unit: mm^2, structure: left_lung}}"
    status, text = checked(capsys, "--data.source.spacing=[1.5, 1.5]", mm)
    assert status == 2
    assert "does not state its spacing in mm" in text


def test_masks_of_another_shape_and_images_smaller_than_the_frame_are_named(mine, capsys):
    assert "images have 80 to 84 pixels along their longest side, the frame 64" in checked(capsys)[1]
    status, text = checked(capsys, "--data.source.frame=[96, 96]")
    assert "10 of 10 images are smaller than the frame [96, 96]" in text
    path = mine.parent / pd.read_csv(mine)["mask_left_lung"][0]
    Image.fromarray(np.pad(np.asarray(Image.open(path)), 1)).save(path)
    status, text = checked(capsys)
    assert status == 2
    assert "0_left_lung.png has shape (86, 72)" in text or "0_left_lung.png has shape (62, 82)" in text


def test_a_phantom_is_looked_at_and_fine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "chest_phantom"]) == 0
    text = capsys.readouterr().out
    assert "8 stages: " in text
    assert "train: 3000 patients, 3000 images" in text
    assert "heart: " in text
    assert main(["check", "chest_phantom", "--data.init_args.subjects={train: 40}"]) == 0
    assert "unwise  train: 40 patients" in capsys.readouterr().out


def test_data_in_memory_are_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "morphomnist"]) == 2
    assert "wrong  data/morphomnist" in capsys.readouterr().out
    where = trees.morphomnist(tmp_path, "t10k")
    assert main(["check", "morphomnist", *where]) == 0
    assert "10 images could be read" in capsys.readouterr().out


def test_the_stages_of_a_recipe_follow_the_frame(mine, capsys):
    status, text = checked(capsys, "--data.source.frame=[128, 128]")
    assert status == 0, text
    assert "stages of 128x128, 64x64, 32x32, 16x16, 8x8, 4x4 pixels, and latents at 8x8, 4x4" in text
    status, text = checked(capsys, "--data.source.frame=[100, 100]")
    assert status == 2
    assert "multiples of 16, such as 96 or 112 in place of 100" in text


def test_a_misspelt_option_is_corrected(mine, capsys):
    status, text = checked(capsys, "--data.source.frmae=[64, 64]")
    assert status == 2
    assert "did you mean" in text
    status, text = checked(capsys, "--data.augmnt=true")
    assert status == 2
    assert "did you mean" in text


def test_images_in_which_nothing_can_be_seen_are_unwise(mine, capsys):
    for name in pd.read_csv(mine)["image"]:
        path = mine.parent / name
        shape = np.asarray(Image.open(path)).shape[:2]
        Image.fromarray(np.broadcast_to(np.arange(shape[1]) % 2 + 1, shape).astype(np.uint8)).save(path)
    _, text = checked(capsys)
    assert "unwise  10 of 10 images are nearly constant: is the window right?" in text
