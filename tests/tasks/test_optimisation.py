"""The optimiser's settings, and when a training counts as diverged."""

import math

import pytest
import torch

from benchmarks.pretraining_stability import Course, changed, recipe, table
from segcft.tasks import Optimisation


def test_settings_reach_the_optimiser():
    optimiser = Optimisation(lr=0.02, beta2=0.95).optimiser([torch.nn.Parameter(torch.zeros(3))], fused=False)
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.95)
    assert optimiser.param_groups[0]["lr"] == 0.02
    with pytest.raises(ValueError, match="beta2 must be in"):
        Optimisation(beta2=1.0)


def test_a_smaller_beta2_bounds_the_step_after_a_gradient_that_grows():
    """Of a gradient that grows a thousandfold after many small ones, the first step by Adam's usual decay is long."""
    steps = {}
    for beta2 in (0.999, 0.95):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimiser = Optimisation(lr=1.0, weight_decay=0.0, beta2=beta2).optimiser([weight], fused=False)
        for gradient in [1e-3] * 300 + [1.0] * 3:
            before, weight.grad = weight.detach().clone(), torch.tensor([gradient])
            optimiser.step()
        steps[beta2] = float((weight.detach() - before).abs())
    assert steps[0.95] < 1.2 < 2 < steps[0.999]


def course(nelbo, seed=0):
    return Course("films", "shipped", seed, 1.0, nelbo, [1.0] * len(nelbo))


def test_a_training_that_rises_far_above_its_best_has_diverged():
    falling = [1.0 - 0.01 * step for step in range(200)]
    assert not course(falling).diverged
    assert course(falling[:100] + [2.0] * 60 + falling[100:]).diverged
    assert course([*falling, math.nan]).diverged
    assert "| films | shipped | 1 of 2 |" in table([course(falling), course([*falling, math.nan], 1)])


def test_settings_of_a_shipped_experiment_are_replaced():
    config = recipe("chexpert", ["chexpert.source.root=elsewhere"])
    assert config["data"]["init_args"]["source"]["init_args"]["root"] == "elsewhere"
    half = changed(config, "lr=x0.5,beta2=0.95,gradient_clip_val=10")
    assert half["model"]["init_args"]["optimisation"]["lr"] == config["model"]["init_args"]["optimisation"]["lr"] / 2
    assert half["model"]["init_args"]["optimisation"]["beta2"] == 0.95
    assert half["trainer"]["gradient_clip_val"] == 10
    assert recipe("chexpert:size_128", [])["data"]["init_args"]["source"]["init_args"]["size"] == 128
