"""Tables: whatever bytes they hold, a ValueError names the file, or the cells are what was written."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_modules.common.splits import hashed_splits, refuse_shared
from segcft.io.csv_tables import BLOCK, categories, find_table, numbers, origins, read_columns, read_table, years

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = "name,value,note\n" + "".join(f'é {i},{i / 4},"a, ""b""\nc"\n' for i in range(30))


def table_or_reason(path: Path) -> pd.DataFrame | str:
    try:
        return read_table(path, ["name", "value"])
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_cells_are_what_was_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a b{suffix}"
    path.write_bytes(gzip.compress(TEXT.encode()) if suffix == ".csv.gz" else TEXT.encode())
    assert find_table(tmp_path, "a b.csv") == path
    frame = read_table(path, ["value", "name"], ["absent"])
    assert frame.columns.tolist() == ["value", "name"]
    assert frame.index.tolist() == list(range(2, 32))
    np.testing.assert_array_equal(numbers(frame, "value", path), np.arange(30) / 4)
    assert origins(frame, "name", path)[4] == f"{path}, row 4, name = 'é 2'"


@FUZZ
@given(st.binary(max_size=60) | st.text(alphabet='nam,value"\n\r1\0', max_size=60).map(lambda text: text.encode()))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    for name in ("t.csv", "t.csv.gz"):
        (tmp_path / name).write_bytes(data)
        seen = table_or_reason(tmp_path / name)
        assert not isinstance(seen, str) or str(tmp_path / name) in seen


@FUZZ
@given(share=st.floats(0, 1, exclude_max=True), change=st.integers(0, 255))
def test_damaged_archives_are_refused(tmp_path: Path, share: float, change: int) -> None:
    whole = gzip.compress(TEXT.encode())
    place, path = int(share * len(whole)), tmp_path / "t.csv.gz"
    path.write_bytes(whole[:place])
    seen = table_or_reason(path)
    assert isinstance(seen, str)
    assert str(path) in seen
    path.write_bytes(whole[:place] + bytes([change]) + whole[place + 1 :])
    seen = table_or_reason(path)
    assert str(path) in seen if isinstance(seen, str) else len(seen) == 30


def test_a_long_archive_cut_short_is_refused(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "t.csv.gz"
    data = "a,b\n" + "".join(f"{i},{rng.random()}\n" for i in range(40_000))
    whole = gzip.compress(data.encode(), 1)
    for share in (0.3, 0.9, 0.9999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"t\.csv\.gz"):
            read_table(path, ["a"])


def test_rows_are_counted_across_blocks(tmp_path: Path) -> None:
    path, long = tmp_path / "long.csv", "x" * (BLOCK // 5)
    path.write_text("a,b\n" + "".join(f"{i},{long}\n" for i in range(12)))
    parts = list(read_columns(path, ["a"]))
    assert len(parts) > 1
    assert [(row, int(cell)) for part in parts for row, cell in part["a"].items()] == [(i + 2, i) for i in range(12)]


def test_words_and_dates(tmp_path: Path) -> None:
    frame = pd.DataFrame({"w": ["F", None, "M"], "d": ["20200131", None, "19991231.0"]}, dtype="str")
    path = tmp_path / "t.csv"
    np.testing.assert_array_equal(categories(frame, "w", path, {"F": 0, "M": 1}), [0, np.nan, 1])
    np.testing.assert_array_equal(years(frame, "d", path), [2020, np.nan, 1999])
    with pytest.raises(ValueError, match=r"row 2, w = 'M': one of F or blank"):
        categories(frame, "w", path, {"F": 0})


def test_the_hash_is_that_of_ever() -> None:
    """Patients never change sides from one version to the next."""
    names = pd.Series([f"patient{i:05d}" for i in range(1, 13)])
    splits = hashed_splits(names, 0)
    assert "".join(split[1] for split in splits) == "rerrrrrrrrrr"
    for part in (names[::2], names[::-1]):
        assert hashed_splits(part, 0).to_dict() == splits[part.index].to_dict()
    with pytest.raises(ValueError, match=r"1 patients .*a in test, a in train"):
        refuse_shared(pd.DataFrame({"patient": ["a", "b", "a"], "split": ["train", "train", "test"]}))
