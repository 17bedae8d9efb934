"""Fixtures that every test may use."""

import csv
import os
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from segcft.core.recipes import TRUST

os.environ[TRUST] = "tests.balls"  # configurations of tests name them
SHARED = Path(__file__).parents[2] / "shared"
FINDINGS = [
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same weights and computes with the same numbers every time, alone or in company."""
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # commands set it


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED / 'data'}")
    return SHARED


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium by Playwright, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def real_tree(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Every third real radiograph as a CheXpert tree: (root, CheXmask table)."""
    root = _layout(shared, tmp_path_factory, "chexpert")
    return root, root / "CheXmask/OriginalResolution/CheXpert.csv"


@pytest.fixture(scope="session")
def real_mimic(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Every third real radiograph as a MIMIC-CXR-JPG tree: (root, CheXmask table)."""
    root = _layout(shared, tmp_path_factory, "mimic")
    return root, root / "CheXmask/OriginalResolution/MIMIC-CXR-JPG.csv"


def _layout(shared: Path, folders: pytest.TempPathFactory, kind: str) -> Path:
    source, root = folders.mktemp("few"), folders.mktemp(kind)
    manifest = pd.read_csv(shared / "data/cxr_open/manifest.csv", dtype=str).iloc[::3]
    manifest.fillna("").to_csv(source / "manifest.csv", index=False)
    for name in [*manifest["file"], *manifest["mask_file"]]:
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(shared / "data/cxr_open" / name, source / name)
    runpy.run_path(str(shared / "tools/make_cxr_layout.py"))["main"](str(source), str(root), kind)
    return root


@pytest.fixture
def chexpert_tree(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Factory: draws a small CheXpert tree with its CheXmask table, returns (root, CSV of the masks).

    Two frontal films (84 x 70 and 60 x 80 pixels) and the row of a lateral one for each patient. Of every 12 patients,
    8 lie in train.csv, 2 in valid.csv and 2 in test.csv; without ``test_table`` these two are in train.csv, too.
    Patient 3 has no known age, patient 5 no known sex; ``Pleural Effusion`` is 1, 0, -1, blank in turn.
    """

    def write(patients: int = 12, test_table: bool = True, heart: bool = True) -> tuple[Path, Path]:
        root = tmp_path / f"tree{len(list(tmp_path.glob('tree*')))}"
        tables: dict[str, list[dict[str, object]]] = {}
        masks = []
        for patient in range(1, patients + 1):
            split = ["train"] * 8 + ["valid"] * 2 + ["test" if test_table else "train"] * 2
            folder = f"{split[(patient - 1) % 12]}/patient{patient:05d}"
            for study, shape in enumerate(((84, 70), (60, 80)), start=1):
                path = f"{folder}/study{study}/view1_frontal.jpg"
                masks.append(_draw(root / "CheXpert-v1.0-small" / path, path, shape, patient, heart))
                tables.setdefault(folder.split("/")[0], []).append(_row(path, patient, "Frontal"))
            tables[folder.split("/")[0]].append(_row(f"{folder}/study1/view2_lateral.jpg", patient, "Lateral"))
        for name, rows in tables.items():
            _write(root / "CheXpert-v1.0-small" / f"{name}.csv", rows)
        _write(root / "CheXmask.csv", masks)
        return root, root / "CheXmask.csv"

    return write


def _row(path: str, patient: int, view: str) -> dict[str, object]:
    findings = dict.fromkeys(FINDINGS, "")
    findings["Pleural Effusion"] = ("1.0", "0.0", "-1.0", "")[patient % 4]
    sex = "Unknown" if patient == 5 else ("Female", "Male")[patient % 2]
    age = 0 if patient == 3 else 20 + 3 * (patient % 30)
    start = {"Path": f"CheXpert-v1.0-small/{path}", "Sex": sex, "Age": age, "Frontal/Lateral": view}
    return start | {"AP/PA": "AP" if view == "Frontal" else ""} | findings


def _draw(file: Path, path: str, shape: tuple[int, int], patient: int, heart: bool) -> dict[str, object]:
    """Lungs as ellipses, the patient's right one on the left of the image; returns the row of CheXmask."""
    height, width = shape
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    noise = np.random.default_rng([patient, height])
    wide, high = noise.uniform(0.1, 0.18, 2), noise.uniform(0.2, 0.35, 2)
    lungs = [((x - c) / w) ** 2 + ((y - 0.45) / h) ** 2 < 1 for c, w, h in zip((0.75, 0.25), wide, high, strict=True)]
    organs = [*lungs, ((x - 0.55) / 0.17) ** 2 + ((y - 0.65) / 0.14) ** 2 < 1]
    grey = 170 + noise.normal(0, 6, shape) - 100 * (lungs[0] | lungs[1]) + 40 * organs[2]
    file.parent.mkdir(parents=True)
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(file, quality=95)
    left, right, middle = (_run_lengths(organ) for organ in organs)
    quality = {"Path": path, "Dice RCA (Mean)": 0.85, "Dice RCA (Max)": 0.9, "Landmarks": "1,2,3,4"}
    runs = {"Left Lung": left, "Right Lung": right, "Heart": middle if heart else ""}
    return quality | runs | {"Height": height, "Width": width}


def _run_lengths(mask: np.ndarray) -> str:
    """Pixel by pixel, on purpose: the reference that the fast code is held against."""
    runs: list[list[int]] = []
    for place, inside in enumerate(mask.ravel().tolist(), start=1):
        if inside and runs and place == sum(runs[-1]):
            runs[-1][1] += 1
        elif inside:
            runs.append([place, 1])
    return " ".join(f"{start} {length}" for start, length in runs)


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
