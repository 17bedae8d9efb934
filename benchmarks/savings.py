"""What each saving is worth: a step with all of them, and with one of them undone, in turn.

    .venv/bin/python -m benchmarks.savings --rounds 9

The maths is the same with and without, each in a process of its own. CPU seconds of one thread; printed are medians,
and how much longer the step takes without the saving, over paired rounds.
"""

import argparse
import ctypes
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from benchmarks.clock import Side, Step, alternate, ratio
from benchmarks.paths import PRESETS, Preset, Setting, build
from segcft.cli import cpu
from segcft.hvae.causal_gen import ParityHVAE
from segcft.hvae.hvae import HVAE
from segcft.hvae.latents import Abduction, Normal
from segcft.hvae.likelihoods import Pixels
from segcft.tasks.base import Optimisation

CPU, FOR_GOOD = torch.device("cpu"), ExitStack()


def divergence(one: Normal, other: Normal) -> Tensor:
    """The KL as it is written down, its gradient left to autograd."""
    variances = (2 * one.log_std).exp(), (2 * other.log_std).exp()
    each = other.log_std - one.log_std + (variances[0] + (one.mean - other.mean) ** 2) / (2 * variances[1]) - 0.5
    return each.flatten(1).sum(1)


def sample(normal: Normal, temperature: float) -> Tensor:
    """As it is written down, its gradient left to autograd."""
    return normal.mean + temperature * normal.log_std.exp() * torch.randn_like(normal.mean)


def looks(model: ParityHVAE, features: Tensor, depth: int) -> list[Tensor]:
    """Every posterior convolves the encoder's activation itself."""
    return [block.look(F.gelu(features)) for block in model._blocks(depth)]  # type: ignore[operator,union-attr]


def optimiser(choice: Optimisation, learning: Any) -> torch.optim.AdamW:
    """One weight after the other."""
    return torch.optim.AdamW(learning, lr=choice.lr, weight_decay=choice.weight_decay, foreach=False)


def average(model: nn.Module, decay: float) -> AveragedModel:
    """One weight after the other."""
    return AveragedModel(model, avg_fn=get_ema_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def decode(model: HVAE, abduction: Abduction, pa: Tensor) -> Pixels:
    """The whole decoder again, the prior included."""
    return model._decode(abduction.latents, pa)


def abduct(abduction: Callable[..., Abduction]) -> Callable[..., Abduction]:
    """With the bound, whether somebody wants it or not."""

    def both(*given: Any) -> Abduction:
        found = abduction(*given)
        _ = found.elbo
        return found

    return both


@contextmanager
def denormal() -> Generator[None]:
    """Numbers below 1e-38 are computed with."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(True)


@contextmanager
def given_back() -> Generator[None]:
    """Freed memory goes back to the system, as glibc has it by itself once it has seen blocks of 4 MiB."""
    ctypes.CDLL(None).mallopt(cpu.TRIM, 2**23)
    yield
    cpu.hasten()


def autograd() -> AbstractContextManager[Any]:
    """Convolutions and their activations are left to torch."""
    return patch.multiple("segcft.hvae.convolutions", LARGE=2**62, _is_product=lambda *_: False)


class Saving(NamedTuple):
    """One of them.

    Attributes:
        what: In words.
        preset: Shapes of ``benchmarks.speed``.
        path: Of these.
        undo: While it is entered, it is not done; None for the memory format.
    """

    what: str
    preset: str
    path: str
    undo: Callable[[], AbstractContextManager[Any]] | None


SMALL = "morphomnist32"
SAVINGS = [
    Saving("channels last", SMALL, "train", None),
    Saving("channels last", "chest64", "train", None),
    Saving("denormal numbers count as 0", "chest192", "train", denormal),
    Saving("freed memory is kept", SMALL, "train", given_back),
    Saving("freed memory is kept", "chest64", "train", given_back),
    Saving("freed memory is kept", "chest192", "train", given_back),
    Saving("chains written out", SMALL, "train", autograd),
    Saving("chains written out", "mimic192", "train", autograd),
    Saving("AdamW in one call", SMALL, "train", lambda: patch.object(Optimisation, "optimiser", optimiser)),
    Saving("average in one call, looked up once", SMALL, "train", lambda: patch("benchmarks.paths.Average", average)),
    Saving("KL with its own gradient", SMALL, "train", lambda: patch.object(Normal, "kl", divergence)),
    Saving("draws with their own gradient and layout", SMALL, "train", lambda: patch.object(Normal, "sample", sample)),
    Saving("one look for all posteriors", SMALL, "train", lambda: patch.object(ParityHVAE, "_look", looks)),
    Saving("the bound only if wanted", SMALL, "generate", lambda: patch.object(HVAE, "abduct", abduct(HVAE.abduct))),
    Saving("the prior asked once", SMALL, "sweep", lambda: patch.object(HVAE, "_again", decode)),
    Saving("the prior asked once", "chest64", "sweep", lambda: patch.object(HVAE, "_again", decode)),
]


def made(number: int, preset: Preset, done: bool) -> Step:
    """A step with one of ``SAVINGS``, done, or undone for as long as the process lives."""
    saving = SAVINGS[number]
    if not done and saving.undo is not None:
        FOR_GOOD.enter_context(saving.undo())
    return build(preset, Setting(channels_last=done or saving.undo is not None), saving.path, CPU)


def measure(number: int, rounds: int) -> tuple[list[float], list[float]]:
    """CPU seconds of steps with and without one of ``SAVINGS``, in turn."""
    preset = PRESETS[SAVINGS[number].preset]
    sides = {word: Side(made, (number, preset, word == "with")) for word in ("with", "without")}
    spent = alternate(sides, rounds, CPU)
    for side in sides.values():
        side.close()
    with_it, without = ([once.cpu for once in each] for each in spent.values())
    return with_it, without


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(given)
    print("| saving | shapes | step | CPU s with (range) | without takes longer by (range) |\n|---|---|---|---|---|")
    for number, saving in enumerate(SAVINGS):
        done, undone = measure(number, options.rounds)
        middle, low, high, _ = ratio(undone, done)
        cells = f"{sorted(done)[len(done) // 2]:.3g} ({min(done):.3g}-{max(done):.3g})"
        more = f"{middle - 1:.0%} ({low - 1:.0%} to {high - 1:.0%})"
        print(f"| {saving.what} | {saving.preset} | {saving.path} | {cells} | {more} |", flush=True)


if __name__ == "__main__":
    main()
