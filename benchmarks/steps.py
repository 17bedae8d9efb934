"""Time the hot paths on this machine: HVAE step, CFT step, counterfactual generation, reading phantoms.

    .venv/bin/python benchmarks/steps.py --rounds 5 --threads 1

Prints a table of CPU and wall seconds per image: medians and spread over alternating rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from data_modules.chest_phantom import ChestPhantom
from segcft.counterfactual import CounterfactualModel
from segcft.guidance import SegmentorGuidance
from segcft.hvae import HVAE, Stage
from segcft.interventions import sample_do
from segcft.judges import Segmentor
from segcft.likelihoods import Gaussian
from segcft.losses import guidance_loss, minimality_loss

STAGES = [Stage(64, 8, 0), Stage(32, 32), Stage(16, 48), Stage(8, 64), Stage(4, 64, 3, 8)]
UNET = {"channels": [16, 32, 64, 96], "strides": [2, 2, 2], "norm": "batch", "act": "relu"}


def paths(batch_size: int) -> dict[str, Callable[[], None]]:
    """Name -> one step over ``batch_size`` images."""
    data = ChestPhantom(subjects={"train": 4 * batch_size}, batch_size=batch_size)
    about, dataset = data.description, data.dataset("train")
    batch = dataset.read(torch.arange(batch_size))
    image = batch["image"].to(memory_format=torch.channels_last)
    model = CounterfactualModel(about, HVAE(2, 1, about.parents.dim, STAGES, Gaussian(scale=0.1)))
    model.to(memory_format=torch.channels_last)
    guidance = SegmentorGuidance(Segmentor(about, "monai.UNet", UNET))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)

    def descend(loss: torch.Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def pretrain() -> None:
        descend(model.abduct(image, batch).elbo.nelbo().mean())

    def finetune() -> None:
        answer = model(image, batch, sample_do(batch, guidance.names))
        loss = guidance_loss(guidance(answer.image), answer.values, model.parents, {})
        descend(loss + minimality_loss(answer.image, image) + answer.abduction.elbo.nelbo().mean())

    @torch.no_grad()
    def generate() -> None:
        model(image, batch, sample_do(batch, guidance.names), temperature=0.0)

    def read() -> None:
        dataset.read(torch.randperm(len(dataset))[:batch_size])

    return {"hvae step": pretrain, "cft step": finetune, "counterfactual": generate, "read batch": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = paths(options.batch_size)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(options.rounds + 1):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if turn:  # the first round warms up
                spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    print(f"torch {torch.__version__}, {options.threads} threads, batch {options.batch_size}, {options.rounds} rounds")
    print(f"{'path':>16} {'CPU ms/image':>13} {'spread':>15} {'images/CPU s':>13} {'images/s':>9}")
    for name, times in spent.items():
        cpu = [1000 * c / options.batch_size for c, _ in times]
        wall = statistics.median(w for _, w in times) / options.batch_size
        middle = statistics.median(cpu)
        spread = f"{min(cpu):.3f}-{max(cpu):.3f}"
        print(f"{name:>16} {middle:>13.3f} {spread:>15} {1000 / middle:>13.0f} {1 / wall:>9.0f}")


if __name__ == "__main__":
    main()
