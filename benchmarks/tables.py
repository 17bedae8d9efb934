"""Time the reading of tables: a CheXpert-like train.csv is written to a temporary folder and read in a child process.

    .venv/bin/python -m benchmarks.tables --rows 1000000

Prints seconds and the largest resident memory of the child, imports included; ``--masks 20000`` does the same for a
CheXmask table of 1024 x 1024 masks.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.clock import resident
from data_modules.chest.chexmask import COLUMNS, encode, read_chexmask
from data_modules.chexpert import FINDINGS, CheXpert


def write(folder: Path, rows: int) -> None:
    """``train.csv`` of ``rows`` frontal films, three a patient, with the true columns and value frequencies."""
    rng, index = np.random.default_rng(0), pd.Series(np.arange(rows))
    patients, studies = (index // 3 + 1).astype(str).str.zfill(6), (index % 3 + 1).astype(str)
    table = pd.DataFrame({"Path": "CheXpert-v1.0/train/patient" + patients + "/study" + studies + "/view1_frontal.jpg"})
    table["Sex"], table["Age"] = rng.choice(["Female", "Male"], rows), rng.integers(0, 91, rows)
    table["Frontal/Lateral"], table["AP/PA"] = "Frontal", rng.choice(["AP", "PA"], rows, p=[0.85, 0.15])
    for column in FINDINGS.values():
        table[column] = rng.choice(["1.0", "0.0", "-1.0", ""], rows, p=[0.2, 0.1, 0.05, 0.65])
    table.to_csv(folder / "train.csv", index=False)


def measure(folder: Path) -> None:
    """Read the table as ``prepare`` does, in a process of its own."""
    empty = resident()
    start = time.perf_counter()
    films = CheXpert(str(folder), "").films()
    seconds = time.perf_counter() - start
    size = films.memory_usage(deep=True).sum() / 1e6
    print(f"{len(films)} films, {films.shape[1]} columns: {seconds:.1f} s, table {size:.0f} MB, ", end="")
    print(f"peak {resident():.0f} MiB (after imports {empty:.0f} MiB)")


def write_masks(folder: Path, rows: int) -> None:
    """``CheXmask.csv`` of ``rows`` films with three ellipses each, some 20 kB a row as in the real tables."""
    y, x = np.mgrid[:1024, :1024]
    shapes = {"Left Lung": (450, 720, 300, 110), "Right Lung": (450, 300, 320, 120), "Heart": (650, 560, 140, 160)}
    masks = {name: ((y - a) / h) ** 2 + ((x - b) / w) ** 2 < 1 for name, (a, b, h, w) in shapes.items()}
    row = {"Dice RCA (Mean)": 0.8, "Landmarks": "512,512," * 120} | {name: encode(m) for name, m in masks.items()}
    head = pd.DataFrame([{"Path": "", **row, "Height": 1024, "Width": 1024}])
    with (folder / "CheXmask.csv").open("w") as file:
        for start in range(0, rows, 1000):
            names = [f"train/patient{i:06d}/study1/view1_frontal.jpg" for i in range(start, min(start + 1000, rows))]
            head.loc[[0] * len(names)].assign(Path=names).to_csv(file, index=False, header=start == 0)


def measure_masks(folder: Path, rows: int) -> None:
    """Read the masks as ``prepare`` does, in a process of its own."""
    wanted = pd.Index([f"train/patient{i:06d}/study1/view1_frontal.jpg" for i in range(rows)])
    empty, start = resident(), time.perf_counter()
    masks = read_chexmask(folder / "CheXmask.csv", list(COLUMNS), wanted)
    seconds, size = time.perf_counter() - start, (folder / "CheXmask.csv").stat().st_size / 1e6
    print(
        f"{len(masks)} films, {size:.0f} MB: {seconds:.1f} s, run lengths {masks.entries.nbytes / 1e6:.0f} MB, ", end=""
    )
    print(f"peak {resident():.0f} MiB (after imports {empty:.0f} MiB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--masks", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _alone(write, Path(folder), options.rows)
        _alone(measure, Path(folder))
        if options.masks:
            _alone(write_masks, Path(folder), options.masks)
            _alone(measure_masks, Path(folder), options.masks)


def _alone(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a fresh process, whose memory is then its own."""
    child = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(child.exitcode)


if __name__ == "__main__":
    main()
