"""CheXmask: run lengths against pixel-by-pixel references, and every way in which a table can be wrong."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.chest.chexmask import COLUMNS, ID_COLUMNS, coverage, decode, encode, parse, parse_many, read_chexmask
from segcft.io.resampling import pad_square

STRUCTURES = list(COLUMNS)
Tree = Callable[..., tuple[Path, Path]]
Spoil = Callable[[Path, int, str, str], None]


def reference_decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    numbers, flat = [int(word) for word in text.split()], np.zeros(shape[0] * shape[1], np.uint8)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start - 1, start - 1 + length):
            flat[pixel] += 1
    return flat.reshape(shape)


def everything(path: Path) -> pd.Index:
    table = pd.read_csv(path, dtype=str)
    return pd.Index(table[next(name for name in ID_COLUMNS if name in table)])


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (5, 9), (1, 12)])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_run_lengths_decode_as_the_loop_does(shape: tuple[int, int], share: float) -> None:
    mask = (np.random.default_rng(0).random(shape) < share).astype(np.uint8)
    mask.flat[-1] = 1
    runs = parse(encode(mask), mask.size)
    np.testing.assert_array_equal(decode(runs, shape), mask)
    np.testing.assert_array_equal(reference_decode(encode(mask), shape), mask)
    assert runs[1::2].sum() == mask.sum()


@pytest.mark.parametrize(("shape", "size"), [((12, 8), 4), ((9, 14), 7), ((10, 10), 3), ((7, 5), 7), ((300, 241), 64)])
def test_coverage_is_the_mean_of_the_padded_mask(shape: tuple[int, int], size: int) -> None:
    """Runs may go on into the next row; against OpenCV's mean over each new pixel."""
    mask = (np.random.default_rng(0).random(shape) < 0.7).astype(np.uint8)
    mask[2:4] = 1
    seen = coverage(parse(encode(mask), mask.size), shape, size)
    square = pad_square(mask).astype(np.float32)
    np.testing.assert_allclose(seen, cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA), atol=1e-4)
    assert seen.sum() * (max(shape) / size) ** 2 == pytest.approx(mask.sum(), rel=1e-4)
    assert not coverage(parse("", 9), (3, 3), 2).any()


def test_run_lengths_are_one_based_and_row_major() -> None:
    np.testing.assert_array_equal(decode(parse("2 2 5 1", 6), (2, 3)), [[0, 1, 1], [0, 1, 0]])
    assert encode(np.array([[0, 1, 1], [0, 1, 0]])) == "2 2 5 1"
    assert encode(np.zeros((2, 2))) == ""
    np.testing.assert_array_equal(parse("1  2 \n 4 1", 6), [1, 2, 4, 1])
    np.testing.assert_array_equal(decode(parse("1 2 3 1", 6), (2, 3)), [[1, 1, 1], [0, 0, 0]])


BAD_RUNS = {
    "1 x": "'x' is not an integer",
    "1.5 2": "'1.5' is not an integer",
    "1 2 nonsense 4": "'nonsense' is not an integer",
    "1 2 4": "3 entries are not pairs",
    "0 3": "a run starts at 0",
    "-3 2": "a run starts at -3",
    "1 0": "a run is 0 pixels long",
    "9 3": "the run 9 3 leaves the image of Height x Width = 10 pixels",
    "11 1": "leaves the image",
    "99999999999999999999999 1": "leaves the image",
    "1 99999999999999999999999": "leaves the image",
    "1 3 3 2": "the run at 3 overlaps",
    "5 2 1 2": "the run at 1 overlaps the one before it, or the runs are not sorted",
}


@pytest.mark.parametrize(("text", "message"), BAD_RUNS.items())
def test_bad_run_lengths_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text, 10)
    assert parse_many(["1 2 3 4", text, "2 1"], np.array([10, 10, 10])) is None


def test_many_masks_are_parsed_as_each_one() -> None:
    rng = np.random.default_rng(1)
    drawn = [(rng.random((9, width)) < 0.6).astype(np.uint8) for width in (3, 8, 5, 30)]
    texts, pixels = [encode(mask) for mask in drawn], np.array([mask.size for mask in drawn])
    parsed = parse_many(texts, pixels)
    assert parsed is not None
    each = [parse(text, int(size)) for text, size in zip(texts, pixels, strict=True)]
    np.testing.assert_array_equal(parsed[0], np.concatenate(each))
    assert parsed[1].tolist() == [len(runs) for runs in each]
    assert parse_many(texts, pixels - np.array([0, 60, 0, 0])) is None
    assert parse_many(["1   2", "3\n4 5\n6"], np.array([10, 10])) is None  # as many spaces as there are numbers


