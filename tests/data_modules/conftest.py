"""Fixtures of the data sets: the real data that lie beside the repository, and tables to spoil."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest


@pytest.fixture
def spoil() -> Callable[[Path, int, str, str], None]:
    """Write ``value`` into one cell of a CSV; rows count as an editor counts lines, the header being row 1."""

    def write(path: Path, row: int, field: str, value: str) -> None:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.loc[row - 2, field] = value
        table.to_csv(path, index=False)

    return write
