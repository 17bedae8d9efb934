"""Laws of the HVAE that equals the public one; ``benchmarks/parity.py`` holds it against the public code itself."""

import math

import pytest
import torch
import torch.nn.functional as F

from segcft.core.recipes import build
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.prediction import Gated, Standard, Transported
from segcft.hvae.causal_gen import ParityHVAE
from segcft.hvae.causal_gen_weights import load_public_weights
from segcft.hvae.likelihoods import CappedDiscretisedGaussian
from segcft.hvae.stages import Stage
from segcft.variables.variables import DataDescription, Variable

STAGES = [Stage(8, 1, resolution=16), Stage(12, 2, 3), Stage(16, 2, 3), Stage(20, 2, 3, resolution=1)]


def make(spatial_dims=2, **options):
    torch.manual_seed(0)
    model = ParityHVAE(spatial_dims, 1, 3, options.pop("stages", STAGES), **options)
    for weight in model.parameters():  # wake what starts at zero: laws must hold for any weights
        weight.data += 0.05 * torch.randn_like(weight)
    return model, torch.rand(2, 1, *[16] * spatial_dims) * 2 - 1, torch.randn(2, 3)


@pytest.mark.parametrize(
    ("preset", "parents", "conditional_prior", "weights"),
    [
        ("morphomnist32", 12, False, 2_041_122),
        ("morphomnist32", 12, True, 2_047_074),
        ("mimic192", 6, False, 7_976_658),
    ],
)
def test_presets_have_the_published_number_of_weights(preset, parents, conditional_prior, weights):
    model = ParityHVAE(2, 1, parents, preset, conditional_prior=conditional_prior)
    assert sum(weight.numel() for weight in model.parameters()) == weights


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("conditional_prior", [False, True])
def test_prediction_under_the_same_parents_repeats_the_abduction(spatial_dims, conditional_prior):
    model, image, pa = make(spatial_dims, conditional_prior=conditional_prior)
    found = model.abduct(image, pa)
    for mediation in ("total", "direct", "indirect"):
        again = model.predict(found, pa, mediation)
        assert torch.equal(again.loc, found.pixels.loc)
        assert torch.equal(again.log_scale, found.pixels.log_scale)
    assert not torch.allclose(model.predict(found, pa + 1).loc, found.pixels.loc)
    moved, _ = model.mediate(found, pa + 1)
    assert all(torch.equal(*pair) is not conditional_prior for pair in zip(found.latents, moved, strict=True))


@pytest.mark.parametrize("conditional_prior", [False, True])
@pytest.mark.parametrize("prediction", [Standard, Gated, Transported])
def test_a_null_intervention_returns_the_image(conditional_prior, prediction):
    hvae, image, _ = make(conditional_prior=conditional_prior)
    variables = {name: Variable(mean=50.0, std=20.0, low=0.0, high=99.0) for name in ("age", "height", "weight")}
    model = CounterfactualModel(DataDescription(variables, [], [1.0, 1.0]), hvae, prediction())
    values = {name: torch.tensor([40.0, 60.0]) for name in variables}
    torch.testing.assert_close(model(image, values, {}).image, image)
    assert not torch.allclose(model(image, values, {"age": torch.tensor([90.0, 10.0])}).image, image)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_latents_follow_the_stages_and_a_stage_without_them_is_deterministic(spatial_dims):
    model, image, pa = make(spatial_dims)
    found = model.abduct(image, pa)
    assert [z.shape[1:] for z in found.latents] == [(3, *[side] * spatial_dims) for side in (1, 1, 4, 4, 8, 8)]
    assert found.elbo.kl.shape == (2, 6)
    assert (found.elbo.kl > 0).all()
    assert [state.shape[1] for state in reversed(found.pixels.states)] == model.widths
    torch.manual_seed(1)
    pixels = model.sample(pa)
    assert pixels.loc.shape == image.shape
    assert not torch.equal(pixels.loc, model.sample(pa).loc)