BAD_CELLS = [
    ("Left Lung", "1 2 x 4", "'x' is not an integer"),
    ("Right Lung", "7 2 9", "3 entries are not pairs"),
    ("Heart", "5000 2000", "leaves the image of Height x Width = 5880 pixels"),
    ("Heart", "10 5 12 5", "overlaps"),
    ("Heart", "0 5", "a run starts at 0"),
    ("Height", "tall", "a number is needed"),
    ("Width", "inf", "a number is needed"),
    ("Width", "70.5", "a whole number of pixels"),
    ("Height", "-84", "a whole number of pixels"),
    ("Dice RCA (Mean)", "", "a number is needed"),
    ("Dice RCA (Mean)", "good", "a number is needed"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_named(chexpert_tree: Tree, spoil: Spoil, field: str, value: str, message: str) -> None:
    _, masks = chexpert_tree()
    spoil(masks, 6, field, value)
    with pytest.raises(ValueError, match=re.escape(f"{masks}, row 6, {field} = ")) as error:
        read_chexmask(masks, STRUCTURES, everything(masks))
    assert message in str(error.value)
    assert f"= {value!r}" in str(error.value)


def test_unwanted_rows_may_be_bad(chexpert_tree: Tree, spoil: Spoil) -> None:
    _, masks = chexpert_tree()
    spoil(masks, 6, "Heart", "no runs")
    spoil(masks, 9, "Height", "")
    spoil(masks, 9, "Dice RCA (Mean)", "0.1")
    wanted = everything(masks).delete(4)
    assert len(read_chexmask(masks, STRUCTURES, wanted)) == len(wanted) - 1


def test_unusual_spaces_change_nothing(chexpert_tree: Tree) -> None:
    _, path = chexpert_tree()
    plain = read_chexmask(path, STRUCTURES, everything(path))
    table = pd.read_csv(path, dtype=str)
    table["Heart"] = "  " + table["Heart"].str.replace(" ", "\n", n=1) + " "
    table.to_csv(path, index=False)
    spaced = read_chexmask(path, STRUCTURES, everything(path))
    np.testing.assert_array_equal(spaced.entries, plain.entries)
    np.testing.assert_array_equal(spaced.areas(), plain.areas())


def test_poor_and_blank_masks_are_left_out(chexpert_tree: Tree, spoil: Spoil) -> None:
    _, masks = chexpert_tree()
    spoil(masks, 2, "Dice RCA (Mean)", "0.6999")
    spoil(masks, 3, "Dice RCA (Mean)", "0.7")
    spoil(masks, 4, "Heart", " ")
    ids = everything(masks)
    found = read_chexmask(masks, STRUCTURES, ids)
    assert list(found.ids) == [*ids[1:]]
    assert np.argwhere(np.isnan(found.areas())).tolist() == [[1, 2]]
    assert found.runs(1, 2).tolist() == []
    assert list(read_chexmask(masks, ["heart"], ids).ids) == [ids[1], *ids[3:]]
    assert list(read_chexmask(masks, ["left_lung"], ids, min_dice=0.8).ids) == list(ids[2:])


def test_tables_that_cannot_serve(chexpert_tree: Tree, spoil: Spoil) -> None:
    _, masks = chexpert_tree(heart=False)
    ids = everything(masks)
    assert len(read_chexmask(masks, ["right_lung", "left_lung"], ids)) == len(ids)
    for structures, wanted, message in (
        (["heart"], ids, "24 no mask at all"),
        (["left_lung"], ids + "?", "24 rows, 0 of wanted images"),
        (["liver"], ids, "CheXmask offers left_lung, right_lung, heart"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            read_chexmask(masks, structures, wanted)
    with pytest.raises(ValueError, match="No such file"):
        read_chexmask(masks.with_name("none.csv"), STRUCTURES, ids)
    spoil(masks, 5, "Path", str(ids[0]))
    with pytest.raises(ValueError, match=r"row 5, Path = .*: this image occurs twice"):
        read_chexmask(masks, ["left_lung"], ids)
    pd.read_csv(masks).drop(columns="Width").to_csv(masks, index=False)
    with pytest.raises(ValueError, match="no column 'Width'"):
        read_chexmask(masks, ["left_lung"], ids)
    pd.read_csv(masks).rename(columns={"Path": "name"}).to_csv(masks, index=False)
    with pytest.raises(ValueError, match="none of the identifiers"):
        read_chexmask(masks, ["left_lung"], ids)


@pytest.mark.parametrize("name", ["CANDID-PTX", "CheXpert", "ChestX-Ray8", "MIMIC-CXR-JPG", "Padchest", "VinDr-CXR"])
def test_real_tables(shared: Path, name: str) -> None:
    """Read by column name whatever their order; areas are those of decoded masks; left is the patient's left."""
    path = shared / "data/chexmask_sample" / f"{name}.csv"
    table = pd.read_csv(path).dropna(subset=["Height", "Width"])
    wanted = everything(path)[table.index]
    masks = read_chexmask(path, STRUCTURES, wanted)
    assert 10 < len(masks) == (table["Dice RCA (Mean)"] >= 0.7).sum()
    texts = table.set_index(table.columns[0]).loc[masks.ids]
    for place in range(4):
        left, right, heart = (decode(runs, masks.shapes[place]) for runs in (masks.runs(place, k) for k in range(3)))
        columns = np.arange(1024)
        assert (right.sum(0) @ columns) / right.sum() < 512 < (left.sum(0) @ columns) / left.sum()
        np.testing.assert_allclose(masks.areas()[place], [100 * m.mean() for m in (left, right, heart)])
        assert encode(heart) == texts["Heart"].iloc[place]
        assert (heart == reference_decode(texts["Heart"].iloc[place], (1024, 1024))).all()


def test_rows_without_a_size(shared: Path) -> None:
    """30 real rows lack it: they are 1024 x 1024 in a table where all others are, and are left out of any other."""
    path = shared / "data/chexmask_sample/Padchest.csv"
    raw = pd.read_csv(path)
    assert (raw["Dice RCA (Mean)"] > raw["Dice RCA (Max)"]).sum() == 30, "of 50: the smaller of both is believed"
    dice = raw[["Dice RCA (Mean)", "Dice RCA (Max)"]].min(axis=1)
    good = dice >= 0.7
    masks = read_chexmask(path, STRUCTURES, everything(path))
    assert masks.preprocessed
    assert len(masks) == good.sum()
    assert (masks.shapes == 1024).all()
    np.testing.assert_array_equal(masks.dice, dice[good])
    sized = read_chexmask(path, STRUCTURES, everything(path), variant="original")
    assert len(sized) == (good & raw["Height"].notna()).sum() < len(masks)


def test_the_variant_is_what_the_sizes_say(chexpert_tree: Tree, spoil: Spoil) -> None:
    _, path = chexpert_tree()
    assert not read_chexmask(path, STRUCTURES, everything(path)).preprocessed
    with pytest.raises(ValueError, match=r"row 2, Height = '84': the Preprocessed variant is 1024 x 1024"):
        read_chexmask(path, STRUCTURES, everything(path), variant="preprocessed")
    spoil(path, 6, "Height", "")
    assert len(read_chexmask(path, STRUCTURES, everything(path))) == 23


@given(st.text(alphabet="0123456789 -.x\n\t", max_size=40))
def test_malformed_run_lengths_never_give_a_wrong_area(text: str) -> None:
    """Whatever the text: either both parsers agree, and the area is that of the decoded mask, or it is refused."""
    try:
        runs = parse(text, 60)
    except ValueError:
        assert parse_many(["3 4", text], np.array([60, 60])) is None or not text.strip()
        return
    mask = decode(runs, (6, 10))
    assert mask.sum() == runs[1::2].sum()
    many = parse_many([text], np.array([60]))
    if many is not None:
        np.testing.assert_array_equal(many[0], runs)


def test_of_a_mean_and_a_smaller_maximum_the_smaller_counts(chexpert_tree: Tree, spoil: Spoil) -> None:
    _, path = chexpert_tree()
    before = read_chexmask(path, STRUCTURES, everything(path))
    spoil(path, 2, "Dice RCA (Max)", "0.6")  # the mean says 0.85
    spoil(path, 3, "Dice RCA (Max)", "0.8")
    spoil(path, 4, "Dice RCA (Max)", "")
    after = read_chexmask(path, STRUCTURES, everything(path))
    assert len(after) == len(before) - 1
    assert after.dice[:2].tolist() == [0.8, 0.85]
