"""Time the reading of images: decoding against the cache, preparing with 1 and 2 workers, the loader against training.

    .venv/bin/python benchmarks/data.py --films 96 --rounds 5

Draws films of 1000 x 820 pixels as PNG and JPEG into a temporary folder; one thread, medians and spread of alternating
rounds. For tables see ``benchmarks.tables``.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.clock import alternate
from data_modules.folder import Folder
from data_modules.preparation.prepare import prepare
from data_modules.preparation.prepared import Prepared
from segcft.hvae.hvae import HVAE
from segcft.hvae.likelihoods import Gaussian
from segcft.hvae.stages import Stage
from segcft.io.readers import read_grey
from segcft.io.resampling import pad_square, resize
from segcft.variables.variables import Variable

SIZE, BATCH = 192, 32
STAGES = [Stage(8, 0, resolution=192), Stage(16), Stage(32), Stage(48), Stage(64, 1, 8), Stage(64, 2, 16)]


def write(folder: Path, films: int, suffix: str) -> Path:
    """Smooth noise with grain, as compressible as a film, and its mask."""
    random, rows = np.random.default_rng(0), []
    for number in range(films):
        coarse = cv2.resize(random.uniform(40, 220, (12, 10)), (820, 1000), interpolation=cv2.INTER_CUBIC)
        film = (coarse + random.normal(0, 3, coarse.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(film).save(folder / f"{number}{suffix}")
        Image.fromarray(np.where(coarse > 130, 255, 0).astype(np.uint8)).save(folder / f"{number}_mask.png")
        rows.append({"image": f"{number}{suffix}", "mask_organ": f"{number}_mask.png", "split": "train"})
    pd.DataFrame(rows).to_csv(folder / f"manifest{suffix}.csv", index=False)
    return folder / f"manifest{suffix}.csv"


def walls(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of every step, in alternating rounds after one to warm up."""
    spent = alternate(steps, rounds, torch.device("cpu"))
    return {name: [once.wall for once in each] for name, each in spent.items()}


def show(name: str, seconds: list[float], images: int) -> float:
    """Print milliseconds an image; returns the median."""
    per = sorted(1000 * value / images for value in seconds)
    print(f"{name:>34} {statistics.median(per):>9.3f} ms/image ({per[0]:.3f}-{per[-1]:.3f})")
    return statistics.median(per)


def reading(folder: Path, films: int, rounds: int) -> None:
    """Decode and resize the image alone, against image and mask from the cache as a batch of floats."""
    for suffix in (".png", ".jpg"):
        manifest = write(folder, films, suffix)
        data = _data(manifest, folder / f"cache{suffix}")
        dataset = data.dataset("train")
        paths = [folder / f"{number}{suffix}" for number in range(films)]

        def decode(paths: list[Path] = paths) -> None:
            for path in paths:
                resize(pad_square(read_grey(path)), SIZE)

        def cached(dataset: torch.utils.data.Dataset = dataset) -> None:
            order = torch.randperm(films)
            for start in range(0, films, BATCH):
                dataset.read(order[start : start + BATCH])

        spent = walls({"decode": decode, "cached": cached}, rounds)
        slow = show(f"decode and resize {suffix}", spent["decode"], films)
        fast = show("image and mask from the cache", spent["cached"], films)
        print(f"{'ratio':>34} {slow / fast:>9.1f}")


def preparing(folder: Path, films: int, rounds: int) -> None:
    """Wall time of a whole preparation, by workers."""
    source = Folder(str(folder / "manifest.png.csv"), ["organ"], frame=[SIZE, SIZE])

    def with_workers(workers: int) -> Callable[[], None]:
        def step() -> None:
            prepare(source, folder / "fresh", workers)
            shutil.rmtree(folder / "fresh")

        return step

    spent = walls({str(workers): with_workers(workers) for workers in (1, 2)}, rounds)
    one, two = (show(f"prepare, {workers} workers", spent[workers], films) for workers in ("1", "2"))
    print(f"{'ratio':>34} {one / two:>9.2f}")


def training(folder: Path, films: int, rounds: int) -> None:
    """An HVAE step at this size, against the batch that it waits for."""
    data = _data(folder / "manifest.png.csv", folder / "cache.png", augment=True)
    plain = _data(folder / "manifest.png.csv", folder / "cache.png")
    about, batch = data.description, plain.dataset("train").read(torch.arange(BATCH))
    model = HVAE(2, 1, about.parents.dim, STAGES, Gaussian(scale=0.1)).to(memory_format=torch.channels_last)
    image, pa = batch["image"].to(memory_format=torch.channels_last), about.parents.encode(batch)

    def step() -> None:
        model.abduct(image, pa).elbo.nelbo().mean().backward()

    def read(module: Prepared) -> Callable[[], None]:
        return lambda: module.dataset("train").read(torch.randperm(films)[:BATCH]) and None

    spent = walls({"step": step, "plain": read(plain), "augmented": read(data)}, rounds)
    slow = show(f"HVAE step, {SIZE} x {SIZE}", spent["step"], BATCH)
    for name in ("plain", "augmented"):
        fast = show(f"batch from the cache, {name}", spent[name], BATCH)
        print(f"{'share of a step':>34} {100 * fast / slow:>9.1f} %")


def _data(manifest: Path, cache: Path, augment: bool = False) -> Prepared:
    source = Folder(str(manifest), ["organ"], frame=[SIZE, SIZE])
    variables = {"organ_area": Variable(structure="organ")}
    return Prepared(source, variables, cache=str(cache), augment=augment, workers=1, batch_size=BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for part in (reading, preparing, training):
            part(Path(folder), options.films, options.rounds)


if __name__ == "__main__":
    main()
