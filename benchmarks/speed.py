"""Time the hot paths on this machine: training and fine-tuning steps, counterfactuals, and reading phantoms.

    make bench                                      # or .venv/bin/python -m benchmarks.speed
    make bench ARGS="--against PATH --presets morphomnist32 --settings plain compile"

Every setting is a process of its own and takes a step in each round, so that what disturbs the machine disturbs all of
them alike; printed are medians and spreads. PATH is a checkout of biomedia-mira/causal-gen, which is imported and not
changed; it takes its steps in the same rounds on the same shapes, as it comes: what our commands set for their process
(``segcft.cli.cpu``) it has only with ``--alike``. It imports imageio; ``finetune`` pyro-ppl, seaborn. GFLOP are
those of the plain step's convolutions and matrix products, and their rate and its share of this machine's best
convolution are per CPU second, on a GPU per second. Memory is what the steps had taken by the last round, on a GPU that
of tensors. Writes RESULTS.json and RESULTS.md.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import public
from benchmarks.clock import Side, Spent, Step, alternate, convolution_peak, flops, ratio
from benchmarks.paths import PATHS, PRESETS, SWEEP, WORDS, Ours, Preset, Setting, batch_of, build, describe
from segcft.cli import cpu

THEIRS = "causal-gen"
Row = dict[str, Any]


def their_step(checkout: Path, preset: Preset, path: str, device: torch.device) -> Step | None:
    """The public code's step over the same images; None where it has none."""
    if preset.name not in public.NAMES or path == "read" or (path == "finetune" and preset.name != "morphomnist32"):
        return None
    model = public.Public(checkout, preset.name, batch_of(preset, describe(preset))["image"], device)
    if path == "finetune":
        try:
            return model.finetune()
        except ImportError as error:
            print(f"{THEIRS}, {path}: left out, {error}", file=sys.stderr)
            return None
    return model.train() if path == "train" else model.generate(SWEEP if path == "sweep" else 1)


def measure(preset: Preset, path: str, options: argparse.Namespace, peaks: dict[str, float]) -> Iterator[Row]:
    """Rows of one preset and path: theirs first."""
    device = torch.device(options.device)
    builders: dict[str, tuple[Callable[..., Step | None], Sequence[Any]]] = {}
    gflop = {}
    if options.against is not None and (theirs := their_step(options.against, preset, path, device)):
        builders[THEIRS], gflop[THEIRS] = (their_step, (options.against, preset, path, device)), flops(theirs) / 1e9
    for words in options.settings if path != "read" else ["plain"]:
        builders[words] = build, (preset, Setting.read(words), path, device)
    plain = flops(Ours(preset, Setting(), device).step(path)) / 1e9 if path != "read" else 0.0
    sides = {
        words: Side(*builder, options.threads, words != THEIRS or options.alike) for words, builder in builders.items()
    }
    spent = alternate(sides, options.rounds, device, options.warmup)
    for words, each in spent.items():
        row = {"preset": preset.name, "path": path, "setting": words, "batch": preset.batch}
        row |= summary(each, preset.batch * (SWEEP if path == "sweep" else 1), device)
        row["gflop"] = gflop.get(words, plain)
        row["gflop_per_second"] = row["gflop"] / row["seconds"]
        row["share_of_peak"] = row["gflop_per_second"] * 1e9 / peaks["bf16" if "bf16" in words else "fp32"]
        if path != "read":
            row["memory"], row["memory_of_steps"] = sides[words].ask("memory")
        if THEIRS in spent and words != THEIRS:
            row["ratio"] = ratio(*([getattr(once, clock(device)) for once in spent[who]] for who in (THEIRS, words)))
        sides[words].close()
        yield row


def clock(device: torch.device) -> str:
    """What is compared: CPU seconds, which other processes hardly change; on a GPU seconds."""
    return "wall" if device.type == "cuda" else "cpu"


def summary(each: list[Spent], images: int, device: torch.device) -> Row:
    """Medians, extremes and rates of a step's rounds."""
    row: Row = {}
    for name in ("wall", "cpu"):
        seconds = [getattr(once, name) for once in each]
        middle = statistics.median(seconds)
        row |= {f"{name}_seconds": [middle, min(seconds), max(seconds)], f"images_per_{name}_second": images / middle}
    row["seconds"] = row[f"{clock(device)}_seconds"][0]
    return row


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    head = ["preset", "path", "batch", "setting", "CPU s a step (range)", "s", "images/CPU s", "images/s"]
    head += ["GFLOP/s", "of peak", "MiB (of steps)", f"faster than {THEIRS} (range; minima)"]
    lines = []
    for row in rows:
        cpu, wall = row["cpu_seconds"], row["wall_seconds"]
        cells = [row["preset"], row["path"], str(row["batch"]), row["setting"]]
        cells += [f"{cpu[0]:.4g} ({cpu[1]:.4g}-{cpu[2]:.4g})", f"{wall[0]:.4g}"]
        cells += [f"{row['images_per_cpu_second']:.4g}", f"{row['images_per_wall_second']:.4g}"]
        worked = row["gflop"] > 0
        cells += [f"{row['gflop_per_second']:.1f}", f"{row['share_of_peak']:.0%}"] if worked else ["", ""]
        cells.append(f"{row['memory']:.0f} ({row['memory_of_steps']:.0f})" if "memory" in row else "")
        cells.append("{:.2f} ({:.2f}-{:.2f}; {:.2f})".format(*row["ratio"]) if "ratio" in row else "")
        lines.append(cells)
    return markdown(head, lines)


def machine(device: torch.device, peaks: dict[str, float]) -> dict[str, Any]:
    """What was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "convolution_gflop_per_second": {dtype: round(peak / 1e9, 1) for dtype, peak in peaks.items()},
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--settings", nargs="+", default=["plain"], help=f"{', '.join(WORDS)}, joined by +")
    parser.add_argument("--against", type=Path, help="checkout of biomedia-mira/causal-gen")
    parser.add_argument("--batch-size", type=int, help="instead of the presets' own")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2, help="rounds that do not count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--alike", action="store_true", help="PATH's process is set as ours is")
    parser.add_argument("--out", type=Path, default=Path("results/speed"), help="RESULTS, without a suffix")
    options = parser.parse_args(given)
    for words in options.settings:
        Setting.read(words)
    return options


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    torch.set_num_threads(options.threads)
    cpu.hasten()
    torch.manual_seed(0)
    device = torch.device(options.device)
    peaks = {name: convolution_peak(device, dtype) for name, dtype in (("fp32", torch.float), ("bf16", torch.bfloat16))}
    about, rows = machine(device, peaks), []
    print(json.dumps(about), flush=True)
    for name in options.presets:
        preset = PRESETS[name]._replace(batch=options.batch_size or PRESETS[name].batch)
        for path in options.paths:
            if path == "read" and name in public.NAMES:
                continue  # there are no phantoms of these
            found = list(measure(preset, path, options, peaks))
            print(table(found), flush=True)
            rows += found
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1))
    options.out.with_suffix(".md").write_text(f"{json.dumps(about)}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
