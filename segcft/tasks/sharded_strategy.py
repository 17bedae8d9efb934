"""Share out what a training holds: each process keeps a part of every weight, of its average and of Adam's moments.

PyTorch's ``fully_shard`` (FSDP2) puts weights together for a step or a validation, and averages gradients in parts.
What is computed, and what a checkpoint holds, is as under DDP.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


class Sharded(DDPStrategy):
    """``--trainer.strategy=sharded``: as DDP, but that each process keeps a part of everything."""

    def configure_ddp(self) -> None:
        """Share out weights and averages, which a checkpoint may have brought; optimisers are built on the parts.

        Raises:
            ValueError: If losses are scaled, of which each process would find another factor, or the step is compiled,
                which puts whole weights together at other times.
        """
        if self.precision_plugin.precision == "16-mixed":
            raise ValueError("--trainer.precision=16-mixed does not go with sharded: use bf16-mixed or 32-true")
        module = self.lightning_module
        assert module is not None
        if module.optimisation.compile:  # type: ignore[union-attr]
            raise ValueError("--model.optimisation.compile does not go with sharded: leave one of them out")
        trainer, mesh = module.trainer, init_device_mesh(self.root_device.type, (self.world_size,))
        share(module, mesh)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                share(callback._average_model.module, mesh)
        register_fsdp_forward_method(module, "training_step")
        trainer.callbacks.insert(0, Fold())  # type: ignore[attr-defined]

    def setup(self, trainer: Trainer) -> None:
        """And let what is measured before the first step have whole weights."""
        super().setup(trainer)
        unfold(self.lightning_module)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """With the first process's statistics of batches, as under DDP."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            dist.broadcast(buffer, 0)
        return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """With whole weights, which callbacks may use, too."""
        unfold(self.lightning_module)
        return super().validation_step(*args, **kwargs)

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Gathered gradients are kept in parts."""
        yield

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """As DDP would have written it."""
        whole = apply_to_collection(checkpoint, DTensor, lambda part: part.full_tensor().cpu())
        super().save_checkpoint(whole, filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take one's part of everything."""
        for optimiser, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimiser.param_groups for weight in group["params"]]
            parts = {
                place: {name: _part(value, weights[place]) for name, value in moments.items()}
                for place, moments in state["state"].items()
            }
            optimiser.load_state_dict({**state, "state": parts})


class Fold(Callback):
    """Puts whole weights away before averages are exchanged for them, and before the first step."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After training, or the check before it."""
        if isinstance(pl_module, FSDPModule):
            pl_module.reshard()

    on_validation_epoch_end = on_train_start = on_validation_epoch_start


def unfold(module: nn.Module | None) -> None:
    """Put whole weights together, where they are shared out."""
    if isinstance(module, FSDPModule):
        module.unshard()


def share(module: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each process a part of every weight of the first one's."""
    for weight in module.parameters():
        weight.data = weight.data.contiguous()
    for value in (*module.parameters(), *module.buffers()):
        dist.broadcast(value.data, 0)
    fully_shard(module, mesh=mesh)


def held(values: Iterable[Tensor]) -> list[Tensor]:
    """What this process keeps of each: all of what is not shared out."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]


def _part(value: Any, weight: Tensor) -> Any:
    """Of a moment of a weight; a count of steps is everybody's."""
    if not isinstance(value, Tensor) or not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


StrategyRegistry.register("sharded", Sharded, description=Sharded.__doc__)
