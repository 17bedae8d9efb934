"""Laws of the image mechanism, in two and three dimensions."""

import math

import pytest
import torch

from segcft.core.recipes import build
from segcft.hvae.hvae import HVAE
from segcft.hvae.latents import Belief, Normal
from segcft.hvae.likelihoods import DiscretisedGaussian, Gaussian
from segcft.hvae.stages import Stage

STAGES = [Stage(8, 0, resolution=16), Stage(16, 1, 2), Stage(16, 1), Stage(16, 2, 4, resolution=1)]


def make(spatial_dims, **options):
    torch.manual_seed(0)
    model = HVAE(spatial_dims, 1, 3, STAGES, **options)
    for weight in model.parameters():  # wake the zero-initialised heads: laws must hold for any weights
        weight.data += 0.05 * torch.randn_like(weight)
    return model, torch.rand(2, 1, *[16] * spatial_dims) * 2 - 1, torch.randn(2, 3)


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
    with pytest.raises(ValueError, match="mediation must be one of total, direct, indirect, got 'none'"):
        model.predict(found, pa, "none")


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("mixing", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_mediators_stay_under_the_same_parents_and_follow_others(spatial_dims, mixing, temperature):
    model, image, pa = make(spatial_dims, conditional_prior=True, mixing=mixing)
    found = model.abduct(image, pa, temperature)
    for before, after in zip(found.latents, model.mediate(found, pa)[0], strict=True):
        assert torch.equal(before, after)
    for before, after in zip(found.latents, model.mediate(found, pa + 1)[0], strict=True):
        assert torch.equal(before, after) is (mixing == 1)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_mediators_carry_their_noise_down_the_counterfactual_chain(spatial_dims):
    """Redo the chain latent by latent: the prior of each sees the new parents and the counterfactual latents above."""
    model, image, pa = make(spatial_dims, conditional_prior=True, mixing=0.0)
    found = model.abduct(image, pa)
    moved, _ = model.mediate(found, pa + 1)
    for i, (latent, belief) in enumerate(zip(found.latents, found.beliefs, strict=True)):
        priors = []
        given = iter(moved[:i])

        def follow(place, prior, posterior, given=given, priors=priors):
            priors.append(prior)
            return next(given, prior.mean)

        model._top_down(pa + 1, follow)
        noise = (latent - belief.prior.mean) / belief.prior.log_std.exp()
        torch.testing.assert_close(moved[i], priors[i].mean + priors[i].log_std.exp() * noise)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_latents_of_a_blind_model_know_neither_parents_nor_brightness(spatial_dims):
    model, image, pa = make(spatial_dims, blind=True)
    found = model.abduct(image, pa, temperature=0.0)
    assert torch.equal(model.predict(found, pa).loc, found.pixels.loc)
    assert not torch.allclose(model.predict(found, pa + 1).loc, found.pixels.loc)
    other, brighter = model.abduct(image, pa + 1, temperature=0.0), model.abduct(image / 2 + 0.3, pa, temperature=0.0)
    for latent, under_others, of_brighter in zip(found.latents, other.latents, brighter.latents, strict=True):
        assert torch.equal(latent, under_others)
        assert (latent - of_brighter).abs().max() < 0.2 * latent.abs().max()
    seeing, idle = make(spatial_dims)[0], []
    assert not torch.equal(seeing.abduct(image, pa, 0.0).latents[0], seeing.abduct(image, pa + 1, 0.0).latents[0])
    for each in (seeing, model):
        each.abduct(image, pa).elbo.nelbo().mean().backward()
        idle.append([name for name, weight in each.named_parameters() if weight.grad is None])
    assert idle[0] == idle[1]


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_mixing_moves_neither_samples_nor_the_bound(conditional_prior):
    found = []
    for mixing in (0.0, 1.0):
        model, image, pa = make(2, conditional_prior=conditional_prior, mixing=mixing)
        torch.manual_seed(1)
        found.append((model.sample(pa).loc, model.abduct(image, pa).elbo.nelbo()))
    assert all(torch.equal(here, there) for here, there in zip(*found, strict=True))


def test_mediators_keep_the_spread_of_their_distribution():
    """Particles of the factual mixture become particles of the counterfactual one."""
    torch.manual_seed(0)
    draws = torch.ones(50_000, 1)
    q, p, star = (Normal(mean * draws, log_std * draws) for mean, log_std in ((1, -1), (0, 0.5), (3, 1)))
    for mixing in (0.0, 0.5, 1.0):
        here, there = q.mixed(p, mixing), q.mixed(star, mixing)
        moved = Belief(p, q).moved(here.sample(1.0), star, mixing)
        assert moved.mean().item() == pytest.approx(there.mean[0].item(), abs=0.1)
        assert moved.std().item() == pytest.approx(there.log_std[0].exp().item(), rel=0.02)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("conditional_prior", [False, True])
def test_mediation_opens_the_ways_to_the_image(spatial_dims, conditional_prior):
    model, image, pa = make(spatial_dims, conditional_prior=conditional_prior)
    found = model.abduct(image, pa)
    total, direct, indirect = (model.predict(found, pa + 1, way).loc for way in ("total", "direct", "indirect"))
    assert torch.equal(direct, model._decode(found.latents, pa + 1).loc)
    assert torch.equal(indirect, model._decode(model.mediate(found, pa + 1)[0], pa).loc)
    assert not torch.allclose(direct, found.pixels.loc)
    assert torch.equal(total, direct) is not conditional_prior, "exogenous latents mediate nothing"
    assert torch.equal(indirect, found.pixels.loc) is not conditional_prior


@pytest.mark.parametrize("mixing", [0.0, 0.5, 1.0])
def test_a_counterfactual_through_mediators_teaches_the_encoder_and_the_decoder(mixing):
    model, image, pa = make(2, conditional_prior=True, mixing=mixing)
    model.predict(model.abduct(image, pa, 0.0), pa + 1).loc.square().sum().backward()
    for part in (model.stem, model.embed, model.decoder[-1][0].prior, model.decoder[-1][0].posterior, model.head):
        for weight in part.parameters():
            assert weight.grad.isfinite().all()
            assert weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="it cannot be combined with conditional_prior"):
        make(2, conditional_prior=True, blind=True)
    with pytest.raises(ValueError, match="mixing must lie between 0 and 1"):
        make(2, mixing=1.5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_latents_follow_the_stages_and_samples_have_the_image_shape(spatial_dims):
    model, image, pa = make(spatial_dims)
    found = model.abduct(image, pa)
    assert [z.shape for z in found.latents] == [(2, 4, *[1] * spatial_dims)] * 2 + [(2, 2, *[8] * spatial_dims)]
    assert found.elbo.kl.shape == (2, 3)
    assert (found.elbo.kl > 0).all()
    assert model.sample(pa).loc.shape == image.shape


def test_exogenous_prior_does_not_see_the_parents_and_the_conditional_one_does():
    for conditional in (False, True):
        model, _, pa = make(2, conditional_prior=conditional)
        drawn = []
        for parents in (pa, pa + 1):
            torch.manual_seed(1)
            take = []
            model._top_down(parents, lambda place, prior, posterior, take=take: take.append(prior) or prior.mean)
            drawn.append(take[-1].mean)
        assert torch.allclose(*drawn) is not conditional


def test_temperature_zero_is_deterministic():
    model, image, pa = make(2)
    assert torch.equal(model.abduct(image, pa, 0.0).latents[0], model.abduct(image, pa, 0.0).latents[0])
    assert not torch.equal(model.abduct(image, pa).latents[0], model.abduct(image, pa).latents[0])


def test_kl_matches_torch_and_nelbo_weighs_it():
    q, p = Normal(torch.randn(2, 3, 4), torch.randn(2, 3, 4)), Normal(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    reference = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(n.mean, n.log_std.exp()) for n in (q, p))
    )
    torch.testing.assert_close(q.kl(p), reference.sum((1, 2)))
    model, image, pa = make(2)
    elbo = model.abduct(image, pa).elbo
    torch.testing.assert_close(elbo.nelbo(3.0), elbo.nll + 3 * elbo.kl.sum(1))


