"""Laws of the image mechanism, in two and three dimensions."""

import math

import pytest
import torch

from segcft.hvae import HVAE, Normal, Stage
from segcft.likelihoods import DiscretisedGaussian, Gaussian
from segcft.recipes import build

STAGES = [Stage(16, 8, 0), Stage(8, 16, 1, 2), Stage(4, 16, 1), Stage(1, 16, 2, 4)]


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
    again = model.predict(found.latents, pa)
    torch.testing.assert_close(again.loc, found.pixels.loc)
    torch.testing.assert_close(again.log_scale, found.pixels.log_scale)
    assert not torch.allclose(model.predict(found.latents, pa + 1).loc, again.loc)


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
            model._top_down(parents, lambda block, depth, state, prior, pa, take=take: take.append(prior) or prior.mean)
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
        ([Stage(16, 8, 1), Stage(8, 8, 1)], "no stage has latents"),
        ([Stage(16, 8, 1), Stage(5, 8, 1, 2)], "does not divide"),
        ([Stage((16, 16, 16), 8, 1, 2)], "does not have 2 axes"),
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
    model = HVAE(3, 1, 2, [Stage((8, 16, 16), 8, 0), Stage((4, 8, 8), 8, 1), Stage((2, 2, 2), 8, 1, 2)])
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
