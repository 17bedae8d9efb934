"""Laws of counterfactuals, in two and three dimensions."""

import math

import pytest
import torch

from segcft.causal.interventions import Questions, fixed_do, sample_do
from segcft.core.recipes import build
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.prediction import Gated, Standard
from segcft.guidance.guidance import NoGuidance, RegressorGuidance, SegmentorGuidance
from segcft.guidance.judges import Regressor, Segmentor
from segcft.guidance.losses import ElboConstraint, guidance_loss
from segcft.hvae.hvae import HVAE
from segcft.hvae.likelihoods import Pixels
from segcft.hvae.stages import Stage
from segcft.variables.measurements import area
from segcft.variables.variables import Parents, Variable
from tests.balls import Balls

UNET = {"channels": [4, 8], "strides": [2], "norm": "batch"}


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def data(request):
    return Balls(spatial_dims=request.param)


def make(data, prediction=None, **options):
    torch.manual_seed(0)
    about = data.description
    hvae = HVAE(
        about.spatial_dims, 1, about.parents.dim, [Stage(8, 0, resolution=16), Stage(16, 2, 4, resolution=4)], **options
    )
    for weight in hvae.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return CounterfactualModel(about, hvae, prediction).eval(), data.dataset("test").read(torch.arange(4))


@pytest.mark.parametrize("prediction", [Gated(), Standard()])
@pytest.mark.parametrize("conditional_prior", [False, True])
def test_null_intervention_returns_the_factual_image(data, prediction, conditional_prior):
    """Composition (Monteiro et al., 2023): intervening with nothing, or with what is there, changes nothing."""
    model, batch = make(data, prediction, conditional_prior=conditional_prior)
    same = {name: batch[name] for name in model.parents.names}
    for do in ({}, same, {"age": torch.full((4,), torch.nan)}):
        torch.testing.assert_close(model(batch["image"], batch, do).image, batch["image"], atol=1e-4, rtol=0)
    moved = model(batch["image"], batch, {"left_size": 2 * batch["left_size"]}).image
    assert not torch.allclose(moved, batch["image"], atol=1e-3)


def test_particles_of_mediators_share_an_abduction_and_answer_every_mediation(data):
    model, batch = make(data, conditional_prior=True)
    given = {name: batch[name] for name in model.parents.names}
    images = {}
    for mediation in ("total", "direct", "indirect"):
        nothing, moved = model.counterfactuals(
            batch["image"], given, [{}, {"left_size": "-1%"}], samples=3, mediation=mediation
        )
        assert nothing.difference.abs().max() < 1e-5
        assert moved.difference.abs().max() > 1e-5
        images[mediation] = moved.image
    assert not torch.equal(images["total"], images["direct"])


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_gradient_passes_the_frozen_judge_and_leaves_it_alone(data, conditional_prior):
    model, batch = make(data, conditional_prior=conditional_prior)
    guidances = [
        SegmentorGuidance(Segmentor(data.description, "monai.UNet", UNET)),
        RegressorGuidance(Regressor(data.description, (4, 8))),
    ]
    for guidance in guidances:
        model.zero_grad()
        guidance.train()
        answer = model(batch["image"], batch, {"left_size": 2 * batch["left_size"]})
        guidance_loss(guidance(answer.image), answer.values, model.parents, {}).backward()
        assert model.hvae.stem.weight.grad.abs().sum() > 0, "the encoder learns"
        assert model.hvae.head[-1].weight.grad.abs().sum() > 0, "the decoder learns"
        assert all(weight.grad is None for weight in guidance.parameters())
        assert not any(module.training for module in guidance.modules())
    assert NoGuidance()(batch["image"]) == {}


def test_soft_area_of_a_binary_mask_is_its_pixel_count(data):
    batch = data.dataset("val").read(torch.arange(3))
    expected = batch["mask"].flatten(2).sum(2) * 0.5**data.description.spatial_dims
    assert torch.equal(area(batch["mask"], batch["image"], [0.5] * data.description.spatial_dims), expected)
    with pytest.raises(ValueError, match="one entry for each"):
        area(batch["mask"], batch["image"], [1.0])


