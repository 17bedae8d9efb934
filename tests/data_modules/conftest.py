"""Fixtures of the data sets: the real data that lie beside the repository, and tables to spoil."""

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED / 'data'}")
    return SHARED


@pytest.fixture(scope="session")
def real_tree(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Every third real radiograph as a CheXpert tree: (root, CheXmask table)."""
    source, root = tmp_path_factory.mktemp("few"), tmp_path_factory.mktemp("cxr")
    manifest = pd.read_csv(shared / "data/cxr_open/manifest.csv", dtype=str).iloc[::3]
    manifest.fillna("").to_csv(source / "manifest.csv", index=False)
    for name in [*manifest["file"], *manifest["mask_file"]]:
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(shared / "data/cxr_open" / name, source / name)
    runpy.run_path(str(shared / "tools/make_cxr_layout.py"))["main"](str(source), str(root), "chexpert")
    return root, root / "CheXmask/OriginalResolution/CheXpert.csv"


@pytest.fixture
def spoil() -> Callable[[Path, int, str, str], None]:
    """Write ``value`` into one cell of a CSV; rows count as an editor counts lines, the header being row 1."""

    def write(path: Path, row: int, field: str, value: str) -> None:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.loc[row - 2, field] = value
        table.to_csv(path, index=False)

    return write
