"""Progress of a fit."""

import re
from types import SimpleNamespace

import pytest
import torch

from segcft.callbacks import progress
from segcft.callbacks.progress import StepProgress


@pytest.mark.parametrize("terminal", [False, True])
def test_a_fit_shows_terms_of_the_loss_pace_and_time_left(terminal, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_terminal", lambda: terminal)
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    monkeypatch.setenv("COLUMNS", "200")
    found = {"train/loss": torch.tensor(2.0), "train/guidance": torch.tensor(0.25), "train/kl": torch.tensor(9.0)}
    trainer = SimpleNamespace(
        global_step=0, estimated_stepping_batches=20, world_size=1, is_global_zero=True,
        callback_metrics=found, progress_bar_metrics={"val/guidance": torch.tensor(0.5)},
    )  # fmt: skip
    shown_progress, stage = StepProgress(), torch.nn.Identity()
    shown_progress.on_train_start(trainer, stage)
    for trainer.global_step in range(1, 21):
        shown_progress.on_train_batch_start(trainer, stage, {}, 0)
        shown_progress.on_train_batch_end(trainer, stage, None, {"index": torch.arange(4)}, 0)
    shown_progress.on_train_end(trainer, stage)
    shown = capsys.readouterr().err
    assert re.search(r"0 s left .*train/guidance 0\.250  train/loss 2\.000  val/guidance 0\.500  \d+ images/s", shown)
    assert "20/20" in shown
    assert "train/kl" not in shown
    assert terminal == ("\x1b[" in shown)
    if not terminal:
        assert len(shown.splitlines()) == 11
