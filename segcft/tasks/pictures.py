"""What the model believes, drawn at every validation from its first batch."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from segcft.counterfactual import CounterfactualModel
from segcft.guidance import Guidance
from segcft.interventions import fixed_do
from segcft.judges import Judge
from segcft.latents import Abduction
from segcft.tasks.base import Batch
from segcft.tasks.board import writer

ACTIVE = 0.01  # variance of a posterior's mean over subjects above which a latent is in use
Pairs = dict[str, tuple[Tensor, Tensor]]  # variable -> asked and measured, (n,) each


class CounterfactualImages(Callback):
    """Grids, asked against measured values, and latents in use, as far as a stage has them.

    Args:
        subjects: Number of subjects in the grids.
    """

    def __init__(self, subjects: int = 6) -> None:
        self.subjects = subjects

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first batch; EMA weights are still in place here."""
        board = writer(trainer)
        if batch_idx or board is None or trainer.sanity_checking:
            return
        model, judge = getattr(pl_module, "model", None), getattr(pl_module, "judge", None)
        pairs: Pairs = {}
        if isinstance(model, CounterfactualModel):
            pairs = self._draw(board, model, getattr(pl_module, "guidance", None), batch, trainer.global_step)
        elif isinstance(judge, Judge):
            pairs = {name: (batch[name], found) for name, found in judge.measure(batch["image"]).items()}
        if pairs:
            board.add_image("asked_and_measured", scatter(pairs), trainer.global_step, dataformats="HWC")

    def _draw(
        self, board: SummaryWriter, model: CounterfactualModel, guidance: Guidance | None, batch: Batch, step: int
    ) -> Pairs:
        """Grids of a few subjects; what the guide measures in the answers of all."""
        do = fixed_do(batch, list(guidance.names if guidance else []) or model.parents.askable)
        answer, image = model(batch["image"], batch, do, temperature=0.0), batch["image"]
        rows = [image, answer.abduction.pixels.loc, answer.image, answer.image - image]
        board.add_image("counterfactuals", grid([row[: self.subjects] for row in rows]), step)
        devices = [image.device] if image.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # training goes on as if nothing had been drawn
            drawn = model.hvae.sample(answer.abduction.pa[: self.subjects]).loc
        board.add_image("samples", grid([drawn]), step)
        for resolution, share in used(answer.abduction).items():
            board.add_scalar(f"latents/used_{resolution}", share, step)
        found = guidance(answer.image, image) if guidance else {}
        known = {name: ~do[name].isnan() for name in do if name in found}
        return {name: (do[name][asked], found[name][asked]) for name, asked in known.items()}


def used(abduction: Abduction) -> dict[str, float]:
    """Resolution -> share of latents whose posterior mean varies over subjects (Burda et al., arXiv:1509.00519)."""
    active: dict[str, list[Tensor]] = {}
    for belief in abduction.beliefs:
        mean = belief.posterior.mean.float()
        if len(mean) > 1:
            name = "x".join(map(str, mean.shape[2:]))
            active.setdefault(name, []).append((mean.var(0) > ACTIVE).float().mean())
    return {name: float(torch.stack(shares).mean()) for name, shares in active.items()}


def grid(rows: list[Tensor]) -> Tensor:
    """Rows of (B, C, *S) in [-1, 1] -> one picture (1, height, width) in [0, 1]; volumes show their middle slice."""
    flat = [row[:, 0] if row.dim() == 4 else row[:, 0, row.shape[2] // 2] for row in rows]  # (B, H, W)
    picture = torch.cat([torch.cat(list(row), dim=1) for row in flat], dim=0)
    return (picture.float().clamp(-1, 1)[None] + 1) / 2


def scatter(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Any:
    """A panel a variable, asked across and measured up, (height, width, 3) uint8."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # lazily: slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(pairs), 2.6), layout="constrained", dpi=90)
    for axis, (name, both) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs.items(), strict=True):
        asked, measured = (values.float().cpu().numpy() for values in both)
        axis.axline((float(asked.mean()) if len(asked) else 0.0,) * 2, slope=1, color="#999999", linewidth=1)
        axis.plot(asked, measured, "o", color="#2f6db3", markersize=3, alpha=0.6)
        axis.set_title(name.replace("_", " "), fontsize=8)
        axis.tick_params(labelsize=6)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
