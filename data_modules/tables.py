"""CSV tables read by column name, whose errors name the file, the row, the field and the value."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FIRST_ROW = 2  # the header is row 1, as a spreadsheet or an editor counts


def bad_cell(path: Path, row: int, field: str, value: object, reason: str) -> ValueError:
    """The error of one cell; ``row`` counts records with the header as 1 (a quoted line break starts no record)."""
    text = str(value)
    shown = repr(text if len(text) <= 100 else f"{text[:97]}...")
    return ValueError(f"{path}, row {row}, {field} = {shown}: {reason}")


def header(path: Path) -> list[str]:
    """Column names of a table.

    Raises:
        ValueError: If the file is missing, empty or not a CSV.
    """
    try:
        return [str(name) for name in pd.read_csv(path, nrows=0).columns]
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{path}: {error}") from error


def read_columns(path: Path, columns: Sequence[str], chunk: int = 4_000) -> Iterator[pd.DataFrame]:
    """Parts of a table as text, blank cells as NaN, indexed by row number; other columns are never kept.

    Raises:
        ValueError: If the file cannot be read or lacks a column.
    """
    known = header(path)
    absent = [name for name in columns if name not in known]
    if absent:
        raise ValueError(f"{path}: no column {', '.join(map(repr, absent))}; it holds {', '.join(map(repr, known))}")
    try:
        for frame in pd.read_csv(path, usecols=list(columns), dtype=str, chunksize=chunk):
            frame.index = frame.index + FIRST_ROW
            yield frame
    except (OSError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def numbers(frame: pd.DataFrame, field: str, path: Path, blank: bool = False) -> NDArray[np.float64]:
    """A text column as numbers, (N,); ``blank`` cells stay NaN where they are allowed.

    Raises:
        ValueError: At the first cell that is not a finite number.
    """
    values = pd.to_numeric(frame[field], errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(values) & ~(frame[field].isna().to_numpy() & blank)
    refuse(frame, field, path, wrong, "a number is needed here")
    return values


def refuse(frame: pd.DataFrame, field: str, path: Path, wrong: NDArray[np.bool_], reason: str) -> None:
    """Raise for the first cell of a column that is ``wrong`` (N,).

    Raises:
        ValueError: If any is.
    """
    if wrong.any():
        first = int(wrong.argmax())
        raise bad_cell(path, int(frame.index[first]), field, frame[field].iloc[first], reason)
