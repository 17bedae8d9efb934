"""Sharded training (FSDP2): each process stores a part of every weight, of its EMA and of Adam's moments.

PyTorch's ``fully_shard`` gathers the weights for a step or a validation, and reduces gradients to their shards. Results
and checkpoints are the same as with DDP.
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
    """``--trainer.strategy=sharded``: as DDP, but weights, EMA and optimiser state are sharded (FSDP2)."""

    def configure_ddp(self) -> None:
        """Shard weights and EMA, before the optimisers are built.

        Raises:
            ValueError: If the precision is 16-mixed, whose loss scale would differ between processes, or if the step is
                compiled, which does not support gathering weights at these times.
        """
        if self.precision_plugin.precision == "16-mixed":
            raise ValueError("--trainer.precision=16-mixed cannot be used with sharded: use bf16-mixed or 32-true")
        module = self.lightning_module
        assert module is not None
        if module.optimisation.compile:  # type: ignore[union-attr]
            raise ValueError("--model.optimisation.compile cannot be used with sharded: leave one of them out")
        trainer, mesh = module.trainer, init_device_mesh(self.root_device.type, (self.world_size,))
        share(module, mesh)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                share(callback._average_model.module, mesh)
        register_fsdp_forward_method(module, "training_step")
        trainer.callbacks.insert(0, Reshard())  # type: ignore[attr-defined]

    def setup(self, trainer: Trainer) -> None:
        """Set up, then gather the weights for measurements before the first step."""
        super().setup(trainer)
        unfold(self.lightning_module)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a step after broadcasting buffers from rank 0, as DDP does."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            dist.broadcast(buffer, 0)
        return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Gather the weights, also for callbacks, and run a validation step."""
        unfold(self.lightning_module)
        return super().validation_step(*args, **kwargs)

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Do nothing: accumulated gradients are stored as shards."""
        yield

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write full tensors, as DDP would."""
        whole = apply_to_collection(checkpoint, DTensor, lambda part: part.full_tensor().cpu())
        super().save_checkpoint(whole, filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shard of the optimiser state."""
        for optimiser, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimiser.param_groups for weight in group["params"]]
            parts = {
                place: {name: _part(value, weights[place]) for name, value in moments.items()}
                for place, moments in state["state"].items()
            }
            optimiser.load_state_dict({**state, "state": parts})


class Reshard(Callback):
    """Reshards the weights before and after validation (when EMA weights are swapped) and before the first step."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reshard the weights."""
        if isinstance(pl_module, FSDPModule):
            pl_module.reshard()

    on_validation_epoch_end = on_train_start = on_validation_epoch_start


def unfold(module: nn.Module | None) -> None:
    """Gather the weights of a sharded module."""
    if isinstance(module, FSDPModule):
        module.unshard()


def share(module: nn.Module, mesh: DeviceMesh) -> None:
    """Broadcast rank 0's weights and shard them over the processes."""
    for weight in module.parameters():
        weight.data = weight.data.contiguous()
    for value in (*module.parameters(), *module.buffers()):
        dist.broadcast(value.data, 0)
    fully_shard(module, mesh=mesh)


def held(values: Iterable[Tensor]) -> list[Tensor]:
    """This process's shard of each tensor; the whole tensor if it is not sharded."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]


def _part(value: Any, weight: Tensor) -> Any:
    """The shard of a weight's moment; other state, such as the step count, is kept whole."""
    if not isinstance(value, Tensor) or not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


StrategyRegistry.register("sharded", Sharded, description=Sharded.__doc__)