def test_every_weight_learns():
    model, image, pa = make(2)
    model.abduct(image, pa).elbo.nelbo().sum().backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().sum()]
    # features and latents of the last stochastic block have no later prior to inform
    assert all("remember" in name for name in silent), silent


def test_stays_finite_and_close_in_bfloat16():
    model, image, pa = make(2)
    expected = model.abduct(image, pa, 0.0).elbo.nelbo()
    with torch.autocast("cpu", torch.bfloat16):
        found = model.abduct(image, pa, 0.0)
    assert found.pixels.loc.dtype == torch.float32
    torch.testing.assert_close(found.elbo.nelbo(), expected, rtol=0.05, atol=0.05)


def test_recipe_rebuilds_the_same_network():
    model, image, pa = make(3, likelihood=Gaussian(scale=0.1))
    twin = build(model.recipe)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.abduct(image, pa, 0.0).elbo.nll, model.abduct(image, pa, 0.0).elbo.nll)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(8, 1, resolution=16), Stage(8, 1)], "no stage has latents"),
        ([Stage(8, 1, resolution=16), Stage(8, 1, 2, resolution=5)], "does not divide"),
        ([Stage(8, 1, 2, resolution=(16, 16, 16))], "does not have 2 axes"),
    ],
)
def test_impossible_stages_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        HVAE(2, 1, 3, stages)


