"""Quality for cost on Morpho-MNIST: the bound and the answers of our default HVAE beside those of the public one.

    .venv/bin/python -m benchmarks.quality --against PATH --data data/morphomnist --seeds 0 1 2

PATH is a checkout of biomedia-mira/causal-gen, which is imported and not changed: its ``morphomnist`` preset with its
own optimiser, schedule and average; without it, ours runs alone. Ours is ``experiments/morphomnist/pretrain.yaml`` with
the likelihood of 8-bit levels. Both see the same images in the same order and take their steps in turn, so that what
disturbs the machine disturbs both; what counts are CPU seconds of training alone. While they train, weights averaged in
one way are judged on the validation split; in the end on the test split, and with them counterfactuals under another
subject's thickness or intensity. Thick digits are bright ones in these data, and a regressor that learns from them
takes one for the other: so intensity is measured, and thickness read off by a regressor that guided neither and saw
every digit as bright as another. Ours is judged at equal quality, too: as it was when its bound in validation first was
as good as the public one's in the end. Writes RESULTS.json, .md and .png.
"""

import argparse
import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import yaml
from torch import Tensor, nn

from benchmarks.paths import EXPERIMENTS
from benchmarks.public import Public
from benchmarks.speed import THEIRS, markdown
from data_modules.common.data_module import ImageDataset
from data_modules.morphomnist import MorphoMNIST
from segcft.callbacks.ema import Average
from segcft.counterfactual.prediction import Standard
from segcft.guidance.judges import Regressor
from segcft.hvae.hvae import HVAE
from segcft.hvae.likelihoods import DiscretisedGaussian
from segcft.hvae.stages import Stage
from segcft.tasks import PretrainHVAE
from segcft.tasks.base import Batch, Optimisation
from segcft.variables.variables import DataDescription

OURS = "segcft"
EQUAL = f"{OURS}, at the same bound"
DECAY = 0.99  # of both averages
ASKED = ("thickness", "intensity")
RANGES = {"thickness": (0.87598526, 6.255515), "intensity": (66.601204, 254.90317)}  # as its code scales them


class ValidationPoint(NamedTuple):
    """CPU seconds of training until a step, and the NELBO in validation after it."""

    step: int
    seconds: float
    nelbo: float


class TrainedModel(ABC):
    """A model in training."""

    def __init__(self) -> None:
        self.seconds, self.curve = 0.0, list[ValidationPoint]()

    def look(self, step: int, val: ImageDataset) -> None:
        """Add to its curve."""
        self.curve.append(ValidationPoint(step, self.seconds, judged(self, val)))

    def learn(self, batch: Batch) -> None:
        """One step, timed."""
        began = time.process_time()
        self._step(batch)
        self.seconds += time.process_time() - began

    @abstractmethod
    def _step(self, batch: Batch) -> None:
        """One step."""

    @property
    @abstractmethod
    def weights(self) -> int:
        """How many it has."""

    @abstractmethod
    def nelbo(self, batch: Batch) -> float:
        """Mean over images, nats per pixel, averaged weights."""

    @abstractmethod
    def answer(self, batch: Batch, do: Batch) -> Tensor:
        """Counterfactual images (B, 1, H, W), averaged weights."""


