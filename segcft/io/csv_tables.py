"""Reading CSV tables by column name; every error names the file, row, field and value."""

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, csv

FIRST_ROW = 2  # the header is row 1, as in a spreadsheet
BLOCK = 2**23  # bytes parsed at once; also the longest row that can be read
BLANK = ["", "nan", "NaN", "NA", "N/A", "<NA>", "null", "NULL", "None"]


def bad_cell(path: Path, row: int, field: str, value: object, reason: str) -> ValueError:
    """A ValueError about one cell; ``row`` counts records, the header being 1 (a quoted line break does not count)."""
    text = "" if value is None or value != value else str(value)  # None or NaN: a blank cell
    shown = repr(text if len(text) <= 100 else f"{text[:97]}...")
    return ValueError(f"{path}, row {row}, {field} = {shown}: {reason}")


def find_table(folder: Path, name: str) -> Path:
    """``folder/name`` or ``folder/name.gz``, whichever exists.

    Raises:
        ValueError: If neither exists.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"{folder}: no {name} or {name}.gz here")


def header(path: Path) -> list[str]:
    """Column names of a table.

    Raises:
        ValueError: If the file is missing, empty or not a CSV, or if a name occurs twice.
    """
    try:
        frame = pd.read_csv(path, nrows=1, header=None, dtype=str, keep_default_na=False)
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{path}: {error}") from error
    names = [str(name) for name in frame.iloc[0]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: the columns {', '.join(map(repr, twice))} occur twice")
    return names


def read_columns(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[pd.DataFrame]:
    """Read columns of a table in chunks: all values as text, blank cells as NaN, the index being the row number.

    Args:
        path: A CSV in UTF-8, plain or ``.gz``.
        columns: Required columns.
        optional: Columns that are read if the table has them.

    Raises:
        ValueError: If the file cannot be read or lacks a column.
    """
    known = header(path)
    absent = [name for name in columns if name not in known]
    if absent:
        raise ValueError(f"{path}: no column {', '.join(map(repr, absent))}; it holds {', '.join(map(repr, known))}")
    wanted = list(dict.fromkeys([*columns, *(name for name in optional if name in known)]))
    read = csv.ReadOptions(use_threads=False, block_size=BLOCK)  # one thread, so that errors can name the row
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(wanted, pa.string()),
        include_columns=wanted,
        null_values=BLANK,
        strings_can_be_null=True,
    )
    row = FIRST_ROW
    try:
        for batch in csv.open_csv(path, read, csv.ParseOptions(newlines_in_values=True), convert):
            frame = batch.to_pandas()
            frame.index = pd.RangeIndex(row, row + len(frame))
            row += len(frame)
            yield frame
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {str(error)[:500]}") from error


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """The chunks of ``read_columns`` as one frame.

    Raises:
        ValueError: As ``read_columns``, and if the table has no rows.
    """
    parts = [part for part in read_columns(path, columns, optional) if len(part)]
    if not parts:
        raise ValueError(f"{path}: it has a header but no rows")
    return pd.concat(parts)


def numbers(frame: pd.DataFrame, field: str, path: Path, blank: bool = False) -> NDArray[np.float64]:
    """A text column as numbers, (N,); blank cells become NaN if ``blank`` allows them.

    Raises:
        ValueError: At the first cell that is not a finite number.
    """
    codes, levels = pd.factorize(frame[field])  # values repeat: parse each distinct one once
    parsed = pd.to_numeric(pd.Series(levels, dtype=object), errors="coerce").to_numpy(np.float64)
    values = np.append(parsed, np.nan)[codes]
    wrong = ~np.isfinite(values) & ~((codes == -1) & blank)
    refuse(frame, field, path, wrong, "a number is needed here")
    return values


def years(frame: pd.DataFrame, field: str, path: Path) -> NDArray[np.float64]:
    """The year of each date written as YYYYMMDD, (N,); NaN for a blank cell.

    Raises:
        ValueError: If a cell is not a date.
    """
    dates = numbers(frame, field, path, blank=True)
    months, days = dates // 100 % 100, dates % 100
    wrong = (dates % 1 != 0) | (dates < 19000101) | (months < 1) | (months > 12) | (days < 1) | (days > 31)
    refuse(frame, field, path, wrong & ~np.isnan(dates), "a date as YYYYMMDD is needed here")
    return np.floor(dates / 10000)


def categories(frame: pd.DataFrame, field: str, path: Path, meaning: Mapping[str, float]) -> NDArray[np.float64]:
    """A column of words as numbers, (N,); NaN for a blank cell.

    Raises:
        ValueError: At the first word that ``meaning`` does not list.
    """
    codes, levels = pd.factorize(frame[field])
    unknown = np.append([level not in meaning for level in levels], False)[codes]
    refuse(frame, field, path, unknown, f"one of {', '.join(meaning)} or blank is needed here")
    return np.append([meaning.get(level, np.nan) for level in levels], np.nan)[codes]


def extract(column: "pd.Series[str]", pattern: str) -> pd.DataFrame:
    """The named groups of a regular expression (RE2 syntax) as columns; NaN where it does not match."""
    found = compute.extract_regex(pa.array(column, pa.string(), from_pandas=True), pattern)
    groups = {field.name: compute.struct_field(found, field.name).to_pandas() for field in found.type}
    return pd.DataFrame(groups).set_axis(column.index)


def origins(frame: pd.DataFrame, field: str, path: Path) -> "pd.Series[str]":
    """Origin of each row for error messages, ``path, row 5, field = 'value'``, (N,)."""
    rows = pa.array(frame.index.to_numpy()).cast(pa.string())
    values = pa.array(frame[field], pa.string(), from_pandas=True)
    texts = compute.binary_join_element_wise(f"{path}, row ", rows, f", {field} = '", values, "'", "")
    return pd.Series(texts.to_pandas().to_numpy(object), frame.index, dtype="str")


def refuse(frame: pd.DataFrame, field: str, path: Path, wrong: NDArray[np.bool_], reason: str) -> None:
    """Raise an error about the first cell of a column where ``wrong`` (N,) is True.

    Raises:
        ValueError: If any is True.
    """
    if wrong.any():
        first = int(wrong.argmax())
        raise bad_cell(path, int(frame.index[first]), field, frame[field].iloc[first], reason)


def refuse_outside(frame: pd.DataFrame, field: str, path: Path, folder: Path | None = None) -> None:
    """Raise an error about the first path that leaves the folder; blank cells are accepted.

    Args:
        frame: The table, or a chunk of it.
        field: Column of paths relative to the folder.
        path: The table's file, for the message.
        folder: Folder that paths must stay in, also after following links; None checks the text only: it may not be
            absolute or contain ``..``.

    Raises:
        ValueError: If any path leaves it.
    """
    if folder is None:
        inside = [cell != cell or _descends(cell) for cell in frame[field].tolist()]
        refuse(frame, field, path, ~np.array(inside, bool), "this path leaves the data set's folder")
        return
    home = os.path.realpath(folder)
    inside = [cell != cell or _inside(home, cell) for cell in frame[field].tolist()]
    hint = f"this file lies outside {folder}, perhaps through a link; set allow_outside: true if that is intended"
    refuse(frame, field, path, ~np.array(inside, bool), hint)


def _descends(path: str) -> bool:
    return not path.startswith("/") and ".." not in path.replace("\\", "/").split("/") and "\0" not in path


def _inside(folder: str, path: str) -> bool:
    try:
        return os.path.commonpath([folder, os.path.realpath(os.path.join(folder, path))]) == folder
    except (OSError, ValueError):  # not a valid path, for instance with a null byte
        return False


def refuse_twice(frame: pd.DataFrame, field: str, path: Path, what: str) -> None:
    """Raise an error about the first value of an identifier column that is blank or repeated.

    Raises:
        ValueError: If any is.
    """
    refuse(frame, field, path, frame[field].isna().to_numpy(), f"every {what} needs one")
    refuse(frame, field, path, frame[field].duplicated().to_numpy(), f"this {what} occurs twice")
