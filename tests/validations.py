"""Validate every task with 1, 2 and 3 processes, forked, that share few subjects unevenly: the metrics are the same.

python tests/validations.py FOLDER
"""

import os
import socket
import sys

import torch
from lightning.pytorch import Trainer, seed_everything

from segcft.callbacks.judge_overfitting import GuideGap
from segcft.cli.launch import settle, told
from segcft.core import checkpoints
from segcft.guidance.judges import SegmentationModel
from tests.balls import Balls
from tests.pairs import tasks

SUBJECTS = (17, 4)  # in batches of 4, the last ones of 1 to 5
WORLDS = (1, 2, 3)


def trainer(callbacks=()):
    made = Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
                   enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
                   callbacks=list(callbacks), limit_val_batches=1.0,
                   **({"devices": 1} | told(os.environ)))  # fmt: skip
    settle(made, os.environ)
    return made


def fork(world, work):
    """``work(rank)`` in each of ``world`` processes, told as torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            code = 1
            try:
                told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world,
                        "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                        "TORCHELASTIC_RUN_ID": "validations"}  # fmt: skip
                os.environ.update({name: str(value) for name, value in told.items()} if world > 1 else {})
                work(rank)
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world


def train(folder):
    """A few steps of every task, each finding the checkpoints that it needs."""
    data = Balls(subjects=24, batch_size=8)
    for name, build in tasks(data, folder).items():
        seed_everything(0, verbose=False)
        made = trainer()
        made.fit(build(), datamodule=data)
        made.save_checkpoint(f"{folder}/{name}.ckpt")


def validate(folder, world, rank):
    found = {}
    for subjects in SUBJECTS:
        data = Balls(subjects=subjects, batch_size=4)
        for name, build in tasks(data, folder).items():
            evaluator = GuideGap(f"{folder}/segmentor.ckpt")
            evaluator.batches = 100
            made = trainer([evaluator])
            made.validate(build(), data, ckpt_path=f"{folder}/{name}.ckpt", weights_only=True, verbose=False)
            found[f"{name}, {subjects}"] = {key: float(value) for key, value in made.callback_metrics.items()}
    torch.save(found, f"{folder}/{world}.{rank}.pt")


def main(folder):
    os.makedirs(folder, exist_ok=True)
    fork(1, lambda rank: train(folder))
    checkpoints.load(f"{folder}/segmentor.ckpt", SegmentationModel)
    for world in WORLDS:
        fork(world, lambda rank, world=world: validate(folder, world, rank))
    alone = torch.load(f"{folder}/1.0.pt")
    wrong = []
    for world in WORLDS[1:]:
        for rank in range(world):
            for task, metrics in torch.load(f"{folder}/{world}.{rank}.pt").items():
                for name, value in metrics.items():
                    true = alone[task][name]
                    if not abs(value - true) <= 1e-5 * max(1.0, abs(true)):
                        wrong.append(f"{world} processes, {task}: {name} is {value}, with one {true}")
                assert metrics.keys() == alone[task].keys(), task
    print(f"{sum(map(len, alone.values()))} metrics compared; wrong: {len(wrong)}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