class Theirs(TrainedModel):
    """The public code's ``morphomnist`` preset.

    Args:
        checkout: Where it lies.
        batch: Of the size that it is trained with.
    """

    def __init__(self, checkout: Path, batch: Batch) -> None:
        super().__init__()
        self.public = Public(checkout, "morphomnist32", batch["image"], torch.device("cpu"))
        self._train, self._mean = self.public.train(), Average(self.public.hvae, DECAY)

    def learn(self, batch: Batch) -> None:
        """One step, timed with its own average; judged is ours of its weights, which does better."""
        super().learn(batch)
        self._mean.update_parameters(self.public.hvae)

    @property
    def weights(self) -> int:
        """See ``TrainedModel``."""
        return sum(weight.numel() for weight in self.public.hvae.parameters())

    def _step(self, batch: Batch) -> None:
        self.public.image, self.public.pa = batch["image"], self._parents(batch)
        self._train()

    @torch.no_grad()
    def nelbo(self, batch: Batch) -> float:
        """See ``TrainedModel``."""
        return float(self._average(batch["image"], self._tiled(batch), beta=1.0)["elbo"])

    @torch.no_grad()
    def answer(self, batch: Batch, do: Batch) -> Tensor:
        """See ``TrainedModel``; latents are drawn, as there."""
        image, average = batch["image"], self._average
        latents = average.abduct(image, parents=self._tiled(batch))
        loc, scale = average.forward_latents(latents, parents=self._tiled(batch))
        cf_loc, cf_scale = average.forward_latents(latents, parents=self._tiled({**batch, **do}))
        return torch.clamp(cf_loc + cf_scale * (image - loc) / scale.clamp(min=1e-12), min=-1, max=1)

    @property
    def _average(self) -> Any:
        return self._mean.module

    def _tiled(self, batch: Batch) -> Tensor:
        return self.public.tiled(self._parents(batch))

    def _parents(self, batch: Batch) -> Tensor:
        scaled = [2 * (batch[name] - low) / (high - low) - 1 for name, (low, high) in RANGES.items()]
        digit = nn.functional.one_hot(batch["digit"].long(), 10)
        return torch.cat([torch.stack(scaled, dim=1), digit], dim=1)


class Ours(TrainedModel):
    """Stages, rate, average and descent of beta of ``experiments/morphomnist/pretrain.yaml``.

    Args:
        about: The data.
        steps: Of the whole training, by which the rate and beta fall.
    """

    def __init__(self, about: DataDescription, steps: int) -> None:
        super().__init__()
        settings = yaml.safe_load((EXPERIMENTS / "morphomnist/pretrain.yaml").read_text())
        model, trainer = settings["model"]["init_args"], settings["trainer"]
        shape = model["hvae"]["init_args"]
        stages = [Stage(**stage) for stage in shape["stages"]]
        hvae = partial(HVAE, **{**shape, "stages": stages, "likelihood": DiscretisedGaussian()})
        choice = Optimisation(**model["optimisation"])
        beta = {name: value for name, value in model.items() if name.startswith("beta")}
        self.task = PretrainHVAE(about, hvae, Standard(), optimisation=choice, frame=(32, 32), **beta)
        self.task.to(memory_format=torch.channels_last)
        self.learning, self.clip = list(self.task.model.parameters()), trainer["gradient_clip_val"]
        self.optimiser = choice.optimiser(self.learning)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: choice.factor(step, steps))
        self.average, self.steps, self.taken = Average(self.task.model, DECAY), steps, 0
        self.kept: dict[ValidationPoint, dict[str, Tensor]] = {}

    @property
    def weights(self) -> int:
        """See ``TrainedModel``."""
        return sum(weight.numel() for weight in self.learning)

    def _step(self, batch: Batch) -> None:
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        beta = self.task.beta_at(self.taken, self.steps)
        self.task.model.abduct(image, batch).elbo.nelbo(beta).mean().backward()
        nn.utils.clip_grad_norm_(self.learning, self.clip, foreach=True)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update_parameters(self.task.model)
        self.taken += 1

    def look(self, step: int, val: ImageDataset) -> None:
        """See ``TrainedModel``; the weights are kept, to come back to."""
        super().look(step, val)
        self.kept[self.curve[-1]] = {name: each.clone() for name, each in self.average.module.state_dict().items()}

    @torch.no_grad()
    def nelbo(self, batch: Batch) -> float:
        """See ``TrainedModel``."""
        return float(self.average.module.abduct(batch["image"], batch).elbo.nelbo().mean())

    @torch.no_grad()
    def answer(self, batch: Batch, do: Batch) -> Tensor:
        """See ``TrainedModel``; latents are means, as users are answered."""
        image: Tensor = self.average.module(batch["image"], batch, do, temperature=0.0).image
        return image.clamp(-1, 1)


