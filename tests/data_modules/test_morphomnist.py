"""Morpho-MNIST: IDX files read as written, splits that share nobody, and every bad file named."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_modules.morphomnist import MorphoMNIST, read_digits
from segcft.variables.variables import Variable
from tests import trees


def module(root: Path, **options) -> MorphoMNIST:
    return MorphoMNIST(str(root), held_out=options.pop("held_out", 8), **options)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    trees.morphomnist(tmp_path, "t10k", 24)
    return tmp_path


def test_images_lie_in_the_middle_of_a_black_frame_with_what_the_table_says(digits):
    data = module(digits)
    raw = read_digits(digits, "t10k")
    found = [data.dataset(split).read(torch.arange(len(data.dataset(split)))) for split in ("train", "val", "test")]
    assert [len(part["index"]) for part in found] == [16, 4, 4]
    images = torch.cat([part["image"] for part in found])
    assert images.shape == (24, 1, 32, 32)
    assert images.dtype == torch.float32
    levels = ((images + 1) * 127.5).round().to(torch.uint8)[:, 0]
    assert levels.sum() == levels[:, 2:30, 2:30].sum()
    seen = {image.numpy().tobytes(): k for k, image in enumerate(levels[:, 2:30, 2:30])}
    assert len(seen) == 24, "every subject lies in one split"
    for image, thickness, digit in zip(raw.images, raw.attributes["thickness"], raw.attributes["digit"], strict=True):
        place = seen[image.tobytes()]
        assert torch.cat([part["thickness"] for part in found])[place] == thickness
        assert torch.cat([part["digit"] for part in found])[place] == digit
    assert found[0]["mask"].shape == (16, 0, 32, 32)


def test_description_has_variables_and_no_structure(digits):
    about = module(digits).description
    assert about.structures == []
    assert about.parents.names == ["thickness", "intensity", "digit"]
    assert about.parents.dim == 12
    assert about.parents.visible == about.parents.askable == ["thickness", "intensity"]
    assert about.parents.structural == {}
    with pytest.raises(ValueError, match="unknown variable 'slant'; this data set offers thickness, intensity, digit"):
        _ = module(digits, variables={"slant": Variable()}).description


def test_the_seed_decides_the_division_and_official_files_overrule_it(digits):
    one, same, other = (module(digits, seed=seed).dataset("train").attributes["thickness"] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    trees.morphomnist(digits, "train", 12, seed=1)
    data = module(digits)
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [12, 12, 12]
    raw = read_digits(digits, "train")
    assert torch.equal(data.dataset("train").attributes["intensity"], torch.from_numpy(raw.attributes["intensity"]))


def test_augmentation_moves_training_images_whole(digits):
    data = module(digits, augment=True)
    dataset = data.dataset("train")
    everyone = torch.arange(len(dataset))
    still, moved = dataset.read_unchanged(everyone)["image"], dataset.read(everyone)["image"]
    assert not torch.equal(still, moved)
    assert torch.equal(still.flatten(1).sort(1).values, moved.flatten(1).sort(1).values)
    assert torch.equal(module(digits, augment=True).dataset("train").read(everyone)["image"], moved)
    assert torch.equal(*(data.dataset("val").read(torch.arange(4))["image"] for _ in range(2)))


def test_plain_files_and_a_table_in_another_order_are_read_alike(digits):
    before = read_digits(digits, "t10k")
    for path in digits.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    table = pd.read_csv(digits / "t10k-morpho.csv").sample(frac=1, random_state=0)
    table.to_csv(digits / "t10k-morpho.csv", index=False)
    after = read_digits(digits, "t10k")
    assert np.array_equal(before.images, after.images)
    for name, column in before.attributes.items():
        assert np.array_equal(column, after.attributes[name]), name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("t10k-images-idx3-ubyte.gz", lambda b: b[:-40], "t10k-images-idx3-ubyte.gz: "),
        ("t10k-images-idx3-ubyte.gz", lambda b: gzip.compress(gzip.decompress(b)[:-1]), "18815 values, 18816 are"),
        ("t10k-images-idx3-ubyte.gz", lambda b: gzip.compress(bytes(2**28 + 100), 1), "more than 268435456 bytes"),
        ("t10k-images-idx3-ubyte.gz", lambda b: gzip.compress(b"GIF89a"), "no IDX file of unsigned bytes along 3 axes"),
        ("t10k-images-idx3-ubyte.gz", lambda b: b"no gzip", "Not a gzipped file"),
        ("t10k-labels-idx1-ubyte.gz", lambda b: gzip.compress(b"\0\0\x08\1\0\0\0\2\1\2"), "holds 2 subjects, .* 24"),
        (
            "t10k-labels-idx1-ubyte.gz",
            lambda b: gzip.compress(gzip.decompress(b)[:-1] + b"\x0c"),
            "label 12 of image 23",
        ),
        ("t10k-morpho.csv", lambda b: b"".join(b.splitlines(True)[:-1]), "t10k-morpho.csv holds 23 subjects"),
        ("t10k-morpho.csv", lambda b: b.replace(b"index", b"row"), "no column 'index'"),
    ],
)
def test_damaged_files_are_named(digits, name, change, message):
    (digits / name).write_bytes(change((digits / name).read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        _ = module(digits).description
    assert str(digits) in str(caught.value)


def test_bad_cells_name_row_field_and_value(digits, spoil):
    table = digits / "t10k-morpho.csv"
    for field, value, reason in (
        ("thickness", "thin", "a number is needed here"),
        ("index", "7", "this image occurs twice"),
        ("index", "24", "images are 0 to 23"),
    ):
        before = table.read_bytes()
        spoil(table, 5, field, value)
        expected = f"row {9 if 'twice' in reason else 5}, {field} = '{value}': {reason}"
        with pytest.raises(ValueError, match=expected):
            _ = module(digits).description
        table.write_bytes(before)


def test_missing_files_and_impossible_options_are_refused(digits, tmp_path):
    with pytest.raises(ValueError, match=r"no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz here"):
        _ = module(tmp_path / "nowhere").description
    with pytest.raises(ValueError, match="frame = 20 is smaller than the images of 28 x 28"):
        _ = module(digits, frame=20).description
    for held_out in (0, 1, 24):
        with pytest.raises(ValueError, match=f"held_out = {held_out} of 24 subjects leaves a split empty"):
            _ = module(digits, held_out=held_out).description
    (digits / "t10k-morpho.csv").rename(digits / "train-images-idx3-ubyte")
    with pytest.raises(ValueError, match="no train-labels-idx1-ubyte"):
        _ = module(digits).description


def test_the_real_files_are_divided_8000_1000_1000(shared):
    if not (shared / "data/morphomnist").is_dir():
        pytest.skip("no Morpho-MNIST there")
    data = MorphoMNIST(str(shared / "data/morphomnist"))
    parts = [data.dataset(split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [8000, 1000, 1000]
    thickness = data.description.parents["thickness"]
    assert 0.5 < thickness.low < 2 < thickness.mean < 4 < thickness.high < 8
    batch = parts[1].read(torch.arange(256))
    assert set(batch["digit"].tolist()) == set(range(10))
    bright = torch.stack([((image + 1) * 127.5).flatten().topk(40).values.mean() for image in batch["image"]])
    assert torch.corrcoef(torch.stack([bright, batch["intensity"]]))[0, 1] > 0.95
    drawn = (batch["image"] > -0.5).flatten(1).sum(1).float()
    assert torch.corrcoef(torch.stack([drawn, batch["thickness"]]))[0, 1] > 0.7
