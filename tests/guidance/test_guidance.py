"""Every guidance obeys the same laws: gradients go through it, and into a judge only where the judge is to learn."""

import pytest
import torch

from segcft.core import checkpoints
from segcft.core.recipes import build
from segcft.guidance.guidance import (
    CoTrainedGuidance,
    EnsembleGuidance,
    NoGuidance,
    RegressorGuidance,
    SegmentorGuidance,
)
from segcft.guidance.judges import Regressor, SegmentationModel, Segmentor
from segcft.guidance.losses import guidance_loss
from segcft.variables.variables import DataDescription, Variable
from tests.balls import Balls
from tests.guidance.test_external_segmentor import save

UNET = {"channels": [4, 8], "strides": [2], "norm": "batch"}


def segmentor(dims=2):
    return Segmentor(Balls(spatial_dims=dims).description, "monai.UNet", UNET)


def regressor(dims=2):
    return Regressor(Balls(spatial_dims=dims).description, (4, 8))


def ensemble(dims):
    return EnsembleGuidance([SegmentorGuidance(segmentor(dims)), RegressorGuidance(regressor(dims)), NoGuidance()])


GUIDANCES = {
    "regressor": lambda dims: RegressorGuidance(regressor(dims)),
    "segmentor": lambda dims: SegmentorGuidance(segmentor(dims)),
    "cotrained": lambda dims: CoTrainedGuidance(segmentor(dims)),
    "ensemble": ensemble,
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", GUIDANCES)
def test_measuring_sends_gradients_to_the_image_and_none_to_the_judge(name, dims):
    guidance = GUIDANCES[name](dims)
    guidance.train()
    before = {key: value.clone() for key, value in guidance.state_dict().items()}
    image = torch.rand(2, 1, *[16] * dims, requires_grad=True)
    measured = guidance(image, image.detach())
    assert list(measured) == list(guidance.names) == ["left_size", "right_size"]
    sum(value.sum() for value in measured.values()).backward()
    assert image.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in guidance.parameters())
    assert all(torch.equal(value, guidance.state_dict()[key]) for key, value in before.items()), "no statistics move"


@pytest.mark.parametrize("dims", [2, 3])
def test_learning_sends_gradients_to_the_judge_and_none_to_the_image(dims):
    guidance = CoTrainedGuidance(segmentor(dims))
    guidance.train()
    buffers = {key: value.clone() for key, value in guidance.named_buffers()}
    batch = Balls(spatial_dims=dims, subjects=4).dataset("train").read(torch.arange(2))
    cf_image = torch.rand(2, 1, *[16] * dims, requires_grad=True)
    for name, loss in guidance.learn(batch, cf_image).items():
        loss.backward()
        assert cf_image.grad is None, name
        assert all(weight.grad is not None for weight in guidance.parameters()), name
        guidance.zero_grad()
    assert all(torch.equal(value, buffers[key]) for key, value in guidance.named_buffers())


def test_one_step_of_one_optimiser_does_both():
    """The gradients of the sum are those of each loss by itself."""
    guidance, batch = CoTrainedGuidance(segmentor()), Balls(subjects=4).dataset("train").read(torch.arange(4))
    image = batch["image"].clone().requires_grad_()
    judging = sum(value.sum() for value in guidance(image).values())
    alone = torch.autograd.grad(judging, image)[0]
    torch.manual_seed(0)
    own = torch.autograd.grad(sum(guidance.learn(batch, image).values()), list(guidance.parameters()))
    torch.manual_seed(0)
    (sum(value.sum() for value in guidance(image).values()) + sum(guidance.learn(batch, image).values())).backward()
    torch.testing.assert_close(image.grad, alone)
    for weight, expected in zip(guidance.parameters(), own, strict=True):
        torch.testing.assert_close(weight.grad, expected)


