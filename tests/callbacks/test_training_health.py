"""Steps that would spoil a training are left out, and what is wrong with it is said."""

import copy
import logging
import math
import time
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn, TrainerState
from torch.utils.data import DataLoader, Dataset

from segcft.callbacks.training_health import DataStall, PretrainingDivergence, StepGuard, channel_kl
from segcft.hvae.latents import Belief, Normal
from segcft.tasks.pretrain import PretrainHVAE


class Rows(Dataset):
    """Ones, but for the rows that are named."""

    def __init__(self, count, odd, delay=0.0):
        self.count, self.odd, self.delay = count, odd, delay

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        time.sleep(self.delay)
        return {"x": torch.full((2,), self.odd.get(place, 1.0))}


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.history = torch.nn.Parameter(torch.tensor([0.3, -0.2])), []

    def training_step(self, batch, batch_idx):
        return (batch["x"] * self.weight).sum() ** 2

    def on_train_batch_end(self, *args):
        self.history.append((self.weight.detach().clone(), copy.deepcopy(self.trainer.optimizers[0].state_dict())))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def train(callback, rows):
    module = Line()
    Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[callback],
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0).fit(
        module, DataLoader(rows, batch_size=1))  # fmt: skip
    return module


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e15])
def test_a_bad_step_changes_nothing_and_its_batch_is_kept(value, tmp_path, caplog):
    """Not finite, or far beyond what is usual."""
    guard = StepGuard(str(tmp_path), warmup=3)
    with caplog.at_level(logging.WARNING):
        history = train(guard, Rows(8, {5: value})).history
    before, after, later = history[4], history[5], history[6]
    assert torch.equal(before[0], after[0])
    assert str(before[1]) == str(after[1]), "the optimiser did not move either"
    assert not torch.equal(after[0], later[0])
    assert guard.skipped == 1
    assert guard.in_a_row == 0
    assert "step 5 was skipped" in caplog.text
    (file,) = tmp_path.iterdir()
    assert file.name == "bad-5-0.pt"
    kept = torch.load(file, weights_only=True)["x"]
    assert torch.equal(kept, torch.full((1, 2), value)) or math.isnan(value)


def test_large_gradients_pass_until_the_usual_is_known_and_where_they_are_wanted():
    for guard in (StepGuard(warmup=6), StepGuard(warmup=3, spike=0)):
        train(guard, Rows(8, {5: 1e6}))
        assert guard.skipped == 0


def test_gradients_that_stay_large_pass_once_no_batch_is_to_blame():
    guard = StepGuard(warmup=3, steady=2, patience=4)
    history = train(guard, Rows(12, dict.fromkeys(range(5, 12), 1e6))).history
    assert guard.skipped == 2
    assert not torch.equal(history[6][0], history[7][0])
    assert guard.in_a_row == 0


def test_it_stops_after_patience_and_says_where_to_look(tmp_path):
    guard = StepGuard(str(tmp_path), patience=3, keep=2)
    with pytest.raises(ValueError, match="3 steps in a row were skipped, the last one because the loss is nan"):
        train(guard, Rows(8, dict.fromkeys(range(2, 8), math.nan)))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_the_guard_knows_is_plain_and_comes_back(tmp_path):
    guard, other = StepGuard(), StepGuard()
    train(guard, Rows(5, {}))
    torch.save(guard.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.state_dict() == guard.state_dict()
    assert len(other.norms) == 5


def test_a_dead_channel_tells_nothing_about_the_image():
    prior = Normal(torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2))
    mean = torch.zeros(4, 3, 2, 2)
    mean[:, 1] = 1.0
    found = channel_kl(Belief(prior, Normal(mean, torch.zeros(4, 3, 2, 2))))
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0, 0.0]))  # 4 places, half a nat each
    torch.testing.assert_close(found.sum(), Normal(mean, torch.zeros(4, 3, 2, 2)).kl(prior).mean())


@pytest.mark.parametrize(("delay", "warns"), [(0.2, True), (0.0, False)])
def test_a_loader_that_stalls_is_named(delay, warns, caplog):
    class Slow(Line):
        def training_step(self, batch, batch_idx):
            time.sleep(0.05)
            return super().training_step(batch, batch_idx)

    stall, module = DataStall(steps=5), Slow()
    with caplog.at_level(logging.WARNING):
        Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                callbacks=[stall], enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1).fit(
            module, DataLoader(Rows(11, {}, delay), batch_size=1))  # fmt: skip
    assert ("waits for data" in caplog.text) == warns
    assert 0 <= float(module.trainer.callback_metrics["health/waiting"]) <= 1


@pytest.mark.parametrize(
    ("nelbos", "warns"),
    [
        ([4.81, 0.63, -0.40, 2.60, 3.60, -0.42, -0.57], True),  # films of 128 x 128 at a learning rate of 3e-3
        ([5.47, 0.84, -0.14, -0.46, -0.82], False),  # at half of it
        ([0.50, 0.45, 0.52], False),
        ([0.50, 0.70, 0.90], False),  # nothing had been gained yet
    ],
)
def test_pretraining_that_bursts_says_so_once(nelbos, warns, caplog):
    setback, module = PretrainingDivergence(), PretrainHVAE.__new__(PretrainHVAE)
    with caplog.at_level(logging.WARNING):
        for step, nelbo in enumerate(nelbos):
            if step == 2:  # resumed
                known, setback = setback.state_dict(), PretrainingDivergence()
                setback.load_state_dict(known)
            trainer = SimpleNamespace(sanity_checking=False, state=TrainerState(fn=TrainerFn.FITTING), global_step=step)
            trainer.callback_metrics = {"val/nelbo": torch.tensor(nelbo)}
            setback.on_validation_end(trainer, module)
    assert caplog.text.count("pretraining has diverged") == warns
