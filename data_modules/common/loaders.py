"""Data loaders that distribute subjects over processes and can be resumed in the middle of an epoch.

A training loader's state is the seed of the epoch's order, the number of batches read, and the state of every process's
random generators. After loading such a state it reads the rest of that epoch, and training continues bit for bit.
"""

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segcft.core import distributed, random_state

Batch = dict[str, Tensor]


class Shuffled(Sampler[int]):
    """Sampler with a new random order every epoch, divided evenly among the processes.

    Rank r of W reads entries r, r + W, ...: together the processes read, batch by batch, what one process would read
    with W times the batch size. Entry ``subject + subjects * epoch`` encodes both the subject and the epoch.

    Args:
        subjects: Number of subjects.

    Attributes:
        seed: Seed of the current order.

    Raises:
        ValueError: If there are fewer subjects than processes.
    """

    def __init__(self, subjects: int) -> None:
        self.subjects, (self.rank, self.world) = subjects, distributed.place()
        if subjects < self.world:
            raise ValueError(f"{subjects} training subjects cannot be shared among {self.world} processes")
        self.seed = self.epoch = self.skipped = 0
        self.given = False

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch before it begins."""
        self.epoch = epoch

    def begin_at(self, seed: int, skipped: int) -> None:
        """Use the order of ``seed`` in the next epoch, without this process's first ``skipped`` entries."""
        self.seed, self.skipped, self.given = seed, skipped, True

    def __len__(self) -> int:
        return self.subjects // self.world

    def __iter__(self) -> Iterator[int]:
        if not self.given:
            drawn = int(torch.empty((), dtype=torch.int64).random_().item())  # as torch's RandomSampler draws it
            self.seed, self.skipped = distributed.agreed(drawn), 0
        self.given = False
        order = torch.randperm(self.subjects, generator=torch.Generator().manual_seed(self.seed))
        own = order[self.rank : len(self) * self.world : self.world]
        yield from (own + self.subjects * self.epoch)[self.skipped :].tolist()


class TrainingLoader(DataLoader[Batch]):
    """Loader of shuffled batches whose state can be saved and restored.

    Args:
        dataset: The data set.
        batch_size: Subjects per batch.
        options: Further arguments of ``DataLoader``.
    """

    def __init__(self, dataset: Dataset[Batch], batch_size: int, **options: Any) -> None:
        self.order = Shuffled(len(dataset))  # type: ignore[arg-type]
        self.batches = 0  # read in this epoch
        self._resumed: dict[str, Any] | None = None
        self._ended = False
        drop = len(self.order) >= batch_size
        own = torch.Generator()  # a loader that starts workers draws a seed: not from what training draws from
        super().__init__(dataset, batch_size, sampler=self.order, drop_last=drop, generator=own, **options)

    def finish_epoch(self) -> None:
        """End the epoch, possibly before all of its batches were read."""
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        """Position in the epoch; must be called in all processes."""
        if self._resumed is not None:
            return self._resumed
        return {"seed": self.order.seed, "batches": self.batches, "chance": distributed.gathered(random_state.state())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from this state at the next iteration.

        Raises:
            ValueError: If the number of processes has changed.
        """
        before, now = len(state["chance"]), distributed.place()[1]
        if before != now:
            raise ValueError(f"the checkpoint was written by {before} processes, this run has {now}: cannot resume")
        self._resumed, self._ended = state, state["batches"] == 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches of the epoch; none if the restored epoch had already ended."""
        if self._ended:
            self._ended = False
            return iter(())
        return self._read()

    def _read(self) -> Iterator[Batch]:
        state, self._resumed = self._resumed, None
        self.batches = state["batches"] if state else 0
        own = state["chance"][distributed.place()[0]] if state else None
        if own is not None and self.batches == 0:  # start of an epoch: draw its order from the restored generators
            random_state.restore(own)
        elif state:
            self.order.begin_at(state["seed"], self.batches * (self.batch_size or 1))
        batches = super().__iter__()
        if own is not None and self.batches:
            random_state.restore(own)
        for batch in batches:
            self.batches += 1
            yield batch


class Shares(Sampler[list[int]]):
    """Batch sampler of evaluation: every subject once, in order, divided among the processes.

    All processes have the same number of batches, so that they can communicate in each. If subjects do not divide
    evenly, the last batch of some processes has one more.

    Args:
        subjects: Number of subjects.
        batch_size: Batch size of this process.

    Raises:
        ValueError: If there are fewer subjects than processes.
    """

    def __init__(self, subjects: int, batch_size: int) -> None:
        rank, world = distributed.place()
        if subjects < world:
            raise ValueError(f"{subjects} subjects cannot be shared among {world} processes")
        own = list(range(rank, subjects, world))
        starts = list(range(0, subjects // world, batch_size))
        self.batches = [own[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def evaluation_loader(dataset: Dataset[Batch], batch_size: int, **options: Any) -> DataLoader[Batch]:
    """Loader that reads every subject once, in order, divided among the processes."""
    options["generator"] = torch.Generator()  # as of ``TrainingLoader``
    if distributed.place()[1] == 1:
        return DataLoader(dataset, batch_size=batch_size, **options)
    return DataLoader(dataset, batch_sampler=Shares(len(dataset), batch_size), **options)  # type: ignore[arg-type]


def alone(loader: DataLoader[Batch]) -> DataLoader[Batch]:
    """The same subjects with a plain batch sampler, which Lightning's predict can distribute itself."""
    if not isinstance(loader.batch_sampler, Shares):
        return loader
    own = [subject for batch in loader.batch_sampler for subject in batch]
    return DataLoader(
        loader.dataset,
        batch_size=len(loader.batch_sampler.batches[0]),
        sampler=own,
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),
    )


def deaf(worker: int) -> None:
    """Ignore schedulers' signals in loader workers; only the training process handles them."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
