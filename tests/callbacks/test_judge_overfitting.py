"""The evaluator beside the guide, while fine-tuning."""

import logging
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule

from segcft.callbacks import judge_overfitting
from segcft.callbacks.training_health import InterventionResponse
from segcft.guidance.guidance import NoGuidance, SegmentorGuidance
from segcft.guidance.judges import Segmentor
from segcft.tasks import CounterfactualFineTuning
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

    def neighbours(self, batch, split, names):
        return {name: batch[name].roll(1) for name in names}

    def log(self, name, value, **_):
        self.logged[name] = float(value)


@pytest.fixture
def watched(monkeypatch):
    data = Balls()
    batch = data.dataset("val").read(torch.arange(8))
    guide = Segmentor(data.description, "monai.UNet", {"channels": [2, 4], "strides": [2]}).eval()
    monkeypatch.setattr(judge_overfitting.checkpoints, "load", lambda *_: guide)
    callback, task = (
        judge_overfitting.GuideGap("evaluator.ckpt"),
        FineTuning(Echo(data.description), SegmentorGuidance(guide)),
    )

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
    with pytest.warns(UserWarning, match="exploit errors of the guide"):
        assert validate()["val/gap_left_size"] > 1


def test_nobody_watches_where_nobody_guides(watched):
    _, task, validate = watched
    task.guidance = NoGuidance()
    assert validate() == {}


class Part:
    """Goes part of the way to what is asked, and measures it: a variable is a pixel."""

    names = ("left_size", "right_size")

    def __init__(self, share):
        self.share = share

    def __call__(self, image, batch=None, do=None, **_):
        if do is None:
            return {name: image[:, place] for place, name in enumerate(self.names)}
        moved = [self.share * (do[name] - batch[name]).nan_to_num() for name in self.names]
        return SimpleNamespace(image=image + torch.stack(moved, dim=1))


@pytest.mark.parametrize(("share", "step", "warned"), [(0.5, 9, 0), (0.02, 4, 0), (0.02, 5, 2)])
def test_a_question_without_an_answer_is_named_in_the_second_half(share, step, warned, caplog):
    sizes = {"left_size": torch.tensor([1.0, 5.0, 2.0, 9.0]), "right_size": torch.tensor([3.0, 3.0, 8.0, 1.0])}
    batch = {"image": torch.rand(4, 2), **sizes}
    task, response = FineTuning(Part(share), Part(share)), InterventionResponse()
    trainer = SimpleNamespace(global_step=step, estimated_stepping_batches=10, state=SimpleNamespace(fn="fit"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            response.look(trainer, task, batch)
    assert task.logged == pytest.approx({f"health/response_{name}": share for name in Part.names}, rel=1e-4)
    assert caplog.text.count("of the requested change") == warned, "once per variable"
    task.guidance = NoGuidance()
    task.logged.clear()
    response.look(trainer, task, batch)
    assert task.logged == {}


@pytest.mark.parametrize(
    ("share", "step", "allowed", "fails"),
    [(0.5, 600, False, False), (0.02, 600, False, True), (0.02, 50, False, False), (0.02, 600, True, False)],
)
def test_a_training_that_leaves_a_structure_unmoved_ends_with_an_error_that_says_what_to_do(
    share, step, allowed, fails
):
    sizes = {"left_size": torch.tensor([1.0, 5.0, 2.0, 9.0]), "right_size": torch.tensor([3.0, 3.0, 8.0, 1.0])}
    task, response = FineTuning(Part(share), Part(share)), InterventionResponse()
    task.allow_unmoved = allowed
    trainer = SimpleNamespace(global_step=step, estimated_stepping_batches=step, state=SimpleNamespace(fn="fit"))
    response.look(trainer, task, {"image": torch.rand(4, 2), **sizes})
    if fails:
        with pytest.raises(ValueError, match=r"do\(left_size\): 0.02, do\(right_size\): 0.02.*Fine-tune with"):
            response.on_fit_end(trainer, task)
    else:
        response.on_fit_end(trainer, task)
