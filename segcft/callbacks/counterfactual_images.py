"""TensorBoard images at every validation: counterfactuals, prior samples, target and measurement, active latents."""

from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from segcft.callbacks.judge_overfitting import witness
from segcft.callbacks.tensorboard import writer
from segcft.core.formatting import printed_unit
from segcft.counterfactual.model import Counterfactual, CounterfactualModel
from segcft.guidance.judges import Judge, SegmentationModel
from segcft.hvae.latents import Abduction
from segcft.plots import figures
from segcft.tasks.base import Batch, FirstValidationBatch, asked_in_turn

ACTIVE = 0.01  # a latent is active if its posterior mean has a larger variance over subjects
Pairs = dict[str, tuple[Tensor, Tensor]]  # variable -> targets and measurements, (n,) each


class CounterfactualImages(FirstValidationBatch):
    """Logs counterfactuals, prior samples, target-measurement plots and active latents, as far as a stage has them.

    Args:
        subjects: Number of subjects shown per intervened variable.
        samples: Number of samples from the prior.
    """

    def __init__(self, subjects: int = 3, samples: int = 8) -> None:
        self.subjects, self.samples = subjects, samples

    def look(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Draw."""
        board = writer(trainer)
        if board is None:
            return
        model, judge, step = getattr(module, "model", None), getattr(module, "judge", None), trainer.global_step
        if isinstance(model, CounterfactualModel):
            guide = getattr(module, "guidance", None)
            look = BatchCounterfactuals.at(batch, model, list(guide.names if guide else []) or model.parents.askable)
            self._answers(board, look, witness(trainer, module), step)
            self._latents(board, look, step)
            _scatter(board, look.pairs(guide(look.answer.image, batch["image"]) if guide else {}), model, step)
        elif isinstance(judge, Judge):
            read = judge.measure(batch["image"])
            _scatter(board, {name: (batch[name], found) for name, found in read.items()}, judge, step)

    def _answers(
        self, board: SummaryWriter, look: "BatchCounterfactuals", judge: SegmentationModel | None, step: int
    ) -> None:
        """One image per intervened variable, with the first subjects that have it."""
        found = judge.measure(look.answer.image, look.batch["image"]) if judge is not None else {}
        for name, target in look.do.items():
            asked = (~target.isnan()).nonzero().flatten()[: self.subjects]
            if not len(asked):
                continue
            values = {"was": look.batch[name], "asked": target} | ({"measured": found[name]} if name in found else {})
            title, of = name.replace("_", " "), look.model.description.parents[name]
            captions = [
                "\n".join([title, *(f"{key} {of.shown(float(values[key][subject]))}" for key in values)])
                for subject in asked
            ]
            shown = (look.batch["image"], look.answer.abduction.pixels.loc, look.answer.image)
            picture = figures.raster(figures.answers([images[asked] for images in shown], captions, judge))
            board.add_image(f"counterfactuals/{name}", picture, step, dataformats="HWC")

    def _latents(self, board: SummaryWriter, look: "BatchCounterfactuals", step: int) -> None:
        """Samples of the prior under the subjects' parents, and the share of active latents."""
        abduction, image = look.answer.abduction, look.answer.image
        devices = [image.device] if image.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # do not change training's random state
            drawn = look.model.hvae.sample(abduction.pa[: self.samples]).loc
        board.add_image("samples", grid([drawn]), step)
        for resolution, share in used(abduction).items():
            board.add_scalar(f"latents/used_{resolution}", share, step)


@dataclass(frozen=True)
class BatchCounterfactuals:
    """Interventions on the subjects of a batch, and their counterfactuals.

    Attributes:
        batch: Images (B, C, *S) and parents (B,).
        model: The model.
        do: One intervention per subject, see ``fixed_do``.
        answer: The counterfactuals, with deterministic abduction.
    """

    batch: Batch
    model: CounterfactualModel
    do: Batch
    answer: Counterfactual

    @classmethod
    def at(cls, batch: Batch, model: CounterfactualModel, names: list[str]) -> "BatchCounterfactuals":
        """Intervene on the variables ``names`` in turn."""
        return cls(batch, model, *asked_in_turn(model, batch, names))

    def pairs(self, measured: Batch) -> Pairs:
        """Targets of every variable, and the measurements of the corresponding counterfactuals."""
        known = {name: ~self.do[name].isnan() for name in self.do if name in measured}
        return {name: (self.do[name][asked], measured[name][asked]) for name, asked in known.items()}


def _scatter(board: SummaryWriter, pairs: Pairs, knows: CounterfactualModel | Judge, step: int) -> None:
    if pairs:
        titled = {_titled(name, knows): both for name, both in pairs.items()}
        board.add_image("measured_and_asked", figures.raster(figures.scatter(titled)), step, dataformats="HWC")


def _titled(name: str, knows: CounterfactualModel | Judge) -> str:
    """A variable with its unit."""
    return ", ".join(filter(None, (name.replace("_", " "), printed_unit(knows.description.parents[name].unit))))


def used(abduction: Abduction) -> dict[str, float]:
    """Share of active latents per resolution: their posterior mean varies over subjects (Burda et al., 1509.00519)."""
    active: dict[str, list[Tensor]] = {}
    for belief in abduction.beliefs:
        mean = belief.posterior.mean.float()
        if len(mean) > 1:
            name = "x".join(map(str, mean.shape[2:]))
            active.setdefault(name, []).append((mean.var(0) > ACTIVE).float().mean())
    return {name: float(torch.stack(shares).mean()) for name, shares in active.items()}


def grid(rows: list[Tensor]) -> Tensor:
    """Rows of images (B, C, *S) in [-1, 1] -> one image (1, height, width) in [0, 1]; of volumes the middle slice."""
    flat = [row[:, 0] if row.dim() == 4 else row[:, 0, row.shape[2] // 2] for row in rows]  # (B, H, W)
    picture = torch.cat([torch.cat(list(row), dim=1) for row in flat], dim=0)
    return (picture.float().clamp(-1, 1)[None] + 1) / 2
