"""The evaluator beside the guide, while fine-tuning."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule

from segcft.guidance import NoGuidance, SegmentorGuidance
from segcft.judges import Segmentor
from segcft.tasks import CounterfactualFineTuning, gap
from tests.balls import Balls


class Echo:
    """Answers with the image it was given."""

    def __init__(self, about):
        self.parents = about.parents

    def __call__(self, image, *_, **__):
        return SimpleNamespace(image=image)


class FineTuning(CounterfactualFineTuning):
    """Only what is looked at while validating."""

    device = torch.device("cpu")

    def __init__(self, model, guidance):
        LightningModule.__init__(self)
        self.model, self.guidance, self.asked, self.logged = model, guidance, ["left_size", "right_size"], {}

    def log(self, name, value, **_):
        self.logged[name] = float(value)


@pytest.fixture
def watched(monkeypatch):
    data = Balls()
    batch = data.dataset("val").read(torch.arange(8))
    guide = Segmentor(data.description, "monai.UNet", {"channels": [2, 4], "strides": [2]}).eval()
    monkeypatch.setattr(gap.checkpoints, "load", lambda *_: guide)
    callback, task = gap.GuideGap("evaluator.ckpt"), FineTuning(Echo(data.description), SegmentorGuidance(guide))

    def validate():
        trainer = SimpleNamespace(sanity_checking=False)
        callback.on_validation_epoch_start(trainer, task)
        callback.on_validation_batch_end(trainer, task, None, batch, 0)
        callback.on_validation_epoch_end(trainer, task)
        return task.logged

    return callback, task, validate


def test_the_guide_agrees_with_itself(watched):
    _, _, validate = watched
    assert validate() == {"val/gap_left_size": 0, "val/gap_right_size": 0}


def test_a_growing_gap_warns(watched):
    callback, _, validate = watched
    validate()
    honest = callback.judge.measure
    callback.judge = SimpleNamespace(measure=lambda *images: {k: v + 1e4 for k, v in honest(*images).items()}, to=id)
    with pytest.warns(UserWarning, match="please the guide more"):
        assert validate()["val/gap_left_size"] > 1


def test_nobody_watches_where_nobody_guides(watched):
    _, task, validate = watched
    task.guidance = NoGuidance()
    assert validate() == {}