def test_exogenous_latents_do_not_see_the_parents_and_mediators_do():
    for conditional in (False, True):
        model, _, pa = make(conditional_prior=conditional)
        drawn = []
        for parents in (pa, pa + 1):
            take = []
            model._top_down(parents, lambda place, prior, posterior, take=take: take.append(prior) or prior.mean)
            drawn.append(take)
        same = [torch.equal(one.mean, other.mean) for one, other in zip(*drawn, strict=True)]
        assert same == [not conditional] * 6


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_every_weight_learns(conditional_prior):
    model, image, pa = make(conditional_prior=conditional_prior)
    model.abduct(image, pa).elbo.nelbo().sum().backward()
    silent = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().sum()}
    # no prior comes after the last block
    assert silent == {"decoder.0.0.remember.weight", "decoder.0.0.remember.bias"}


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_a_counterfactual_teaches_the_encoder_and_the_decoder(conditional_prior):
    model, image, pa = make(conditional_prior=conditional_prior)
    model.predict(model.abduct(image, pa), pa + 1).loc.square().sum().backward()
    for part in (model.stem, model.encoder, model.narrow, model.decoder[-1][0].posterior, model.maps, model.start):
        weights = [part] if isinstance(part, torch.Tensor) else list(part.parameters())
        assert all(weight.grad.isfinite().all() and weight.grad.abs().sum() > 0 for weight in weights)


def test_shifts_equal_the_concatenation_of_tiled_parents():
    model, _, pa = make(conditional_prior=True)
    block = model.decoder[1][0]
    state, memory, encoded = torch.randn(3, 2, 12, 8, 8)
    latent, tiled = torch.randn(2, 3, 8, 8), pa[..., None, None].expand(2, 3, 8, 8)

    def one(inputs, first, *more):
        layers = [layer.weight.flatten(1) for layer in (first, *more)]
        return F.conv2d(torch.cat(inputs, 1), torch.cat(layers, 1)[..., None, None], first.bias)

    def rest(part, hidden):
        return part.expand(F.gelu(part.second(F.gelu(part.first(F.gelu(hidden))))))

    hidden = one([F.gelu(memory), F.gelu(tiled)], block.prior.squeeze, block.prior_shift)
    mean, log_std, features = rest(block.prior, hidden).split([3, 3, 12], 1)
    prior, found = block.prior_of(state, memory, pa)
    for ours, plain in zip((*prior, found), (mean, log_std, features), strict=True):
        torch.testing.assert_close(ours, plain)

    inputs = [F.gelu(state), F.gelu(tiled), F.gelu(encoded)]
    hidden = one(inputs, block.posterior.squeeze, block.posterior_shift, block.look)
    plain = rest(block.posterior, hidden).chunk(2, 1)
    for ours, theirs in zip(block.posterior_of(state, memory, block.look(F.gelu(encoded)), pa), plain, strict=True):
        torch.testing.assert_close(ours, theirs)

    written = one([latent, tiled], block.write, block.write_shift)
    after = block.absorb(state, latent, features, pa)
    torch.testing.assert_close(after, block.residual(state + features + written))


def test_stays_finite_and_close_in_bfloat16():
    model, image, pa = make(conditional_prior=True)
    expected = model.abduct(image, pa, 0.0).elbo.nelbo()
    with torch.autocast("cpu", torch.bfloat16):
        found = model.abduct(image, pa, 0.0)
    assert found.pixels.loc.dtype == torch.float32
    torch.testing.assert_close(found.elbo.nelbo(), expected, rtol=0.05, atol=0.05)


def test_recipe_names_the_preset_and_rebuilds_the_network():
    model = ParityHVAE(2, 1, 2, "morphomnist32", conditional_prior=True)
    assert model.recipe["init_args"]["stages"] == "morphomnist32"
    twin = build(model.recipe)
    twin.load_state_dict(model.state_dict())
    image, pa = torch.rand(1, 1, 32, 32) * 2 - 1, torch.randn(1, 2)
    assert torch.equal(twin.abduct(image, pa, 0.0).elbo.nll, model.abduct(image, pa, 0.0).elbo.nll)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("morphomnist64", "unknown preset 'morphomnist64'; there are morphomnist32, mimic192"),
        ([Stage(8, 0, resolution=16), Stage(8, 1, 2)], "every stage needs a block and 4 channels"),
        ([Stage(3, 1, resolution=16), Stage(8, 1, 2)], "every stage needs a block and 4 channels"),
        ([Stage(8, 1, resolution=16), Stage(8, 1)], "no stage has latents"),
    ],
)
def test_impossible_stages_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        ParityHVAE(2, 1, 3, stages)


def put(state, name, *layers):
    weights = [layer.weight if layer.weight.dim() == 4 else layer.weight[..., None, None] for layer in layers]
    state.update({f"{name}.weight": torch.cat(weights, 1), f"{name}.bias": layers[0].bias})


def put_block(state, name, part, *more):
    for place, layers in enumerate([(part.squeeze, *more), (part.first,), (part.second,), (part.expand,)]):
        put(state, f"{name}.conv.{2 * place + 1}", *layers)
    if hasattr(getattr(part, "skip", None), "weight"):
        put(state, f"{name}.width_proj", part.skip)