def test_judges_measure_every_structural_variable_and_survive_a_recipe(data):
    batch = data.dataset("val").read(torch.arange(3))
    for judge in (Segmentor(data.description, "monai.UNet", UNET), Regressor(data.description, (4, 8))):
        twin = build(judge.recipe)
        twin.load_state_dict(judge.state_dict())
        found, again = judge.eval().measure(batch["image"]), twin.eval().measure(batch["image"])
        assert set(found) == {"left_size", "right_size"}
        torch.testing.assert_close(found, again)


def test_sharper_temperature_moves_soft_areas_towards_hard_ones(data):
    judge = Segmentor(data.description, "monai.UNet", UNET).eval()
    image = data.dataset("val").read(torch.arange(3))["image"]
    hard = area((judge(image) > 0).float(), image, data.spacing)
    gaps = []
    for judge.temperature in (1.0, 0.5, 0.05):
        gaps.append((area(judge.probabilities(image), image, data.spacing) - hard).abs().mean())
    assert gaps[0] > gaps[1] > gaps[2]


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("monai.NoSuchNet", None, "unknown network 'monai.NoSuchNet'"),
        ("torchvision.x", None, "write monai.NAME or smp.NAME"),
        ("monai.UNet", {"depth": 3}, "does not take these options"),
    ],
)
def test_unknown_networks_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        Segmentor(Balls().description, network, options)


def test_smp_reads_two_dimensions_only():
    options = {"encoder_name": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    judge = Segmentor(Balls(size=32).description, "smp.Unet", options)
    assert judge(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)
    with pytest.raises(ValueError, match="reads 2-D images only"):
        Segmentor(Balls(spatial_dims=3).description, "smp.Unet", options)


def test_an_annealed_gate_opens_sooner_until_it_is_as_strict_as_ever():
    image, zero, there = torch.full((1, 1, 1), 0.5), torch.zeros(1, 1, 1), torch.full((1, 1, 1), 0.01)
    here, there = Pixels(zero, zero), Pixels(there.requires_grad_(), zero)
    gate, changes, slopes = Gated(0.1), [], []
    for share in (0.05, 0.5, 1.0):
        gate.anneal(share)
        drawn = gate(image, here, there).image
        (slope,) = torch.autograd.grad(drawn.sum(), there.loc)
        changes.append(float((drawn - image).detach().abs()))
        slopes.append(float(slope.abs()))
        assert torch.equal(gate(image, here, here).image, image), "however open, nothing asked changes nothing"
    assert slopes[0] > 2 * slopes[1] > 4 * slopes[2]
    assert changes[0] > changes[1] > changes[2]
    assert torch.equal(drawn, Gated(0.1)(image, here, there).image)


def test_gate_leaves_small_differences_alone_and_follows_large_ones():
    image, here = torch.full((1, 1, 3), 0.5), Pixels(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3))
    there = Pixels(torch.tensor([[[0.0, 0.01, -0.9]]]), torch.zeros(1, 1, 3))
    changed = (Gated(0.1)(image, here, there).image - image).flatten()
    assert changed[0] == 0
    assert changed[1].abs() < 0.01
    assert changed[2] == pytest.approx(-1.4, abs=0.03)
    with pytest.raises(ValueError, match="threshold must be positive"):
        Gated(0.0)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_gate_that_reaches_replaces_what_lies_beside_a_change_and_nothing_further(dims):
    zero = torch.zeros(1, 1, *[7] * dims)
    image, moved = torch.full_like(zero, 0.5), zero.clone()
    moved[..., 3] = -0.9
    here, there = Pixels(zero, zero), Pixels(moved, zero)
    changed = [(Gated(0.1, reach)(image, here, there).image - image).abs() > 0.1 for reach in (0, 1, 2)]
    assert [each.sum() for each in changed] == [7 ** (dims - 1) * pixels for pixels in (1, 3, 5)]
    assert torch.equal(Gated(0.1, 2)(image, here, here).image, image)
    with pytest.raises(ValueError, match="reach is a number of pixels, got -1"):
        Gated(reach=-1)


def test_standard_prediction_scales_the_abducted_noise():
    image = torch.tensor([[[0.5]]])
    here = Pixels(torch.tensor([[[0.3]]]), torch.zeros(1, 1, 1))
    there = Pixels(torch.tensor([[[-0.1]]]), torch.full((1, 1, 1), 2.0).log())
    assert Standard()(image, here, there).image.item() == pytest.approx(-0.1 + 2 * 0.2)


