"""Images a second of one training with one process and with two, in turn; each process reads ``batch_size`` a step.

    .venv/bin/python -m benchmarks.processes --rounds=3 --steps=100 --config=A.yaml --config=B.yaml

All other arguments are those of ``segcft fit``. What begins and ends a training is not counted: each is run with
``steps`` and with three times as many, and the difference counts. Prints medians and ranges over the rounds, and how
busy the machine was with other things before each: above 0.5 the numbers mean little.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def seconds(processes: int, steps: int, arguments: list[str]) -> tuple[float, int]:
    """Seconds of one training, and the images that it read."""
    with tempfile.TemporaryDirectory(dir="checkpoints") as folder:
        own = {"experiment": Path(folder).name, "trainer.devices": processes, "trainer.max_steps": steps,
               "trainer.accelerator": "cpu", "trainer.logger": "false", "trainer.default_root_dir": folder,
               "trainer.limit_val_batches": 0}  # fmt: skip
        command = [sys.executable, "-m", "segcft", "fit", *arguments, *(f"--{k}={v}" for k, v in own.items())]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        record = json.loads(next(Path(folder).glob("*/run.json")).read_text())
    assert (record["processes"], record["steps"]) == (processes, steps)
    return record["seconds"], record["config"]["data"]["init_args"].get("batch_size", 32) * processes * steps


def speed(processes: int, steps: int, arguments: list[str]) -> float:
    """Images a second."""
    (few, read), (many, most) = (seconds(processes, count, arguments) for count in (steps, 3 * steps))
    return (most - read) / (many - few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    options, arguments = parser.parse_known_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    loads = []
    for number in range(1, options.rounds + 1):
        for processes, speeds in found.items():
            loads.append(os.getloadavg()[0])
            speeds.append(speed(processes, options.steps, arguments))
            print(f"round {number}, {processes} processes: {speeds[-1]:.1f} images/s", flush=True)
    for processes, speeds in found.items():
        print(f"{processes} processes: {statistics.median(speeds):.1f} images/s ({min(speeds):.1f}-{max(speeds):.1f})")
    print(f"load before each: {', '.join(f'{load:.1f}' for load in loads)}; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
