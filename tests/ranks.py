"""Several processes of one training, forked: what becomes of it if all of them are killed, one is, or one is spoilt.

    python tests/ranks.py FOLDER

Trains two stages in peace, one with its weights shared out, and kills the same at steps within and at the end of an
epoch, expecting the same bits; kills or stops one process alone, expecting the other to end soon and say why; and
spoils a batch of one process, expecting both to leave that step out. Every process is told what torchrun would tell it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from segcft.callbacks import stopped_processes
from segcft.callbacks.checkpointing import IntervalCheckpoint
from segcft.callbacks.training_health import StepGuard
from segcft.cli.main import main
from segcft.core.recipes import TRUST
from tests.stages import write

STAGES = {"segmentor": (), "pretrain": (), "segcft": ("--trainer.strategy=sharded",)}
KEYS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch")
WORLD = 2


def run(stage, experiment, *more, at=None, harm=None):
    """Exit codes of both ranks, or minus the signal that ended one; ``harm(rank, batch)`` strikes at step ``at``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(WORLD):
        child = os.fork()
        if not child:
            code = 1
            try:
                if harm is not None:
                    strike(rank, at, harm)
                code = begin(stage, experiment, rank, port, more)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def begin(stage, experiment, rank, port, more):
    """In a child: train."""
    said = os.open(f"{experiment}-{stage}-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "ranks"}  # fmt: skip
    os.environ.update({name: str(value) for name, value in told.items()})
    return main(
        [
            "fit",
            f"--config={stage}.yaml",
            f"--experiment={experiment}",
            "--save_every=0",
            "--trainer.accelerator=cpu",
            *more,
        ]
    )


def strike(rank, at, harm):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == at:
            harm(rank, batch)

    IntervalCheckpoint.on_train_batch_start = on_train_batch_start


def kill_all(rank, batch):
    time.sleep(0.5)  # the other one has arrived, too
    os.kill(os.getpid(), signal.SIGKILL)


def kill_second(rank, batch):
    if rank == 1:
        Path("died").write_text(str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)


def stop(which):
    def harm(rank, batch):
        if rank == which:
            Path("stopped").touch()
            subprocess.Popen(["sh", "-c", f"sleep 30; kill -9 {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)

    return harm


def slow_second(rank, batch):
    if rank == 1:
        time.sleep(12)


def spoil_second(rank, batch):
    if rank == 1:
        batch["image"][:] = torch.nan


def last(stage, experiment):
    return torch.load(f"checkpoints/{experiment}/{stage}/last.ckpt", weights_only=True)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def check(claim, truth):
    print(f"{'ok' if truth else 'WRONG'}: {claim}", flush=True)
    if not truth:
        sys.exit(1)


def resumed():
    """Twelve steps an epoch, of which the tenth is saved: killed behind it, and behind the end of the epoch."""
    for stage in STAGES:
        check(f"{stage} trains", run(stage, "balls", *STAGES[stage]) == [0, 0])
    for stage in ("pretrain", "segcft"):
        for at in (11, 13):
            codes = run(stage, "fire", *STAGES[stage], at=at, harm=kill_all)
            check(f"{stage} is killed at {at}", codes == [-signal.SIGKILL] * 2)
            saved = last(stage, "fire")["global_step"]
            check(f"{stage} was saved at {saved}", saved == {11: 10, 13: 12}[at])
        check(f"{stage} goes on", run(stage, "fire", *STAGES[stage]) == [0, 0])
        starts = json.loads(Path(f"checkpoints/fire/{stage}/run.json").read_text())["starts"]
        check(f"{stage} began {starts}", [start["step"] for start in starts] == [0, 10, 12])
        one, other = last(stage, "balls"), last(stage, "fire")
        check(f"{stage} ends with the same bits", all(same(one[key], other[key]) for key in KEYS))


def bereft():
    """One dies: the other must not wait for ever."""
    codes = run("pretrain", "bereft", at=5, harm=kill_second)
    spent = time.monotonic() - float(Path("died").read_text())
    said = Path("bereft-pretrain-0.log").read_text()
    check(f"rank 0 ended {codes} after {spent:.0f} s", codes[1] == -signal.SIGKILL and codes[0] > 0 and spent < 60)
    cause = [line for line in said.splitlines() if "onnection" in line]
    check(f"it says why: {cause[-1:]}", bool(cause))


def forsaken():
    """One is stopped, which closes no connection: the other ends; while one that is slow is waited for."""
    stopped_processes.BEAT, stopped_processes.SILENCE = 1.0, 6.0
    codes = run("pretrain", "slow", "--trainer.max_steps=8", at=5, harm=slow_second)
    check("a slow process is waited for", codes == [0, 0])
    for stopped in (1, 0):
        codes = run("pretrain", f"forsaken{stopped}", at=5, harm=stop(stopped))
        log = Path(f"forsaken{stopped}-pretrain-{1 - stopped}.log")
        spent = log.stat().st_mtime - Path("stopped").stat().st_mtime
        truth = codes[stopped] == -signal.SIGKILL and codes[1 - stopped] == 1 and spent < 20
        check(f"{stopped} is stopped, the other one ended {codes} after {spent:.0f} s", truth)
        cause = [line for line in log.read_text().splitlines() if f"process {stopped}" in line and "heard of" in line]
        check(f"it says why: {cause[-1:]}", bool(cause))


def spoilt():
    """With gathered and clipped gradients: no process takes the step, and all go on together."""
    more = ("--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.1", "--trainer.max_steps=8")
    end = StepGuard.on_train_end

    def on_train_end(self, trainer, module):
        end(self, trainer, module)
        torch.save({"weights": module.state_dict(), "skipped": self.skipped}, f"spoilt-{trainer.global_rank}.pt")

    StepGuard.on_train_end = on_train_end
    check(
        "a spoilt batch does not end the training", run("pretrain", "spoilt", *more, at=3, harm=spoil_second) == [0, 0]
    )
    one, other = (torch.load(f"spoilt-{rank}.pt", weights_only=True) for rank in range(WORLD))
    check("one step was left out by both", one["skipped"] == other["skipped"] == 1)
    check("weights are finite", all(value.isfinite().all() for value in one["weights"].values()))
    check("both have the same", same(one["weights"], other["weights"]))


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    os.chdir(sys.argv[1])
    os.environ[TRUST] = "tests.balls"
    write(".", tuple(STAGES), subjects=98, steps=26)
    resumed()
    bereft()
    forsaken()
    spoilt()
