"""Several processes learn what one would: shares of subjects, gradients, metrics, weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_modules.common.loaders import Shares, Shuffled, TrainingLoader, alone, evaluation_loader
from segcft.core import distributed, random_state
from tests.balls import BallDataset
from tests.cli.test_launch import TORCHRUN, environment

ROOT = Path(__file__).parents[2]


def as_rank(monkeypatch, rank, world):
    monkeypatch.setattr(distributed, "place", lambda: (rank, world))
    monkeypatch.setattr(distributed, "agreed", lambda value: value)


def orders(monkeypatch, subjects, world):
    found = []
    for rank in range(world):
        as_rank(monkeypatch, rank, world)
        torch.manual_seed(3)
        found.append(list(Shuffled(subjects)))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_order_of_one(world, monkeypatch):
    (alone,) = orders(monkeypatch, 20, 1)
    shared = orders(monkeypatch, 20, world)
    assert {len(share) for share in shared} == {20 // world}
    together_read = [subject for turn in zip(*shared, strict=True) for subject in turn]
    assert together_read == alone[: len(together_read)]
    assert sorted(alone) == list(range(20))


@pytest.mark.parametrize("subjects", range(3, 40))
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_subject_is_evaluated_once_in_equally_many_batches(subjects, batch_size, monkeypatch):
    parts = []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        parts.append(list(Shares(subjects, batch_size)))
    assert sorted(subject for part in parts for batch in part for subject in batch) == list(range(subjects))
    assert len({len(part) for part in parts}) == 1
    assert all(0 < len(batch) <= batch_size + 1 for part in parts for batch in part)


def test_too_few_subjects_are_refused(monkeypatch):
    as_rank(monkeypatch, 1, 3)
    for kind in (Shuffled, lambda count: Shares(count, 4)):
        with pytest.raises(ValueError, match=r"2 .*subjects cannot be shared among 3 processes"):
            kind(2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("read", [0, 1, 3])
def test_a_loader_goes_on_where_its_state_was_taken(read, workers):
    def loader():
        made = TrainingLoader(BallDataset("train", 8, 20, 2), 4, num_workers=workers, collate_fn=lambda batch: batch)
        return made, lambda: [batch["index"].tolist() for batch in made]

    torch.manual_seed(1)
    first, epoch = loader()
    iterator = iter(first)
    for _ in range(read):
        next(iterator)
    state = first.state_dict()
    rest = [batch["index"].tolist() for batch in iterator] if read else []
    after = (epoch(), torch.rand(2).tolist())
    torch.manual_seed(7)
    second, again = loader()
    second.load_state_dict(state)
    assert second.state_dict() is state, "asked before it has read anything"
    assert again() == rest
    assert (again(), torch.rand(2).tolist()) == after


@pytest.mark.parametrize("persistent", [False, True])
def test_loaders_and_their_workers_draw_from_nothing_that_training_draws_from(persistent):
    """Persistent workers are started once, and anew after a kill: what is drawn must not tell."""
    dataset = BallDataset("train", 8, 12, 2)
    options = {"num_workers": 2, "persistent_workers": persistent, "collate_fn": lambda batch: batch}
    made = {
        "plain": evaluation_loader(dataset, 4, collate_fn=options["collate_fn"]),
        "workers": evaluation_loader(dataset, 4, **options),
    }
    for loader in (*made.values(), alone(made["workers"])):
        before = torch.get_rng_state()
        for _ in range(2):
            list(loader)
        assert torch.equal(torch.get_rng_state(), before)


def test_another_number_of_processes_cannot_go_on(monkeypatch):
    loader = TrainingLoader(BallDataset("train", 8, 20, 2), 4)
    state = loader.state_dict()
    as_rank(monkeypatch, 0, 2)
    with pytest.raises(ValueError, match="written by 1 processes, this run has 2"):
        loader.load_state_dict(state)


@pytest.mark.parametrize("laid", [torch.contiguous_format, torch.channels_last])
def test_an_aligned_weight_has_a_gradient_that_lies_as_it_does(laid):
    """Also where kernels of one pixel, and sums of gradients, leave a choice of strides."""
    weight = torch.randn(8, 6, 1, 1).to(memory_format=laid).requires_grad_()
    features = torch.randn(2, 6, 4, 4)

    def learnt():
        (gradient,) = torch.autograd.grad((weight.flatten(1).t().sum(1) * features.movedim(1, -1)).sum(), weight)
        twice = torch.nn.functional.conv2d(features, weight).sum() + (weight.flatten(1) ** 2).sum()
        weight.grad = None
        twice.backward()
        return gradient, weight.grad

    free = learnt()
    distributed.align(weight)
    for one, other in zip(learnt(), free, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == weight.stride()
    assert any(gradient.stride() != weight.stride() for gradient in free)


def test_chance_is_restored_and_told_apart():
    import random

    import numpy as np

    def draw():
        numpy = np.random.standard_normal(2).tolist()  # noqa: NPY002
        return random.random(), float(torch.rand(())), random.gauss(0, 1), *numpy

    draw()
    state = random_state.state()
    expected = [draw() for _ in range(3)]
    random_state.restore(state)
    assert [draw() for _ in range(3)] == expected
    random_state.restore(state)
    random_state.separate(0)
    assert draw() == expected[0]
    random_state.separate(1)
    one = draw()
    random_state.restore(state)
    random_state.separate(2)
    assert not set(one) & set(draw())


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """Every task: gradients, train and validation numbers, averaged weights; both ranks agree on every bit."""
    for launch in ([sys.executable], TORCHRUN):
        done = subprocess.run([*launch, str(ROOT / "tests/pairs.py"), str(tmp_path / f"of{len(launch)}")],
                              env=environment(), capture_output=True, text=True, check=False, timeout=900)  # fmt: skip
        assert done.returncode == 0, done.stderr
    alone = torch.load(tmp_path / "of1/auto.0.pt")
    for strategy in ("ddp", "sharded"):
        first, second = (torch.load(tmp_path / f"of{len(TORCHRUN)}/{strategy}.{rank}.pt") for rank in range(2))
        for name, one in alone.items():
            assert len(one["gradients"]) == len(first[name]["gradients"]) == 2
            for key in ("gradients", "metrics", "weights"):  # Adam makes more of rounding where gradients are near 0
                compare(one[key], first[name][key], f"{strategy}.{name}.{key}", 1e-4)
            compare(first[name]["weights"], second[name]["weights"], name, 0)
            here, both = map(sum, zip(*first[name]["sizes"], strict=True)) if strategy == "sharded" else (0, 1)
            assert here < 0.55 * both, "each keeps a part"


@pytest.mark.slow
def test_validation_metrics_do_not_depend_on_the_number_of_processes(tmp_path):
    """Every task, 17 and 4 subjects among 1, 2 and 3 processes in batches of 4: equal to 1e-5."""
    done = subprocess.run([sys.executable, str(ROOT / "tests/validations.py"), str(tmp_path)], env=environment(),
                          capture_output=True, text=True, check=False, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_go_on_stop_and_skip_together(tmp_path):
    """Killed: the same bits; one dies: the other stops within a minute; a spoilt batch: both leave the step out."""
    done = subprocess.run([sys.executable, str(ROOT / "tests/ranks.py"), str(tmp_path)], env=environment(),
                          capture_output=True, text=True, check=False, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def compare(one, other, name, tolerance):
    """Everything within ``tolerance`` of the largest entry, or of 1."""
    if isinstance(one, dict | list):
        items = one.items() if isinstance(one, dict) else enumerate(one)
        assert len(one) == len(other), name
        for key, value in items:
            compare(value, other[key], f"{name}.{key}", tolerance)
        return
    one, other = torch.as_tensor(one).double(), torch.as_tensor(other).double()
    scale = max(1.0, float(one.abs().max())) if one.numel() else 1.0
    torch.testing.assert_close(other, one, rtol=0, atol=tolerance * scale, equal_nan=True, msg=lambda m: f"{name}: {m}")
