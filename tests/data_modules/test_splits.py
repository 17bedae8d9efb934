"""No patient and no image in two splits, however they are spelt."""

import pandas as pd
import pytest

from data_modules.common.splits import refuse_shared


def table(patients, splits, images=None):
    return pd.DataFrame({"patient": patients, "split": splits} | ({"image": images} if images else {}))


@pytest.mark.parametrize("other", ["p 7", "P7", " p7", "p7 "])
def test_a_patient_by_another_spelling_is_the_same(other):
    refuse_shared(table(["p7", other, "p8"], ["train", "train", "test"]))
    with pytest.raises(ValueError, match=r"1 patients lie in more than one split, such as .*p7 in train"):
        refuse_shared(table(["p7", other, "p8"], ["train", "test", "test"]))


@pytest.mark.parametrize("other", ["1.0", "01", "1 "])
def test_so_are_numbers(other):
    with pytest.raises(ValueError, match="more than one split"):
        refuse_shared(table(["1", other], ["train", "val"]))
    refuse_shared(table(["1", "10"], ["train", "val"]))


def test_a_film_under_two_paths_is_one(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films/1.png").write_bytes(b"film")
    (tmp_path / "link.png").symlink_to(tmp_path / "films/1.png")
    for other in (f"{tmp_path}/./films/1.png", f"{tmp_path}/films/../films/1.png", f"{tmp_path}/link.png"):
        paths = [f"{tmp_path}/films/1.png", other]
        with pytest.raises(ValueError, match=r"1 image files lie in more than one split, such as .*1\.png in train"):
            refuse_shared(table(["a", "b"], ["train", "test"], paths))
        refuse_shared(table(["a", "b"], ["train", "train"], paths))
