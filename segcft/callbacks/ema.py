"""The exponential moving average (EMA) of a model's weights."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segcft.tasks.sharded_strategy import held


class Average(AveragedModel):
    """An EMA of all weights, updated in one call; it looks up the tensors once instead of at every step.

    Args:
        model: The model whose weights and buffers are averaged.
        decay: Weight of the old average in an update, in [0, 1].
        device: Device of the average; should be the model's, otherwise every update waits for a transfer.
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device | None = None) -> None:
        super().__init__(model, device, use_buffers=True)  # type: ignore[no-untyped-call]
        self._average: Callable[..., None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._places: list[tuple[dict[str, Any], dict[str, Any], str]] = []  # average's, model's, name

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average; the first call copies the model, as in ``AveragedModel``."""
        first = not self._places and self.n_averaged == 0
        self._places = self._places or list(_places(self.module, model))
        pairs = [(ours[name], theirs[name]) for ours, theirs, name in self._places]
        for average, value in pairs if first else ():
            average.copy_(value)
        for floating in () if first else (True, False):
            chosen = [pair for pair in pairs if pair[0].is_floating_point() == floating]
            if chosen:
                self._average(*map(held, zip(*chosen, strict=True)), self.n_averaged)
        self.n_averaged += 1


class EMA(WeightAveraging):
    """EMA of the weights, as Lightning's ``EMAWeightAveraging``, but faster.

    Args:
        decay: Weight of the old average in an update, in [0, 1].
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average on the device on which the model will be trained."""
        if stage == "fit":
            self._average_model = Average(pl_module, self.decay, trainer.strategy.root_device)


def _places(ours: nn.Module, theirs: nn.Module) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """The dicts that hold weights and buffers, with their names, since the tensors in them may be replaced."""
    seen = set()
    for one, other in zip(ours.modules(), theirs.modules(), strict=True):
        for kind in ("_parameters", "_buffers"):
            for name, value in getattr(other, kind).items():
                if value is not None and id(value) not in seen:
                    seen.add(id(value))
                    yield getattr(one, kind), getattr(other, kind), name
