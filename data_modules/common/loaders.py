"""Who reads which subjects when: shared out among processes, and resumable in the middle of an epoch.

A training loader's state is the seed of the epoch's order, how many batches of it were read, and the random generators
of every process. A loader that was given such a state reads the rest of that epoch, and training goes on bit by bit.
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
    """A random order of all subjects every epoch, of which each process reads its share; all shares are equally long.

    Rank r of W reads entries r, r + W, ...: together the processes read, batch by batch, what one process would read
    with W times the batch size. Entry ``subject + subjects * epoch`` stands for a subject's visit in that epoch.

    Args:
        subjects: Number of subjects.

    Attributes:
        seed: Of the order that is being read.

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
        """Tell the epoch, before it begins."""
        self.epoch = epoch

    def begin_at(self, seed: int, skipped: int) -> None:
        """Let the next epoch be that of ``seed``, without its first ``skipped`` entries of this process."""
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
    """Shuffled batches; the state says where it is, on all processes.

    Args:
        dataset: What to read.
        batch_size: Subjects a batch.
        options: Of torch's loader.
    """

    def __init__(self, dataset: Dataset[Batch], batch_size: int, **options: Any) -> None:
        self.order = Shuffled(len(dataset))  # type: ignore[arg-type]
        self.batches = 0  # read in this epoch
        self._resumed: dict[str, Any] | None = None
        self._ended = False
        drop = len(self.order) >= batch_size
        super().__init__(dataset, batch_size, sampler=self.order, drop_last=drop, **options)

    def finish_epoch(self) -> None:
        """The epoch is over, be it after fewer batches than there are."""
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        """Where it is; every process has to ask."""
        if self._resumed is not None:
            return self._resumed
        return {"seed": self.order.seed, "batches": self.batches, "chance": distributed.gathered(random_state.state())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there with the next epoch that is read.

        Raises:
            ValueError: If another number of processes was at work.
        """
        before, now = len(state["chance"]), distributed.place()[1]
        if before != now:
            raise ValueError(f"the checkpoint was written by {before} processes, this run has {now}: it cannot go on")
        self._resumed, self._ended = state, state["batches"] == 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches of the epoch; of one that had ended when the state was taken, none, and then those of the next."""
        if self._ended:
            self._ended = False
            return iter(())
        return self._read()

    def _read(self) -> Iterator[Batch]:
        state, self._resumed = self._resumed, None
        self.batches = state["batches"] if state else 0
        own = state["chance"][distributed.place()[0]] if state else None
        if own is not None and self.batches == 0:  # the epoch begins: it draws its order, as it would have
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
    """Batches of this process when all look at every subject once, in order.

    All processes have the same number of batches, so that they can talk to each other in each of them; where subjects
    do not share out evenly, some last batches hold one more.

    Args:
        subjects: Number of subjects.
        batch_size: Of this process.

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
    """Every subject once, in order, shared out among the processes."""
    if distributed.place()[1] == 1:
        return DataLoader(dataset, batch_size=batch_size, **options)
    return DataLoader(dataset, batch_sampler=Shares(len(dataset), batch_size), **options)  # type: ignore[arg-type]


def alone(loader: DataLoader[Batch]) -> DataLoader[Batch]:
    """The same subjects in plain batches, which Lightning's predict can take apart; nobody waits for another."""
    if not isinstance(loader.batch_sampler, Shares):
        return loader
    own = [subject for batch in loader.batch_sampler for subject in batch]
    return DataLoader(
        loader.dataset, batch_size=len(loader.batch_sampler.batches[0]), sampler=own, collate_fn=loader.collate_fn
    )


def deaf(worker: int) -> None:
    """Loader processes leave the signals that schedulers send to the one that trains."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
