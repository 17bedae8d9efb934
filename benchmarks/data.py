"""Time the reading of tables: a CheXpert-like train.csv is written to a temporary folder and read in a child process.

    .venv/bin/python benchmarks/data.py --rows 1000000

Prints seconds and the largest resident memory of the child, imports included.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

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
    empty = _peak()
    start = time.perf_counter()
    films = CheXpert(str(folder), "").films()
    seconds = time.perf_counter() - start
    size = films.memory_usage(deep=True).sum() / 1e6
    print(f"{len(films)} films, {films.shape[1]} columns: {seconds:.1f} s, table {size:.0f} MB, ", end="")
    print(f"peak {_peak():.0f} MB (after imports {empty:.0f} MB)")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _alone(write, Path(folder), options.rows)
        _alone(measure, Path(folder))


def _alone(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a fresh process, whose memory is then its own."""
    child = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(child.exitcode)


if __name__ == "__main__":
    main()
