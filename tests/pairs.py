"""Train every task on the same global batches, in however many processes there are, and keep what came out.

    torchrun --nproc_per_node=2 tests/pairs.py FOLDER

Chance is taken away where it depends on who holds which subject: noise is zero, and each subject is asked for a tenth
more of its own value. Plain SGD, because Adam makes much of differences in gradients that are next to zero.
"""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.apply_func import apply_to_collection
from torch.distributed.tensor import DTensor

from segcft.callbacks.ema import EMA
from segcft.callbacks.training_health import StepGuard
from segcft.causal import interventions
from segcft.cli.launch import settle, told
from segcft.core import distributed
from segcft.counterfactual.prediction import Transported
from segcft.guidance.guidance import CoTrainedGuidance, NoGuidance, RegressorGuidance, SegmentorGuidance
from segcft.hvae import latents
from segcft.hvae.hvae import HVAE
from segcft.hvae.likelihoods import Gaussian
from segcft.hvae.stages import Stage
from segcft.tasks import (
    CounterfactualFineTuning,
    PretrainHVAE,
    Task,
    TrainAttributes,
    TrainRegressor,
    TrainSegmentor,
    base,
)
from tests.balls import Balls

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
SUBJECTS = 29  # 3 batches of 8 and 5 left over; in validation 15 subjects for one process and 14 for the other


class Witness(Callback):
    """Gradients and logged numbers of every step."""

    def __init__(self):
        self.gradients, self.metrics = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer, module, *args):
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")})


def ask(values, names, others=None):
    """Variables in turn by subject, each a tenth more."""
    turn = values["index"] % len(names)
    return {name: torch.where(turn == k, 1.1 * values[name], torch.nan) for k, name in enumerate(names)}


def hvae(spatial_dims, channels, parents_dim, frame):
    stages = [Stage(8, 0), Stage(8, 1), Stage(8, 1, 2)]
    return HVAE(spatial_dims, channels, parents_dim, stages, Gaussian(scale=0.1), frame=frame)


def tasks(data, folder):
    """Name -> builder, in an order in which each finds the checkpoints that it needs."""
    judge, pretrained = f"{folder}/segmentor.ckpt", f"{folder}/pretrain.ckpt"
    about = data.description
    unet = {"channels": [4, 8], "strides": [2], "norm": "instance"}

    def tuned(guidance, **more):
        return lambda: CounterfactualFineTuning(about, pretrained, guidance(), **more)

    return {
        "attributes": lambda: TrainAttributes(about, {"left_size": ["age"]}),
        "segmentor": lambda: TrainSegmentor(about, "monai.UNet", unet),
        "regressor": lambda: TrainRegressor(about, (4, 8)),
        "pretrain": lambda: PretrainHVAE(about, hvae, frame=data.frame),
        "nocft": tuned(NoGuidance),
        "regcft": tuned(lambda: RegressorGuidance(f"{folder}/regressor.ckpt")),
        "segcft": tuned(lambda: SegmentorGuidance(judge, shape=True), prediction=Transported(), soft=True),
        "cotrained": tuned(lambda: CoTrainedGuidance(judge)),
    }


def train(name, build, data, folder, strategy):
    """Two steps of two batches each; rank 0 keeps the checkpoint."""
    seed_everything(0)
    task, witness = build(), Witness()
    settings = {"accelerator": "cpu", "devices": 1, "strategy": strategy, **told(os.environ)}
    trainer = Trainer(max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=1.0, logger=False, log_every_n_steps=1,
                      callbacks=[witness, StepGuard(), EMA(decay=0.5)], num_sanity_val_steps=0,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      use_distributed_sampler=False, **settings)  # fmt: skip
    settle(trainer, os.environ)
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint(f"{folder}/{name}.ckpt")
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
    found = {"gradients": witness.gradients, "metrics": [*witness.metrics, metrics], "weights": task.state_dict()}
    sizes = [[part.to_local().numel(), part.numel()] for part in task.parameters() if isinstance(part, DTensor)]
    return {**apply_to_collection(found, DTensor, lambda part: part.full_tensor()), "sizes": sizes}


def main(folder):
    """Everything into FOLDER/STRATEGY.RANK.pt; several processes train first with whole weights, then with parts."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Task.configure_optimizers = lambda self: torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)
    interventions.sample_do = base.fixed_do = ask
    drawn = torch.randn  # images are drawn by their own generators
    torch.randn = lambda *shape, **more: drawn(*shape, **more) if "generator" in more else torch.zeros(*shape, **more)
    torch.randn_like = torch.zeros_like
    assert latents.torch.randn is torch.randn
    distributed.agreed = lambda seed: 4711  # one order of the subjects, however many processes draw it
    data = Balls(subjects=SUBJECTS, batch_size=8 // WORLD)
    for strategy in ("ddp", "sharded") if WORLD > 1 else ("auto",):
        found = {name: train(name, build, data, folder, strategy) for name, build in tasks(data, folder).items()}
        torch.save(found, f"{folder}/{strategy}.{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
