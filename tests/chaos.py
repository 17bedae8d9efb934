"""Kill -9 trainings at random moments, start them again with the same command, and compare with ones left alone.

    python tests/chaos.py FOLDER --kills 30

Every task is trained with 0 and with 2 loader workers, validated after every epoch, and the kills are shared out among
these trainings. Every run is a forked process that kills itself after some steps and a random while: in a step, in
validation, or while it writes. Prints where it was hit, and whether the final checkpoints have the same bits, of
either number of workers. A run that begins before the last step that was saved is an error.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from itertools import product
from pathlib import Path

import torch

from segcft.callbacks.checkpointing import IntervalCheckpoint
from segcft.cli.main import main
from segcft.core.recipes import TRUST
from tests.ranks import same
from tests.stages import STAGES, write

STEPS = 16  # of a training; six of them are an epoch
WORKERS = (0, 2)
KEYS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch")


def run(stage, experiment, workers, *stroke):
    """One process; its exit code, or minus the signal that ended it; see ``strike_after``."""
    process = os.fork()
    if not process:
        code = 1
        try:
            said = os.open(f"{experiment}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            if stroke:
                strike_after(Path(f"{experiment}-{stage}.saved"), *stroke)
            places = ["--trainer.accelerator=cpu", "--trainer.devices=1", f"--data.init_args.num_workers={workers}"]
            code = main(["fit", f"--config={stage}.yaml", f"--experiment={experiment}", "--save_every=0", *places])
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def strike_after(saved, delay, steps):
    """Die ``delay`` seconds after training has begun and taken some ``steps``; note in ``saved`` what was saved."""
    start, end, taken = IntervalCheckpoint.on_train_start, IntervalCheckpoint.on_train_batch_end, []

    def die(trainer):
        time.sleep(delay)
        with Path("hits").open("a") as hits:
            hits.write(f"{trainer.state.stage}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def on_train_start(self, trainer, module):
        start(self, trainer, module)
        if saved.is_file() and trainer.global_step < int(saved.read_text()):
            os._exit(1)  # steps were lost
        if not steps:
            threading.Thread(target=die, args=[trainer], daemon=True).start()

    def on_train_batch_end(self, trainer, *more):
        taken.append(trainer.global_step)
        if len(taken) == steps:
            threading.Thread(target=die, args=[trainer], daemon=True).start()
        before = self._saved
        end(self, trainer, *more)
        if self._saved != before:
            saved.with_suffix(".part").write_text(str(trainer.global_step))
            saved.with_suffix(".part").rename(saved)

    IntervalCheckpoint.on_train_start, IntervalCheckpoint.on_train_batch_end = on_train_start, on_train_batch_end


def chaos(kills, seed):
    """Train every task once in peace and, with either number of workers, under fire."""
    write(".", subjects=24, steps=STEPS)
    chance, pairs, wrong = random.Random(seed), list(product(STAGES, WORKERS)), []
    order = chance.sample(pairs, len(pairs))
    hits = Counter(order[number % len(order)] for number in range(kills))
    for stage in STAGES:
        began = time.perf_counter()
        assert run(stage, "balls", 0) == 0, f"{stage} does not train, see balls.log"
        step = (time.perf_counter() - began) / STEPS
        wrong += [pair for pair in pairs if pair[0] == stage and not survived(*pair, hits[pair], chance, step)]
    struck = Counter(Path("hits").read_text().split()) if kills else Counter()
    print(f"{sum(struck.values())} kills ({', '.join(f'{count} in {where}' for where, count in struck.items())})")
    print(f"of {len(pairs)} trainings {len(pairs) - len(wrong)} ended with the same bits")
    return not wrong and sum(struck.values()) == kills


def survived(stage, workers, kills, chance, step):
    """Kill one training so many times, and see that it ends as the one that was left alone."""
    experiment = f"fire{workers}"
    for kill in range(kills):
        code = hit(stage, experiment, workers, chance, step, kills)
        if code != -signal.SIGKILL:
            print(f"{stage}, {workers} workers: kill {kill} ended with {code}, see {experiment}.log", flush=True)
            return False
    assert run(stage, experiment, workers) == 0, f"{stage} did not go on, see {experiment}.log"
    one, other = (torch.load(f"checkpoints/{name}/{stage}/last.ckpt") for name in ("balls", experiment))
    left = set(os.listdir(f"checkpoints/{experiment}/{stage}"))
    equal = all(same(one.get(key), other.get(key)) for key in KEYS) and one["global_step"] == STEPS
    print(f"{stage}, {workers} workers: {kills} kills, same bits: {equal}; left: {sorted(left)}", flush=True)
    return equal and left == {"last.ckpt", "run.json"}


def hit(stage, experiment, workers, chance, step, kills):
    """Run until a kill; one that ends before it is hit is trained anew by the same command."""
    while True:
        code = run(stage, experiment, workers, chance.uniform(0, step), chance.randrange(1 + (STEPS - 4) // kills))
        if code:
            return code
        Path(f"{experiment}-{stage}.saved").unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    Path(options.folder).mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    os.environ[TRUST] = "tests.balls"
    sys.exit(0 if chaos(options.kills, options.seed) else 1)