def test_one_variable_per_subject_is_asked_with_a_value_of_the_batch():
    values = {"a": torch.arange(64.0), "b": 100 + torch.arange(64.0)}
    for do in (sample_do(values, ["a", "b"]), fixed_do(values, ["a", "b"])):
        asked = torch.stack([~do[name].isnan() for name in do])
        assert asked.sum(0).tolist() == [1] * 64
        assert 0 < asked[0].sum() < 64
        assert all(set(do[name][~do[name].isnan()].tolist()) <= set(values[name].tolist()) for name in do)


@pytest.mark.parametrize("targets", ["uniform", "relative"])
def test_targets_fill_their_range_and_stay_inside_the_training_range(targets):
    torch.manual_seed(0)
    variables = {"a": Variable(low=10, high=20), "b": Variable(kind="binary")}
    values = {"a": torch.full((4000,), 12.0), "b": torch.arange(4000.0) % 2}
    do = Questions(targets, reach=0.25).draw(values, ["a", "b"], Parents(variables))
    asked = do["a"][~do["a"].isnan()]
    assert torch.stack([~do[name].isnan() for name in do]).sum(0).tolist() == [1] * 4000
    low, high = (10, 20) if targets == "uniform" else (10, 15)  # 12 +- 25 %, cut at 10
    assert asked.min() >= low
    assert asked.max() <= high
    assert asked.quantile(0.98) > 0.95 * high
    assert (asked == 10).any() == (targets == "relative")
    assert set(do["b"][~do["b"].isnan()].tolist()) == {0.0, 1.0}, "a binary variable takes another subject's value"
    for wrong in ({"targets": "normal"}, {"reach": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Questions(**wrong)


def test_unknown_variable_in_do_is_refused(data):
    model, batch = make(data)
    with pytest.raises(ValueError, match="unknown variable 'liver'"):
        model(batch["image"], batch, {"liver": batch["age"]})


def test_data_that_do_not_fit_the_model_are_refused():
    model, _ = make(Balls())
    with pytest.raises(ValueError, match="trained with spatial_dims 2, the data have 3"):
        model.check_fit(Balls(spatial_dims=3).description)


def test_every_guided_variable_is_scored_not_only_the_intervened_one(data):
    model, batch = make(data)
    target = {name: batch[name] for name in ("left_size", "right_size")}
    leaking = {**target, "right_size": target["right_size"] + model.parents["right_size"].std}
    assert guidance_loss(target, target, model.parents, {}).item() == 0
    assert guidance_loss(leaking, target, model.parents, {}).item() == pytest.approx(1, rel=1e-5)
    assert guidance_loss(leaking, target, model.parents, {"right_size": 3}).item() == pytest.approx(3, rel=1e-5)


def test_multiplier_rises_exactly_while_the_bound_is_broken():
    constraint = ElboConstraint(multiplier=0.1, step=0.5, damping=10)
    with pytest.raises(AssertionError, match="measure the bound"):
        constraint(torch.tensor(1.0))
    constraint.measure(torch.tensor(1.0))
    constraint.ascend(torch.tensor(1.4))
    assert constraint.multiplier.item() == pytest.approx(0.3)
    constraint.ascend(torch.tensor(-9.0))
    assert constraint.multiplier.item() == 0


@pytest.mark.parametrize("burst", [1e7, math.inf, math.nan])
def test_a_batch_that_bursts_does_not_weigh_for_the_rest_of_the_training(burst):
    constraint = ElboConstraint(multiplier=0.1, step=0.5)
    constraint.measure(torch.tensor(1.0))
    constraint.ascend(torch.tensor(burst))
    assert constraint.multiplier.item() == pytest.approx(0.6)


@pytest.mark.parametrize(("nelbo", "slope"), [(2.0, 11.0), (1.0, 1.0), (0.5, 0.0)])
def test_constraint_pushes_down_when_broken_and_never_up(nelbo, slope):
    constraint = ElboConstraint(multiplier=1.0, damping=10)
    constraint.measure(torch.tensor(1.0))
    value = torch.tensor(nelbo, requires_grad=True)
    constraint(value).backward()
    assert value.grad.item() == pytest.approx(slope)


def test_fixed_constraint_is_a_weight():
    constraint = ElboConstraint(multiplier=0.5, fixed=True)
    constraint.ascend(torch.tensor(100.0))
    assert constraint(torch.tensor(2.0)).item() == 1.0
