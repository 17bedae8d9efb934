"""How cost grows with images a batch, pixels and subjects, and whether memory stays flat over many steps.

    .venv/bin/python -m benchmarks.scaling --out docs/figures/cost.png

CPU seconds on one thread, medians of alternating rounds, each with the line of proportional cost; resident memory of a
process that takes ``--steps`` training steps of a small model.
"""

import argparse
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import LogLocator

from benchmarks.clock import Side, Step, alternate
from benchmarks.paths import Ours, Preset, Setting
from data_modules.chest_phantom import ChestPhantom
from segcft.cli import cpu

CPU = torch.device("cpu")
Curve = dict[int, float]


def step_of(size: int, batch: int) -> Step:
    """A training step of the demo's widths."""
    return Ours(Preset("chest64", size, batch, 0), Setting(), CPU).step("train")


def epoch(subjects: int, batch: int = 32) -> Step:
    """Reading all of a training split once, shuffled."""
    dataset = ChestPhantom(subjects={"train": subjects, "val": 8, "test": 8}).dataset("train")

    def step() -> None:
        for chosen in torch.randperm(subjects).split(batch):
            dataset.read(chosen)

    return step


def curve(steps: dict[int, Step], rounds: int) -> Curve:
    """CPU seconds by what grows."""
    spent = alternate({str(size): step for size, step in steps.items()}, rounds, CPU)
    return {size: statistics.median(once.cpu for once in spent[str(size)]) for size in steps}


def fill(steps: int) -> Step:
    """That many steps of a small model, one after the other."""
    step = step_of(32, 8)

    def many() -> None:
        for _ in range(steps):
            step()

    return many


def memory(steps: int) -> float:
    """Resident memory of a process after that many steps, MiB."""
    side = Side(fill, (steps,))
    side.ask("step")
    most, _ = side.ask("memory")
    side.close()
    return float(most)


def draw(curves: dict[str, Curve], path: Path) -> None:
    figure, axes = plt.subplots(1, len(curves), figsize=(3.2 * len(curves), 2.8), layout="constrained")
    for axis, (name, found) in zip(axes, curves.items(), strict=True):
        sizes, seconds = list(found), list(found.values())
        axis.loglog(sizes, [seconds[-1] * size / sizes[-1] for size in sizes], color="0.7", label="proportional")
        axis.loglog(sizes, seconds, "o-", color="C0", label="measured")
        axis.set(xlabel=name, ylabel="CPU seconds")
        axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--subjects", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("results/cost.png"))
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    cpu.hasten()
    few, many = (memory(steps) for steps in (options.steps // 10, options.steps))
    print(f"resident memory, MiB: {few:.1f} after {options.steps // 10} steps, {many:.1f} after {options.steps}")
    curves = {
        "images a batch": curve({batch: step_of(64, batch) for batch in options.batches}, options.rounds),
        "pixels an image": curve({size**2: step_of(size, 8) for size in options.sizes}, options.rounds),
        "subjects read": curve({count: epoch(count) for count in options.subjects}, options.rounds),
    }
    for name, found in curves.items():
        each = ", ".join(f"{size}: {seconds:.4g} s ({1e6 * seconds / size:.3g} us)" for size, seconds in found.items())
        print(f"{name}: {each}")
    draw(curves, options.out)


if __name__ == "__main__":
    main()