def put_decoder_block(state, name, ours):
    put_block(state, f"{name}.prior", ours.prior, *([ours.prior_shift] if ours.prior_shift else []))
    if ours.stochastic:
        put_block(state, f"{name}.posterior", ours.posterior, ours.posterior_shift, ours.look)
    put(state, f"{name}.z_proj", ours.write, ours.write_shift)
    put(state, f"{name}.z_feat_proj", ours.remember)
    put_block(state, f"{name}.conv", ours.residual)


def published(model):
    """The same weights under the public names: what belongs together is concatenated."""
    state, steps = {}, [*model.encoder[0]]
    put(state, "encoder.stem", model.stem)
    for way, stage in zip(model.narrow, list(model.encoder)[1:], strict=True):
        steps += [way, *stage]
    for place, step in enumerate(steps):
        put_block(state, f"encoder.blocks.{place}", step)
    for place, block in enumerate([each for stage in reversed(model.decoder) for each in stage]):
        put_decoder_block(state, f"decoder.blocks.{place}", block)
    state |= {f"decoder.bias.{k}": each for k, each in enumerate([model.start, *reversed(list(model.maps))])}
    for k, name in enumerate(("x_loc", "x_logscale")):
        state[f"likelihood.{name}.weight"] = model.head.weight[k : k + 1]
        state[f"likelihood.{name}.bias"] = model.head.bias[k : k + 1]
    return {name: weight.detach().clone() for name, weight in state.items()}


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_public_weights_are_read_back_as_they_were(conditional_prior):
    model, _, _ = make(conditional_prior=conditional_prior)
    torch.manual_seed(5)
    other = ParityHVAE(2, 1, 3, STAGES, conditional_prior=conditional_prior)
    load_public_weights(other, published(model))
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_public_weights_that_do_not_fit_are_named():
    model, _, _ = make()
    state = published(model)
    lacking = {name: weight for name, weight in state.items() if name != "decoder.blocks.2.z_proj.bias"}
    with pytest.raises(ValueError, match=r"lack 'decoder.blocks.2.z_proj.bias'"):
        load_public_weights(model, lacking)
    with pytest.raises(ValueError, match=r"1 public weights have no place here, such as likelihood.channel_coeffs"):
        load_public_weights(model, {**state, "likelihood.channel_coeffs": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"posterior.conv.1' reads 43 channels, not 44: other parents\?"):
        load_public_weights(ParityHVAE(2, 1, 4, STAGES), state)
    with pytest.raises(ValueError, match=r"'encoder.stem.weight': \(8, 1, 5, 5\) does not fit \(8, 1, 7, 7\)"):
        load_public_weights(model, {**state, "encoder.stem.weight": torch.zeros(8, 1, 5, 5)})


@pytest.mark.parametrize("log_scale", [-9.0, -3.0, -1.0, 1.0])
def test_capped_likelihood_equals_the_plain_difference_of_distribution_functions(log_scale):
    likelihood = CappedDiscretisedGaussian()
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64).view(1, 1, -1)
    loc = torch.full_like(levels, 0.1)
    found = likelihood.nll(levels, likelihood.pixels(loc, torch.full_like(levels, log_scale))).double()

    def below(edge):
        y = (edge - loc) / math.exp(log_scale)
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

    upper, lower = below(levels + 1 / 255), below(levels - 1 / 255)
    upper[..., -1], lower[..., 0] = 1, 0
    mass = upper - lower
    clear = mass > 1e-9  # a difference of numbers near 1 is no measure below
    torch.testing.assert_close(found[clear], -mass[clear].log(), rtol=1e-4, atol=1e-4)
    assert found.max() <= -math.log(1e-12) + 1e-5
    assert float(mass.sum()) == pytest.approx(1)


def test_a_capped_pixel_costs_the_cap_and_teaches_nothing():
    likelihood = CappedDiscretisedGaussian(floor=1e-6)
    loc = torch.tensor([[[0.9, 0.0]]], requires_grad=True)
    loss = likelihood.nll(torch.tensor([[[-0.5, 0.001]]]), likelihood.pixels(loc, torch.full((1, 1, 2), -4.0)))
    loss.sum().backward()
    assert loss[0, 0, 0].item() == pytest.approx(-math.log(1e-6))
    assert loc.grad[0, 0, 0] == 0
    assert loc.grad[0, 0, 1] != 0
    pixels = likelihood.pixels(loc, torch.full((1, 1, 2), -20.0))
    assert (pixels.log_scale == -9).all()
    with pytest.raises(ValueError, match="floor must lie between 0 and 1, got 0"):
        CappedDiscretisedGaussian(floor=0)
