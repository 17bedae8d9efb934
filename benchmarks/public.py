"""The public code of arXiv:2306.15764, imported from a checkout of biomedia-mira/causal-gen and not changed."""

import argparse
import importlib
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.clock import Step

NAMES = {"morphomnist32": "morphomnist", "mimic192": "mimic192"}  # preset here -> there
OPTIONS: dict[str, dict[str, Any]] = {"morphomnist32": {}, "mimic192": {"z_max_res": 96}}
PARENTS = {"morphomnist32": 12, "mimic192": 6}  # length of their vector


def imported(checkout: Path, name: str) -> ModuleType:
    """A module of the checkout's ``src``, or of its ``src/pgm``.

    Raises:
        SystemExit: If there is no such checkout.
    """
    if not (checkout / "src/vae.py").is_file():
        raise SystemExit(f"--against {checkout}: no src/vae.py there; a checkout of causal-gen is needed")
    for folder in (checkout / "src", checkout / "src/pgm"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def settings(checkout: Path, preset: str, **changed: Any) -> Any:
    """Its ``Hparams`` of a preset of ours, other ones as ``changed``."""
    hps, parser = imported(checkout, "hps"), argparse.ArgumentParser()
    hps.add_arguments(parser)
    options = hps.Hparams()
    options.update(vars(parser.parse_args([])))
    options.update(hps.HPARAMS_REGISTRY[NAMES[preset]].__dict__)
    options.update({"hps": NAMES[preset], "context_dim": PARENTS[preset], **OPTIONS[preset], **changed})
    return options


class Public:
    """Its steps over one batch, with its own model, optimiser, average and guards, logging left out.

    Args:
        checkout: Where it lies.
        preset: ``morphomnist32`` or ``mimic192``.
        image: (B, 1, H, W) in [-1, 1].
        device: Where to run.
    """

    def __init__(self, checkout: Path, preset: str, image: Tensor, device: torch.device) -> None:
        self.checkout, self.device, self.options = checkout, device, settings(checkout, preset)
        self.hvae: nn.Module = imported(checkout, "vae").HVAE(self.options).to(device)
        self.image = image.to(device)
        self.pa, self.cf_pa = torch.randn(2, len(image), PARENTS[preset], device=device)

    def train(self) -> Step:
        """As ``trainer.py``: forward, backward, clip, guards, AdamW, schedule, average."""
        choice, utils = self.options, imported(self.checkout, "utils")
        average = utils.EMA(self.hvae, beta=choice.ema_rate, update_after_step=-1).to(self.device)
        optimiser = torch.optim.AdamW(self.hvae.parameters(), lr=choice.lr, weight_decay=choice.wd, betas=choice.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, utils.linear_warmup(choice.lr_warmup_steps))

        def step() -> None:
            self.hvae.train()
            out = self.hvae(self.image, self.tiled(self.pa), beta=1.0)
            out["elbo"].backward()
            norm = nn.utils.clip_grad_norm_(self.hvae.parameters(), choice.grad_clip)
            broken = [torch.isnan(out[term]).sum() for term in ("nll", "kl")]
            if norm < choice.grad_skip and broken[0] == 0 and broken[1] == 0:
                optimiser.step()
                schedule.step()
                average.update()
            self.hvae.zero_grad(set_to_none=True)

        return step

    def generate(self, questions: int) -> Step:
        """Answers: abduct, decode the factual world once and every counterfactual one, carry the pixels' noise."""

        @torch.no_grad()
        def step() -> None:
            pa = self.tiled(self.pa)
            latents = self.hvae.abduct(self.image, parents=pa)
            loc, scale = self.hvae.forward_latents(latents, parents=pa)
            noise = (self.image - loc) / scale.clamp(min=1e-12)
            for _ in range(questions):
                cf_loc, cf_scale = self.hvae.forward_latents(latents, parents=self.tiled(self.cf_pa))
                torch.clamp(cf_loc + cf_scale * noise, min=-1, max=1)

        self.hvae.eval().requires_grad_(False)
        return step

    def finetune(self) -> Step:
        """As ``pgm/train_cf.py`` on Morpho-MNIST, with its own causal model and predictor.

        Raises:
            ImportError: Without pyro-ppl and seaborn, which it imports.
        """
        layers, dscm = imported(self.checkout, "layers"), imported(self.checkout, "dscm")
        changes = {"dataset": "morphomnist", "setup": "sup_aux", "widths": [32, 32], "std_fixed": 0}
        options = settings(self.checkout, "morphomnist32", **changes, lmbda_init=0.0, elbo_constraint=1.0, damping=100)
        causal = imported(self.checkout, "flow_pgm").MorphoMNISTPGM
        model = dscm.DSCM(options, causal(options), causal(options), self.hvae).to(self.device)
        average = imported(self.checkout, "utils").EMA(model, beta=0.999, update_after_step=-1).to(self.device)
        learning = [weight for name, weight in model.named_parameters() if name != "lmbda"]
        optimiser = torch.optim.AdamW(learning, lr=1e-4, weight_decay=options.wd, betas=options.betas)
        ascent = torch.optim.AdamW([model.lmbda], lr=1e-2, weight_decay=0, betas=options.betas, maximize=True)
        batch, bound = self._observed(), layers.TraceStorage_ELBO(num_particles=1)
        model.vae.train()
        model.pgm.eval()
        model.predictor.eval()

        def step() -> None:
            do = {"thickness": batch["thickness"][torch.randperm(len(self.image))]}
            with self._here():
                out = model(dict(batch), do, bound, cf_particles=1)
            optimiser.zero_grad(set_to_none=True)
            ascent.zero_grad(set_to_none=True)
            out["loss"].backward()
            if nn.utils.clip_grad_norm_(model.parameters(), options.grad_clip) < options.grad_skip:
                optimiser.step()
                ascent.step()
                model.lmbda.data.clamp_(min=0)
                average.update()

        return step

    def _observed(self) -> dict[str, Tensor]:
        count = len(self.image)
        thickness, intensity = 1.6 * torch.rand(2, count, 1, device=self.device) - 0.8
        digit = nn.functional.one_hot(torch.arange(count, device=self.device) % 10, 10).float()
        return {"x": self.image, "thickness": thickness, "intensity": intensity, "digit": digit}

    def tiled(self, pa: Tensor) -> Tensor:
        """Parents (B, P) as it reads them: over the whole image."""
        return pa[..., None, None].repeat(1, 1, *self.image.shape[2:])

    def _here(self) -> AbstractContextManager[Any]:
        """It asks for a GPU by name; on a CPU its tensors stay where they are."""
        stay = partial(mock.patch.object, Tensor, "cuda", lambda tensor: tensor)
        return nullcontext() if self.device.type == "cuda" else stay()