def test_image_of_another_size_is_refused():
    model, _, pa = make(2)
    with pytest.raises(ValueError, match=r"reads images of \(16, 16\), got \(8, 8\)"):
        model.abduct(torch.zeros(2, 1, 8, 8), pa)


def test_anisotropic_volumes_work():
    model = HVAE(
        3,
        1,
        2,
        [Stage(8, 0, resolution=(8, 16, 16)), Stage(8, 1, resolution=(4, 8, 8)), Stage(8, 1, 2, resolution=(2, 2, 2))],
    )
    assert model.sample(torch.zeros(1, 2)).loc.shape == (1, 1, 8, 16, 16)


@pytest.mark.parametrize("scale", [0.01, 0.1, 2.0])
@pytest.mark.parametrize("mean", [-1.0, -0.3, 0.7])
def test_discretised_gaussian_sums_to_one_over_256_levels(mean, scale):
    likelihood = DiscretisedGaussian(scale=scale)
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64).view(1, 1, -1)
    pixels = likelihood.pixels(torch.full_like(levels, mean), torch.zeros_like(levels))
    assert float(torch.exp(-likelihood.nll(levels, pixels).double()).sum()) == pytest.approx(1, abs=2e-3)


def test_badly_explained_pixels_keep_a_finite_gradient():
    loc = torch.full((1, 1, 1), 0.9, requires_grad=True)
    likelihood = DiscretisedGaussian(scale=0.01)
    loss = likelihood.nll(torch.full((1, 1, 1), -0.5), likelihood.pixels(loc, torch.zeros(1, 1, 1))).sum()
    loss.backward()
    assert math.isfinite(loss.item())
    assert 0 < loc.grad.item() < 1e6


def test_gaussian_matches_torch_and_respects_its_floor():
    likelihood = Gaussian(min_scale=0.05)
    pixels = likelihood.pixels(torch.randn(2, 1, 4), torch.full((2, 1, 4), -100.0))
    assert torch.allclose(pixels.log_scale, torch.tensor(math.log(0.05)))
    image = torch.randn(2, 1, 4)
    reference = -torch.distributions.Normal(pixels.loc, pixels.log_scale.exp()).log_prob(image)
    torch.testing.assert_close(likelihood.nll(image, pixels), reference)