def test_co_training_learns_to_outline():
    guidance, batch = CoTrainedGuidance(segmentor()), Balls(subjects=8).dataset("train").read(torch.arange(8))
    optimiser = torch.optim.Adam(guidance.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        found = guidance.learn(batch, batch["image"])
        optimiser.zero_grad()
        sum(found.values()).backward()
        optimiser.step()
        losses.append(found["judge_mask"].item())
    assert losses[-1] < 0.8 * losses[0]


def test_frozen_guidances_have_nothing_to_learn():
    for guidance in (NoGuidance(), SegmentorGuidance(segmentor()), ensemble(2)):
        assert guidance.learn({}, torch.zeros(1, 1, 16, 16)) == {}
        assert not any(weight.requires_grad for weight in guidance.parameters())


def test_an_ensemble_is_the_mean_of_its_members_and_knows_how_they_differ():
    members, image = [SegmentorGuidance(segmentor()), RegressorGuidance(regressor())], torch.rand(3, 1, 16, 16)
    both = EnsembleGuidance(members)
    left = [member(image)["left_size"] for member in members]
    torch.testing.assert_close(both(image)["left_size"], (left[0] + left[1]) / 2)
    torch.testing.assert_close(both.disagreement(image)["left_size"], (left[0] - left[1]).abs() / 2)
    alone = EnsembleGuidance(members[:1]).disagreement(image)
    assert all(torch.equal(value, torch.zeros(3)) for value in alone.values())
    with pytest.raises(ValueError, match="members: an ensemble needs at least one"):
        EnsembleGuidance([])


def test_members_that_measure_different_variables_are_united():
    about, image = Balls().description, torch.rand(2, 1, 16, 16)
    variables = dict(about.parents.variables)
    variables.pop("right_size")
    less = type(about)(variables, about.structures, about.spacing)
    members = [SegmentorGuidance(Segmentor(less, "monai.UNet", UNET)), SegmentorGuidance(segmentor())]
    both = EnsembleGuidance(members)
    assert list(both(image)) == ["left_size", "right_size"]
    torch.testing.assert_close(both(image)["right_size"], members[1](image)["right_size"])


def test_an_ensemble_with_a_learner_learns_and_is_restored_with_its_segmentor_first(tmp_path):
    both = EnsembleGuidance([RegressorGuidance(regressor()), CoTrainedGuidance(segmentor())])
    batch = Balls(subjects=4).dataset("train").read(torch.arange(2))
    assert set(both.learn(batch, batch["image"])) == {"judge_mask_1", "judge_consistency_1"}
    path = save(tmp_path / "a.ckpt", {"guidance": both})
    restored = checkpoints.load(path, EnsembleGuidance)
    for name, value in both(batch["image"]).items():
        assert torch.equal(restored(batch["image"])[name], value)
    found = checkpoints.search(path, SegmentationModel)
    assert torch.equal(found.eval()(batch["image"]), both.members[1].judge(batch["image"]))


def test_a_judge_of_the_wrong_kind_is_named():
    with pytest.raises(ValueError, match="SegmentorGuidance needs a SegmentationModel, got a Regressor"):
        SegmentorGuidance(regressor())


def test_a_segmentor_measures_what_other_data_declare_of_its_structures():
    areas = Balls()
    places = Balls(variables={"left_width": Variable(structure="left", measure="width"), "age": Variable()})
    judge = Segmentor(areas.description, "monai.UNet", UNET)
    guidance = SegmentorGuidance(judge, shape=True)
    guidance.attach(places.description)
    assert guidance.names == ["left_width"]
    image = areas.dataset("val").read(torch.arange(2))["image"]
    twin = build(guidance.recipe)
    twin.load_state_dict(guidance.state_dict())
    torch.testing.assert_close(twin.eval()(image), guidance.eval()(image))
    assert "left_width" in guidance(image)
    other = Balls(spatial_dims=3)
    judge.attach(other.description)
    assert judge.description is places.description, "volumes are nothing it could outline"


def test_a_regressor_reads_visible_variables_and_a_segmentor_does_not():
    variables = {"thickness": Variable(visible=True, mean=3.0, std=0.5), "age": Variable()}
    about = DataDescription(variables, [], [1.0, 1.0])
    guidance = RegressorGuidance(Regressor(about, (4, 8)))
    assert guidance.names == ["thickness"]
    measured = guidance(torch.rand(2, 1, 16, 16))
    assert list(measured) == ["thickness"]
    target = {"thickness": measured["thickness"] + 1}
    assert guidance_loss(measured, target, about.parents, {}).item() == pytest.approx(2)
    with pytest.raises(ValueError, match="no variable names a structure"):
        Segmentor(about)
    with pytest.raises(ValueError, match="no variable names a structure"):
        Regressor(DataDescription({"age": Variable()}, [], [1.0, 1.0]))
