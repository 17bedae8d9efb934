"""Kill -9 a training at random moments, start it again with the same command, and compare with one left alone.

    python tests/chaos.py FOLDER --kills 20

Every run is a forked process that kills itself after some steps and a random while: in a step, in validation, or while
it writes. Prints how often it was killed, where it went on, and whether the final checkpoint has
the same bits. A run that begins before the last step that was saved is an error.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from segcft.callbacks.checkpointing import IntervalCheckpoint
from segcft.cli.main import main
from segcft.core.recipes import TRUST

CONFIG = """
experiment: chaos
data: {class_path: tests.balls.Balls, init_args: {subjects: 24}}
trainer:
  max_steps: 80
  logger: false
  accelerator: cpu
  devices: 1
  callbacks: [{class_path: EMAWeightAveraging, init_args: {decay: 0.5}}]
model:
  class_path: segcft.tasks.PretrainHVAE
  init_args: {hvae: {class_path: segcft.hvae.HVAE, init_args: {stages: [
    {width: 8, blocks: 0}, {resolution: 4, width: 8, latent_channels: 2}]}}}
"""
KEYS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "callbacks")


def run(experiment, *stroke):
    """One process; its exit code, or minus the signal that ended it; see ``strike_after``."""
    process = os.fork()
    if not process:
        code = 1
        try:
            if stroke:
                strike_after(*stroke)
            code = main(["fit", "--config=chaos.yaml", f"--experiment={experiment}", "--save_every=0"])
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def strike_after(delay, steps):
    """Die ``delay`` seconds after training has begun and taken some ``steps``; note what was saved."""
    start, end, saved, taken = (
        IntervalCheckpoint.on_train_start,
        IntervalCheckpoint.on_train_batch_end,
        Path("saved"),
        [],
    )
    die = threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL)), daemon=True)

    def on_train_start(self, trainer, module):
        start(self, trainer, module)
        print(f"  from step {trainer.global_step}: {steps} steps and {delay:.2f} s", flush=True)
        if saved.is_file() and trainer.global_step < int(saved.read_text()):
            os._exit(1)  # steps were lost
        if not steps:
            die.start()

    def on_train_batch_end(self, trainer, *more):
        taken.append(trainer.global_step)
        if len(taken) == steps:
            die.start()
        before = self._saved
        end(self, trainer, *more)
        if self._saved != before:
            saved.with_suffix(".part").write_text(str(trainer.global_step))
            saved.with_suffix(".part").rename(saved)

    IntervalCheckpoint.on_train_start, IntervalCheckpoint.on_train_batch_end = on_train_start, on_train_batch_end


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        shared = [key for key in one if "ModelCheckpoint" not in str(key) and "IntervalCheckpoint" not in str(key)]
        return all(key in other and same(one[key], other[key]) for key in shared)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def chaos(kills, seed):
    """Train once in peace and once under fire."""
    Path("chaos.yaml").write_text(CONFIG)
    began = time.perf_counter()
    assert run("peace") == 0
    spent, chance, killed = time.perf_counter() - began, random.Random(seed), 0
    while killed < kills:
        if run("fire", chance.uniform(0, 0.02 * spent), chance.choice([0, 1, 2, 4])) != -signal.SIGKILL:
            break
        killed += 1
    assert run("fire") == 0
    one, other = (torch.load(f"checkpoints/{name}/pretrain/last.ckpt") for name in ("peace", "fire"))
    left = os.listdir("checkpoints/fire/pretrain")
    equal = all(same(one[key], other[key]) for key in KEYS) and one["global_step"] == other["global_step"] == 80
    print(f"killed {killed} times; same bits: {equal}; left: {left}", flush=True)
    return equal and set(left) == {"last.ckpt", "run.json"} and killed == kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    Path(options.folder).mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    os.environ[TRUST] = "tests.balls"
    sys.exit(0 if chaos(options.kills, options.seed) else 1)
