"""Hold ``ParityHVAE`` against the public code it equals: the same weights, noise and images give the same numbers.

    .venv/bin/python -m benchmarks.parity --against PATH

PATH is a checkout of biomedia-mira/causal-gen, which is imported and not changed. Weights that start at zero are drawn,
too. Compared are the negative ELBO and the gradient of all weights together, as relative errors; exit status 1 if one
exceeds 1e-5. Conditioning dropout, which it has in training on Morpho-MNIST with the conditional prior, is off.
``--time ROUNDS`` also times forward and backward passes of both, in alternating rounds on one thread.
"""

import argparse
import math
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.clock import alternate
from benchmarks.public import PARENTS, imported, settings
from segcft.hvae.causal_gen import PRESETS, ParityHVAE, Preset
from segcft.hvae.causal_gen_weights import load_public_weights

LIMIT = 1e-5


def drawn(loc: Tensor, logscale: Tensor) -> Tensor:
    """Its ``sample_gaussian`` with noise in the order in which ours is drawn."""
    count, channels, *size = loc.shape
    return loc + logscale.exp() * torch.randn(count, *size, channels).movedim(-1, 1)


class Case(NamedTuple):
    """One comparison: preset, options there, images a batch."""

    preset: Preset
    options: dict[str, Any]
    batch: int


CASES = (
    Case("morphomnist32", {}, 8),
    Case("morphomnist32", {"cond_prior": True}, 8),
    Case("mimic192", {}, 1),
    Case("mimic192", {"cond_prior": True}, 1),
)


class Pair(NamedTuple):
    """Both models with the same weights, and what they read."""

    ours: ParityHVAE
    theirs: nn.Module
    image: Tensor
    pa: Tensor

    def run(self, which: str) -> Tensor:
        """Negative ELBO in nats per dimension, its gradient in the weights; noise is the same every time."""
        torch.manual_seed(1)
        if which == "ours":
            loss = self.ours.abduct(self.image, self.pa).elbo.nelbo().mean()
        else:
            tiled = self.pa[..., None, None].expand(*self.pa.shape, *self.image.shape[2:])
            with mock.patch("vae.sample_gaussian", drawn):
                loss = self.theirs(self.image, tiled.contiguous())["elbo"]
        model = getattr(self, which)
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()


def pair(case: Case, checkout: Path, awake: float = 0.5) -> Pair:
    """Build both; ``awake`` is the deviation of weights that start at zero, over the root of their inputs."""
    torch.manual_seed(0)
    theirs = imported(checkout, "vae").HVAE(settings(checkout, case.preset, **case.options)).eval()
    for name, weight in theirs.named_parameters():
        if not weight.any() or "bias" in name:
            nn.init.normal_(weight, std=0.05 if weight.dim() == 1 else awake / math.sqrt(weight[0].numel()))
    conditional = bool(case.options.get("cond_prior"))
    ours = ParityHVAE(2, 1, PARENTS[case.preset], case.preset, conditional_prior=conditional)
    load_public_weights(ours, theirs.state_dict())
    size = PRESETS[case.preset][0].size(2)
    image = torch.randint(256, (case.batch, 1, *size)).float() / 127.5 - 1
    image[..., : size[0] // 3, :] = -1  # a margin: the first bin takes a tail
    return Pair(ours, theirs, image, torch.randn(case.batch, PARENTS[case.preset]))


def gradients(both: Pair) -> tuple[Tensor, Tensor]:
    """All gradients in one vector each, theirs in our order; weights without one count 0."""
    translated = type(both.ours)(
        2, 1, both.pa.shape[1], both.ours.stages, conditional_prior=both.ours.conditional_prior
    )
    slopes = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in both.theirs.named_parameters()
    }
    load_public_weights(translated, slopes)
    mine = [torch.zeros_like(w) if w.grad is None else w.grad for w in both.ours.parameters()]
    yours = list(translated.parameters())
    return torch.cat([w.flatten() for w in mine]), torch.cat([w.detach().flatten() for w in yours])


def compare(both: Pair) -> tuple[float, float, float]:
    """NELBO, and the relative errors of the NELBO and of the gradient."""
    mine, yours = both.run("ours"), both.run("theirs")
    ours, theirs = gradients(both)
    return float(yours), float((mine - yours).abs() / yours.abs()), float((ours - theirs).norm() / theirs.norm())


def median_seconds(both: Pair, rounds: int) -> dict[str, float]:
    """CPU seconds of a forward and backward pass, in alternating rounds after one to warm up."""
    steps = {which: partial(both.run, which) for which in ("theirs", "ours")}
    spent = alternate(steps, rounds, torch.device("cpu"))
    return {which: statistics.median(once.cpu for once in each) for which, each in spent.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="checkout of biomedia-mira/causal-gen")
    parser.add_argument("--time", type=int, default=0, metavar="ROUNDS", help="rounds of timing; 0 for none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| preset | prior | weights | batch | NELBO | error of it | error of the gradient |")
    print("|---|---|---|---|---|---|---|")
    failed, timings = 0, []
    for case in CASES:
        both = pair(case, options.against.expanduser())
        nelbo, *errors = compare(both)
        failed += not max(errors) <= LIMIT
        prior = "conditional" if both.ours.conditional_prior else "exogenous"
        count = sum(weight.numel() for weight in both.ours.parameters())
        shown = " | ".join(f"{error:.1e}" for error in errors)
        print(f"| {case.preset} | {prior} | {count:,} | {case.batch} | {nelbo:.6f} | {shown} |", flush=True)
        if options.time:
            timings.append((case.preset, prior, case.batch, median_seconds(both, options.time)))
    for preset, prior, batch, seconds in timings:
        ratio = seconds["theirs"] / seconds["ours"]
        print(f"{preset}, {prior}, batch {batch}: {seconds['theirs']:.3f} / {seconds['ours']:.3f} CPU s = {ratio:.2f}")
    print(f"{failed} of {len(CASES)} exceed {LIMIT:g}" if failed else f"all within {LIMIT:g}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
