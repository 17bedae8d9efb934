"""Communication between distributed processes; with a single process every function is trivial."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def place() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def total(value: Tensor) -> Tensor:
    """Sum over all processes, of any shape.

    The gradient flows through the sum. After DDP has averaged gradients over processes, a loss made of such sums has
    the same gradient as in one process that sees all subjects.
    """
    if place()[1] == 1:
        return value
    from torch.distributed.nn.functional import all_reduce

    summed: Tensor = all_reduce(value)  # type: ignore[no-untyped-call]
    return summed


@torch.no_grad()
def mean(value: Tensor) -> Tensor:
    """Mean over all processes, of any shape, without gradient."""
    size = place()[1]
    if size == 1:
        return value.detach()
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed / size


def weight_of(subjects: int) -> int:
    """Weight of a batch in a mean over processes, for Lightning's ``batch_size``.

    Lightning averages the integer weights over processes and truncates: 9 and 8 subjects become 8, and a mean is too
    large by a factor of 17/16. Multiples of the number of processes lose nothing.
    """
    return subjects * place()[1]


def align(weight: Tensor) -> None:
    """Give a weight's gradient the weight's own strides, also on axes of length 1, as DDP's buckets require."""

    def aligned(gradient: Tensor) -> Tensor:
        return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)

    weight.register_hook(aligned)  # type: ignore[no-untyped-call]


def any_of(wish: bool, device: torch.device) -> bool:
    """True in every process if ``wish`` is true in any."""
    if place()[1] == 1:
        return wish
    wishes = torch.tensor(float(wish), device=device)
    dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
    return bool(wishes)


def agreed(value: Any) -> Any:
    """The value that rank 0 has, in every process; it must be picklable."""
    if place()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: Any) -> list[Any]:
    """The values of all processes, ordered by rank; they must be picklable."""
    size = place()[1]
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values
