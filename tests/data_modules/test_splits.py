"""No patient and no image in two splits, however they are spelt."""

import os

import pandas as pd
import pytest
from PIL import Image

from data_modules.common.splits import refuse_shared
from data_modules.folder import Folder
from data_modules.preparation.prepare import prepare


def table(patients, splits, images=None):
    return pd.DataFrame({"patient": patients, "split": splits} | ({"image": images} if images else {}))


@pytest.mark.parametrize("other", ["p 7", "P7", " p7", "p7 "])
def test_a_patient_by_another_spelling_is_the_same(other):
    refuse_shared(table(["p7", other, "p8"], ["train", "train", "test"]))
    with pytest.raises(ValueError, match=r"1 patients lie in more than one split, such as .*p7.* in train"):
        refuse_shared(table(["p7", other, "p8"], ["train", "test", "test"]))


@pytest.mark.parametrize("other", ["1.0", "01", "1 "])
def test_so_are_numbers(other):
    with pytest.raises(ValueError, match="more than one split"):
        refuse_shared(table(["1", other], ["train", "val"]))
    refuse_shared(table(["1", "10"], ["train", "val"]))


def test_a_film_under_two_paths_is_one(tmp_path):
    film = tmp_path / "films/1.png"
    film.parent.mkdir()
    film.write_bytes(b"film")
    (tmp_path / "link.png").symlink_to(film)
    os.link(film, tmp_path / "hard.png")
    (tmp_path / "again.png").write_bytes(b"film")
    others = [f"{tmp_path}/./films/1.png", f"{tmp_path}/films/../films/1.png", f"{tmp_path}/link.png"]
    for other in (*others, f"{tmp_path}/hard.png"):
        with pytest.raises(ValueError, match=r"1 image files lie in more than one split, such as .*\.png in train"):
            refuse_shared(table(["a", "b"], ["train", "test"], [str(film), other]))
        refuse_shared(table(["a", "b"], ["train", "train"], [str(film), other]))
    refuse_shared(table(["a", "b"], ["train", "test"], [str(film), f"{tmp_path}/again.png"]))


def test_files_that_are_not_here_are_told_apart_by_their_paths():
    with pytest.raises(ValueError, match="1 image files"):
        refuse_shared(table(["a", "b"], ["train", "test"], ["nowhere/1.png", "./nowhere/1.png"]))
    refuse_shared(table(["a", "b"], ["train", "test"], ["nowhere/1.png", "nowhere/2.png"]))


def test_everything_that_is_wrong_is_said_at_once_with_file_row_and_value(tmp_path):
    """A manifest whose films stand in two splits under two names, and whose patients differ in spelling."""
    for name in ("a", "b", "c"):
        Image.new("L", (16, 16), 100).save(tmp_path / f"{name}.png")
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")
    rows = [("a.png", "one", "train"), ("./a.png", "two", "test"), ("b.png", "7", "train"), ("c.png", "7.0 ", "val")]
    lines = [f"{image},mask.png,{patient},{split}" for image, patient, split in rows]
    (tmp_path / "films.csv").write_text("\n".join(["image,mask_lung,patient,split", *lines]) + "\n")
    with pytest.raises(ValueError, match="more than one split") as error:
        prepare(Folder(str(tmp_path / "films.csv"), ["lung"], frame=[16, 16]), tmp_path / "cache")
    for part in ("1 patients", "1 image files", "7 in train", "films.csv, row 4, image = 'b.png'",
                 "films.csv, row 5, image = 'c.png'", "films.csv, row 2, image = 'a.png'",
                 "films.csv, row 3, image = './a.png'"):  # fmt: skip
        assert part in str(error.value)
    assert not (tmp_path / "cache").exists()
