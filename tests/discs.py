"""A small data set on disk, 2-D or 3-D: bright discs or balls of known size, one file of levels a subject."""

import time
from pathlib import Path

import numpy as np
import pandas as pd

from data_modules.common.sources import Sample, Source

LEVELS = {"uint8": (40, 200), "int16": (-50, 300)}


class Discs(Source):
    """Reads what ``write`` wrote.

    Args:
        root: Folder of table.csv.
        size: Side of the frame.
        dtype: uint8 or int16.
        delay: Seconds that reading takes.
    """

    name = "discs"

    def __init__(self, root: str, size: int = 16, dtype: str = "uint8", delay: float = 0.0) -> None:
        self.root, self.size, self.delay = Path(root), size, delay
        self.structures = ["left", "right"]
        dims = len(pd.read_csv(self.root / "table.csv", nrows=1)["side"].map(str)[0].split("x"))
        self.frame, self.spacing = (size,) * dims, [0.5] * dims
        self.dtype, self.unit = dtype, "mm^2" if dims == 2 else "mm^3"
        self.window = (0.0, 255.0) if dtype == "uint8" else (-200.0, 600.0)
        self.measure = "area" if dims == 2 else "volume"

    def options(self):
        return {"size": self.size}

    def files(self):
        return [self.root / "table.csv"]

    def table(self):
        table = pd.read_csv(self.root / "table.csv", dtype={"id": str, "patient": str})
        table["origin"] = [
            f"{self.root / 'table.csv'}, row {row + 2}, image = {v!r}" for row, v in table["image"].items()
        ]
        table["image"] = [str(self.root / name) for name in table["image"]]
        return table

    def read(self, row):
        time.sleep(self.delay)
        try:
            mask = np.load(row["image"])
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{row['image']} cannot be read: {error}") from error
        low, high = LEVELS[self.dtype]
        image = np.where(mask.any(0), high, low).astype(self.dtype)[None]
        sizes = float(np.prod(self.spacing)) * mask.reshape(2, -1).sum(1)
        names = [f"{structure}_{self.measure}" for structure in self.structures]
        return Sample(image, mask, dict(zip(names, sizes, strict=True)))


def write(root, count=60, size=16, dims=2, seed=0):
    """Two discs a subject, two subjects a patient; returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * dims, indexing="ij"))
    rows = []
    for number in range(count):
        radii = random.uniform(1.5, size / 5, 2)
        centres = np.full((2, dims), size / 2)
        centres[:, -1] = size / 4, 3 * size / 4
        distance = ((grid - centres.reshape(2, dims, *[1] * dims)) ** 2).sum(1) ** 0.5
        mask = distance < radii.reshape(2, *[1] * dims)
        np.save(root / f"{number}.npy", mask)
        patient = number // 2
        split = "val" if patient % 5 == 3 else "test" if patient % 5 == 4 else "train"
        side = "x".join([str(size)] * dims)
        age = "" if number % 10 == 7 else random.integers(20, 80)
        rows.append({"id": f"s{number}", "patient": f"p{patient}", "split": split, "image": f"{number}.npy",
                     "age": age, "side": side})  # fmt: skip
    pd.DataFrame(rows).to_csv(root / "table.csv", index=False)
    return root