def batches(dataset: ImageDataset, size: int, seed: int) -> Iterator[Batch]:
    """Shuffled, without an end; the last of a pass is left out where it is smaller.

    Raises:
        ValueError: If there are fewer images than ``size``.
    """
    if len(dataset) < size:
        raise ValueError(f"{len(dataset)} training images are no batch of {size}")
    order = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(dataset), generator=order).split(size):
            if len(chosen) == size:
                yield dataset.read(chosen)


def pieces(dataset: ImageDataset, size: int = 250) -> Iterator[Batch]:
    """All of a split, in order."""
    for chosen in torch.arange(len(dataset)).split(size):
        yield dataset.read(chosen)


def judged(trained: TrainedModel, dataset: ImageDataset) -> float:
    """Mean NELBO of a split, nats per pixel."""
    found = [(trained.nelbo(batch), len(batch["index"])) for batch in pieces(dataset)]
    return sum(value * count for value, count in found) / sum(count for _, count in found)


def as_bright_as(batch: Batch, intensity: Tensor) -> Batch:
    """The same digits of other intensities (B,): they were made by a factor on the levels."""
    factor = (intensity / batch["intensity"]).view(-1, 1, 1, 1)
    return {**batch, "image": ((batch["image"] + 1) * factor - 1).clamp(-1, 1), "intensity": intensity}


def brightness(image: Tensor) -> Tensor:
    """Intensity of digits (B, 1, H, W), (B,): the median of all levels that are at least half the highest one."""
    levels = 127.5 * (image + 1).flatten(1)
    return levels.where(levels >= levels.amax(1, keepdim=True) / 2, torch.nan).nanmedian(1).values


