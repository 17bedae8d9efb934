"""Laws of flows, of shapes that follow the parents, and of the drawing that uses both."""

from dataclasses import replace

import pytest
import torch

from segcft.core.recipes import build
from segcft.counterfactual.prediction import Deformed, Sliding, Transported, Warped, film_window
from segcft.guidance.guidance import SegmentorGuidance
from segcft.guidance.judges import Segmentor
from segcft.guidance.shape_model import ShapeModel
from segcft.spatial.diffeomorphism import exponential, roughness, warp
from segcft.variables.regions import Region, neighbourhood
from tests.balls import Balls
from tests.counterfactual.test_model import UNET, make


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def data(request):
    return Balls(spatial_dims=request.param)


def smooth_field(dims, size=24, height=2.0):
    """A velocity that vanishes at the edges, (1, D, *S)."""
    axes = [torch.linspace(0, torch.pi, size).sin().square()] * dims
    bump = axes[0]
    for axis in axes[1:]:
        bump = bump[..., None] * axis
    return height * torch.stack([bump, *[-0.5 * bump] * (dims - 1)])[None]


@pytest.mark.parametrize("dims", [2, 3])
def test_no_velocity_moves_nothing_and_a_constant_one_translates(dims):
    image = torch.rand(2, 1, *[12] * dims)
    still = torch.zeros(2, dims, *[12] * dims)
    torch.testing.assert_close(exponential(still), still)
    torch.testing.assert_close(warp(image, still), image, atol=1e-5, rtol=0)
    for axis in range(dims):
        shift = still.clone()
        shift[:, axis] = 3.0
        moved = warp(image, exponential(shift))
        expected = image.roll(-3, 2 + axis)
        kept = [slice(None)] * 2 + [slice(0, 12)] * dims
        kept[2 + axis] = slice(0, 9)
        torch.testing.assert_close(moved[tuple(kept)], expected[tuple(kept)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_opposite_velocity_is_the_inverse_and_folds_nothing(dims):
    velocity = smooth_field(dims)
    there, back = exponential(velocity), exponential(-velocity)
    closed = there + warp(back, there)
    assert there.abs().max() > 1.5
    assert closed.abs().max() < 0.06, "pixels, by linear interpolation"
    for axis in range(dims):
        assert (1 + there[:, axis].diff(dim=1 + axis)).min() > 0, "order along an axis is kept"
    assert roughness(velocity) > roughness(velocity / 2) > roughness(torch.ones_like(velocity)) == 0


def transported(data, **options):
    model, batch = make(data, Transported(stage=1, **options))
    for weight in model.prediction.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return model, batch


def test_transport_vanishes_where_both_worlds_agree_and_learns_where_they_do_not(data):
    model, batch = transported(data)
    factual = {name: batch[name] for name in model.parents.names}
    same = model(batch["image"], batch, factual)
    assert torch.equal(same.image, batch["image"])
    answer = model(batch["image"], batch, {"left_size": 2 * batch["left_size"]})
    pixels = model.hvae.predict(answer.abduction, model.parents.encode(answer.values))
    assert model.prediction.velocity(answer.abduction.pixels, pixels).abs().max() > 0.01
    (answer.image.square().mean() + answer.cost).backward()
    assert all(
        weight.grad.abs().sum() > 0 for name, weight in model.prediction.named_parameters() if "bias" not in name
    )


@pytest.mark.parametrize("form", [Warped, Deformed, Sliding])
def test_anatomy_moves_only_where_both_worlds_differ_and_the_image_is_its_edit(data, form):
    model, batch = make(data, form(stage=1, fade=1))
    for weight in model.prediction.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    factual = {name: batch[name] for name in model.parents.names}
    same = model(batch["image"], batch, factual)
    assert torch.equal(same.image, batch["image"])
    assert not same.edit.velocity.any()
    answer = model(batch["image"], batch, {"left_size": 2 * batch["left_size"]})
    torch.testing.assert_close(answer.edit.apply(batch["image"]), answer.image)
    assert bool(answer.edit.paint.any()) is (form is not Warped)
    assert (answer.edit.gate is None) is (form is not Sliding)
    assert answer.edit.carries_masks
    (answer.image.square().mean() + answer.cost).backward()
    for part in (model.prediction.velocity, model.hvae.widen):
        grown = [weight.grad is not None and bool(weight.grad.any()) for weight in part.parameters()]
        assert any(grown), "learns through the flow"


def test_paint_costs(data):
    """Everything else that costs is switched off."""
    model, batch = make(data, Deformed(stage=1, price=2.0, smooth=0.0, still=0.0, agree=0.0))
    answer = model(batch["image"], batch, {"left_size": 2 * batch["left_size"]})
    assert answer.edit.paint.any()
    torch.testing.assert_close(answer.cost, 2 * answer.edit.paint.abs().mean())


@pytest.mark.parametrize("dims", [2, 3])
def test_tissue_moves_where_moving_explains_the_counterfactual_mean_better_than_staying(dims):
    form, shape = Sliding(evidence=0.1), [1, 1, *[8] * dims]
    much, none, some = (torch.full(shape, value) for value in (1.0, 0.0, 0.1))
    assert not form.gate(none, none).any(), "both worlds agree"
    assert not form.gate(much, some).any(), "the flow would drag along what stays"
    torch.testing.assert_close(form.gate(none, some), torch.full(shape, 0.5))
    assert float(form.gate(some, much).min()) > 0.98
    for wrong in ({"evidence": 0.0}, {"threshold": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be positive"):
            Sliding(**wrong)


def test_paint_below_the_threshold_is_hardly_paint():
    form = Deformed(threshold=0.1)
    left = torch.tensor([0.01, 0.1, 1.0]).view(1, 1, 1, 3)
    torch.testing.assert_close(form.paint(left).flatten(), torch.tensor([0.01 / 101, 0.05, 1 / 1.01]))
    with pytest.raises(ValueError, match="threshold must be positive"):
        Deformed(threshold=0.0)


def test_flows_rest_at_the_border_of_the_film_and_in_its_padding():
    image = torch.full((2, 1, 20, 16), -1.0)
    image[0, :, 4:15, 2:] = 0.2
    image[1] = 0.5
    weight = film_window(image, 3)
    assert not weight[0, :, :4].any()
    assert not weight[0, :, 15:].any()
    assert not weight[0, :, :, :2].any()
    assert (weight[0, 0, 8:11, 8:10] == 1).all()
    assert (weight[1, 0, 4:-4, 4:-4] == 1).all()
    assert weight[1, 0, 0].max() < 0.15
    assert torch.equal(film_window(image, 0), torch.ones_like(image))


def test_a_stage_that_the_decoder_does_not_have_is_refused_and_a_copy_keeps_its_weights(data):
    with pytest.raises(ValueError, match="stage 2 is none of the decoder's, which are 0 \\(finest\\) to 1"):
        make(data, Transported())
    model, _ = transported(data)
    weight = model.prediction.velocity.squeeze.weight
    assert model.replaced(None, None).prediction.velocity.squeeze.weight is weight
    twin = build(model.recipe)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.prediction.velocity.squeeze.weight, weight)


def test_shapes_follow_the_parents_and_keep_their_own_noise(data):
    """A ball's spread is determined by its size, its centroid by nothing."""
    data = Balls(size=32, spatial_dims=data.description.spatial_dims)
    batch = data.dataset("train").read(torch.arange(48))
    model = ShapeModel(data.description)
    assert not model.fitted
    measured = model.measure(batch["mask"])
    model.fit(measured, batch)
    assert model.fitted
    few = data.dataset("test").read(torch.arange(8))
    do = {"left_size": few["right_size"]}
    truth = model.measure(data.dataset("test").counterfactual(torch.arange(8), do)["mask"])
    found = model.counterfactual(model.measure(few["mask"]), few, {**few, **do})
    for name in model.names:
        # a third of a pixel; a spread is a logarithm
        torch.testing.assert_close(found[name], truth[name], atol=0.35 if "centroid" in name else 0.06, rtol=0)
    assert model.distance(found, truth) < model.distance(model.measure(few["mask"]), truth)
    torch.testing.assert_close(model.counterfactual(measured, batch, batch), measured)


def test_the_guidance_measures_shape_in_the_same_pass_and_keeps_it_in_its_checkpoint(data):
    batch = data.dataset("val").read(torch.arange(3))
    judge = Segmentor(data.description, "monai.UNet", UNET)
    plain, shaped = SegmentorGuidance(judge), SegmentorGuidance(judge, shape=True)
    found = shaped(batch["image"])
    assert {name: found[name] for name in plain.names}.keys() == plain(batch["image"]).keys()
    assert len(found) == 2 + 4 * data.description.spatial_dims
    assert any("coefficients" in name for name in shaped.state_dict())


class Saying(Segmentor):
    """Outlines what is true of the batch, under a veil that grows with every look, as if structures grew."""

    def __init__(self, description):
        super().__init__(description, "monai.UNet", UNET)
        self.masks, self.seen = None, []

    @classmethod
    def of(cls, data, masks):
        judge = cls(data.description)
        judge.masks = masks
        return judge

    def probabilities(self, image):
        self.seen.append(image)
        veil = 0.002 * len(self.seen)
        return self.masks + veil * (1 - self.masks)


@pytest.mark.filterwarnings("ignore:do\\(")
@torch.no_grad()
def test_corrections_ask_again_for_what_the_segmentor_misses(data):
    """Only of what was to move; a judge that finds little progress drives it half as far again each time."""
    model, batch = make(data)
    values = {name: batch[name] for name in model.parents.names}
    with pytest.raises(ValueError, match="the checkpoint holds none"):
        model.open(batch["image"], values).answer(values, corrections=1)
    for corrections in (0, 1, 3):
        model.segmentor = Saying.of(data, batch["mask"])
        subject = model.open(batch["image"], values)
        do = subject.act({"left_size": 7 * batch["left_size"]})  # out of the reach of the veil
        found = subject.answer(do, corrections=corrections, confined=False)
        pa, asked = (model.parents.encode(each) for each in (values, do))
        asked = asked + corrections * (0.5 * (asked - pa)).clamp(-1, 1)
        expected = model.draw(subject.image, subject.abduction(), asked).edit
        torch.testing.assert_close(found.edit, expected)
        assert found.values is do, "what was asked for stays on record"
    same = subject.answer(values, corrections=2)
    assert torch.equal(same.image, batch["image"]), "a null intervention is not corrected"


@pytest.mark.filterwarnings("ignore:do\\(")
@torch.no_grad()
def test_confined_answers_change_the_neighbourhood_of_what_moves_and_nothing_else(data):
    model, batch = make(data)
    values = {name: batch[name] for name in model.parents.names}
    model.segmentor = Saying.of(data, batch["mask"])
    subject = model.open(batch["image"], values)
    weight = neighbourhood(batch["mask"][:, 0] > 0.5, batch["image"])
    far, near = weight == 0, weight == 1
    assert far.any()
    assert near.any()
    for do, elsewhere in (({"left_size": 2 * batch["left_size"]}, True), ({"age": batch["age"] + 9}, False)):
        free, held = (subject.answer(subject.act(do), corrections=0, confined=each) for each in (False, True))
        assert (free.image != batch["image"])[far].any()
        assert bool((held.image == batch["image"])[far].all()) is elsewhere, "age may change the whole image"
        torch.testing.assert_close(held.image[near], free.image[near])

    half = replace(model.parents["left_size"], region=Region(0, 0.5, "x"))
    do, part = subject.act({"left_size": 2 * batch["left_size"]}), torch.arange(16) < 8
    for variable, allowed in (
        (half, (batch["mask"][:, 0] > 0.5) & part),
        (replace(half, region=None, carries="right"), batch["mask"].amax(1) > 0.5),
    ):
        model.parents.variables["left_size"] = variable
        held = subject.answer(do, corrections=0, confined=True)
        outside = neighbourhood(allowed, batch["image"]) == 0
        assert (held.image != batch["image"])[~outside].any()
        assert torch.equal(held.image[outside], batch["image"][outside])


@pytest.mark.filterwarnings("ignore:do\\(")
@torch.no_grad()
@pytest.mark.parametrize("moves", [False, True])
def test_corrections_measure_the_answer_as_it_is_given(data, moves):
    model, batch = make(data)
    if moves:
        model = model.replaced(Warped(stage=1), None).eval()
        for weight in model.prediction.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    values = {name: batch[name] for name in model.parents.names}
    model.segmentor = Saying.of(data, batch["mask"])
    subject = model.open(batch["image"], values)
    do = subject.act({"left_size": 7 * batch["left_size"]})
    free = subject.answer(do, corrections=0, confined=False).seen
    first = subject.answer(do, corrections=0, confined=True).seen
    model.segmentor.seen.clear()
    last = subject.answer(do, corrections=1, confined=True).seen
    before, after = model.segmentor.seen[-2:]
    assert torch.equal(before, first if moves else free), "a flow is confined before the segmentor sees it"
    assert torch.equal(after, last), "nearer, and so kept"
    assert not torch.equal(last, first)
