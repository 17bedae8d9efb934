"""Images a second of one training with one process and with two, in turn; each process reads ``batch_size`` a step.

    .venv/bin/python -m benchmarks.processes --rounds=3 --config=A.yaml --config=B.yaml --trainer.max_steps=200

All arguments but ``--rounds=N`` are those of ``segcft fit``; nothing is logged. Prints medians and ranges over the
rounds, and how busy the machine was with other things before each: above 0.5 the numbers mean little.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def speed(processes: int, arguments: list[str]) -> float:
    """Images a second of one training, its first steps included."""
    with tempfile.TemporaryDirectory(dir="checkpoints") as folder:
        experiment = Path(folder).name
        own = [f"--experiment={experiment}", f"--trainer.devices={processes}", "--trainer.logger=false"]
        command = [sys.executable, "-m", "segcft", "fit", *arguments, *own, "--trainer.accelerator=cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        record = json.loads(next(Path(folder).glob("*/run.json")).read_text())
    assert record["processes"] == processes
    images = record["config"]["data"]["init_args"].get("batch_size", 32) * processes * record["steps"]
    return float(images / record["seconds"])


def main() -> None:
    rounds, arguments = 3, []
    for word in sys.argv[1:]:
        if word.startswith("--rounds="):
            rounds = int(word.partition("=")[2])
        else:
            arguments.append(word)
    found: dict[int, list[float]] = {1: [], 2: []}
    loads = []
    for _ in range(rounds):
        for processes, speeds in found.items():
            loads.append(os.getloadavg()[0])
            speeds.append(speed(processes, arguments))
    for processes, speeds in found.items():
        print(f"{processes} processes: {statistics.median(speeds):.1f} images/s ({min(speeds):.1f}-{max(speeds):.1f})")
    print(f"load before each: {', '.join(f'{load:.1f}' for load in loads)}; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