def reader(data: MorphoMNIST, steps: int, size: int) -> Regressor:
    """Reads thickness off an image, however bright; learns from images that are as they were, wherever they lie."""
    judge = Regressor(data.description)
    optimiser = Optimisation(lr=2e-3).optimiser(judge.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    parents = data.description.parents
    for _, batch in zip(range(steps), batches(data.dataset("train"), size, seed=1), strict=False):
        seen = as_bright_as(batch, batch["intensity"][torch.randperm(size)])
        wanted = parents.standardise(seen, judge.names)
        nn.functional.smooth_l1_loss(judge(seen["image"]), wanted, beta=0.1).backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
    return judge.eval()


@torch.no_grad()
def errors(trained: TrainedModel | None, data: MorphoMNIST, judge: Regressor, seed: int) -> dict[str, float]:
    """Mean distance of what the answers show from what was asked, in % of the population's deviation.

    Args:
        trained: The model that answers; None for the error of measurement itself, in digits as bright as others.
        data: Its test split is asked for the value of another subject.
        judge: Who reads thickness.
        seed: Decides whose.
    """
    dataset, parents = data.dataset("test"), data.description.parents
    others = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    found = {}
    for name in ASKED:
        apart = []
        for batch in pieces(dataset):
            other = {each: dataset.attributes[each][others[batch["index"]]] for each in ASKED}
            if trained is None:
                seen = as_bright_as(batch, other["intensity"])
            else:
                do = {name: other[name]}
                seen = {**do, "image": trained.answer(batch, do)}
            image = seen["image"]
            shown = brightness(image) if name == "intensity" else judge.measure(image)[name]
            apart.append((shown - seen[name]).abs())
        found[name] = 100 * float(torch.cat(apart).mean()) / parents[name].std
    return found


def race(options: argparse.Namespace, data: MorphoMNIST, judge: Regressor, seed: int) -> dict[str, Any]:
    """Train both with a seed: curves, ends and answers by name."""
    torch.manual_seed(seed)
    about, train, val = data.description, data.dataset("train"), data.dataset("val")
    stream = batches(train, options.batch_size, seed)
    steps = {THEIRS: options.their_steps, OURS: options.our_steps}
    both: dict[str, TrainedModel] = {THEIRS: Theirs(options.against, next(stream))} if options.against else {}
    both[OURS] = ours = Ours(about, options.our_steps)
    for step in range(1, max(steps[name] for name in both) + 1):
        batch = next(stream)
        for name, trained in both.items():
            if step > steps[name]:
                continue
            trained.learn(batch)
            if step % options.every == 0 or step == steps[name]:
                trained.look(step, val)
                last = "step {:4} {:7.1f} CPU s {:.4f}".format(*trained.curve[-1])
                print(f"seed {seed} {name:>10} {last}", flush=True)
    found: dict[str, Any] = {"seed": seed}
    for name, trained in both.items():
        found[name] = {"curve": trained.curve, **judgement(trained, trained.curve[-1], data, judge, seed)}
    if THEIRS not in both:
        return found
    theirs = both[THEIRS].curve[-1]
    equal = next((look for look in ours.curve if look.nelbo <= theirs.nelbo), None)
    found["share"] = None if equal is None else equal.seconds / theirs.seconds
    if equal is not None:
        ours.average.module.load_state_dict(ours.kept[equal])
        found[EQUAL] = judgement(ours, equal, data, judge, seed)
    return found


def judgement(
    trained: TrainedModel, at: ValidationPoint, data: MorphoMNIST, judge: Regressor, seed: int
) -> dict[str, Any]:
    """What it is, has cost at a look, and is worth on the test split."""
    nelbo, answers = judged(trained, data.dataset("test")), errors(trained, data, judge, seed)
    return {"weights": trained.weights, "steps": at.step, "seconds": at.seconds, "nelbo": nelbo, **answers}


def table(found: list[dict[str, Any]], floor: dict[str, float]) -> str:
    """Markdown, a row a model: medians and ranges over the seeds."""
    head = ["model", "weights", "steps", "CPU s", "NELBO, nats/pixel", *(f"{name}, MAE % of SD" for name in ASKED)]
    rows = []
    for name in (name for name in (THEIRS, EQUAL, OURS) if all(name in one for one in found)):
        cells = [f"{found[0][name]['weights']:,}"]
        for key, form in (("steps", ".0f"), ("seconds", ".0f"), ("nelbo", ".4f"), *((asked, ".1f") for asked in ASKED)):
            each = sorted(one[name][key] for one in found)
            spread = f" ({each[0]:{form}}-{each[-1]:{form}})" if each[0] < each[-1] else ""
            cells.append(f"{statistics.median(each):{form}}{spread}")
        rows.append([name, *cells])
    rows.append(["measurement itself", "", "", "", "", *(f"{floor[name]:.1f}" for name in ASKED)])
    if THEIRS not in found[0]:
        return markdown(head, rows)
    shares = [one["share"] for one in found]
    reached = "not by every seed" if None in shares else ", ".join(f"{share:.3f}" for share in shares)
    return f"{markdown(head, rows)}\n\nShare of its CPU seconds after which {OURS} is as good on validation: {reached}"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
    for colour, name in ((colour, name) for colour, name in (("0.45", THEIRS), ("C0", OURS)) if name in found[0]):
        for number, one in enumerate(found):
            _, seconds, values = zip(*one[name]["curve"], strict=True)
            axis.plot(seconds, values, ".-", color=colour, label=None if number else name)
    axis.set(xscale="log", yscale="log", xlabel="CPU seconds of training", ylabel="NELBO on validation, nats/pixel")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="checkout of biomedia-mira/causal-gen")
    parser.add_argument("--data", default="data/morphomnist", help="folder of the IDX files")
    parser.add_argument("--held-out", type=int, default=2000, help="images for validation and test, half each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--their-steps", type=int, default=500)
    parser.add_argument("--our-steps", type=int, default=600)
    parser.add_argument("--judge-steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--every", type=int, default=50, help="steps between looks at the validation split")
    parser.add_argument("--out", type=Path, default=Path("results/quality"), help="RESULTS, without a suffix")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = MorphoMNIST(options.data, augment=True, held_out=options.held_out)
    judge = reader(data, options.judge_steps, 2 * options.batch_size)
    floor, found = errors(None, data, judge, seed=0), []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        found.append(race(options, data, judge, seed))
        options.out.with_suffix(".json").write_text(json.dumps({"judge": floor, "seeds": found}, indent=1))
    options.out.with_suffix(".md").write_text(table(found, floor) + "\n")
    draw(found, options.out.with_suffix(".png"))
    print(table(found, floor))


if __name__ == "__main__":
    main()
