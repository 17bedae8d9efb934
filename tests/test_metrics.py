import math

import pytest
import torch

from segcft import metrics


def test_effectiveness_of_a_perfect_a_lazy_and_a_half_hearted_answer():
    before, target = torch.tensor([100.0, 200.0, 100.0]), torch.tensor([120.0, 150.0, 90.0])
    assert metrics.effectiveness(target, target, before, before) == (0, 0, 1)
    lazy = metrics.effectiveness(before, target, before, before)
    assert lazy.slope == 0
    assert lazy.mae == pytest.approx((20 + 50 + 10) / 3)
    assert lazy.mape == pytest.approx(100 * (20 / 120 + 50 / 150 + 10 / 90) / 3)
    half = metrics.effectiveness((before + target) / 2, target, before, before)
    assert half.slope == pytest.approx(0.5)


def test_slope_ignores_a_constant_bias_of_the_evaluator():
    before, target = torch.tensor([100.0, 200.0, 100.0]), torch.tensor([120.0, 150.0, 90.0])
    assert metrics.effectiveness(target + 7, target, before + 7, before).slope == pytest.approx(1)


def test_leakage_is_relative_to_the_measurement_before():
    assert metrics.leakage(torch.tensor([110.0, 95.0]), torch.tensor([100.0, 100.0])) == pytest.approx(7.5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_dilation_reaches_exactly_so_far(spatial_dims):
    mask = torch.zeros(1, *[9] * spatial_dims, dtype=torch.bool)
    mask[(0, *[4] * spatial_dims)] = True
    grown = metrics.dilate(mask, 2)
    assert int(grown.sum()) == 5**spatial_dims
    assert not grown[(0, *[1] * spatial_dims)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_locality_sees_only_changes_outside(spatial_dims):
    image = torch.zeros(1, 1, *[8] * spatial_dims)
    near = torch.zeros(1, *[8] * spatial_dims, dtype=torch.bool)
    near[:, :4] = True
    inside, outside = image.clone(), image.clone()
    inside[:, :, :4], outside[:, :, 4:] = 1, 0.25
    assert metrics.change_outside(image, inside, near) == 0
    assert metrics.change_outside(image, outside, near) == pytest.approx(0.25)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_truth_errors(spatial_dims):
    truth = torch.rand(2, 1, *[16] * spatial_dims) * 2 - 1
    near = torch.zeros(2, *[16] * spatial_dims, dtype=torch.bool)
    near[:, :8] = True
    exact = metrics.truth_errors(truth, truth, near)
    assert (exact["mae"], exact["mae_neighbourhood"]) == (0, 0)
    assert exact["ssim"] == pytest.approx(1)
    assert exact["psnr"] == pytest.approx(10 * math.log10(4e10), rel=1e-4)
    wrong = truth.clone()
    wrong[:, :, :8] += 0.1
    found = metrics.truth_errors(wrong, truth, near)
    assert found["mae"] == pytest.approx(0.05, rel=1e-4)
    assert found["mae_neighbourhood"] == pytest.approx(0.1, rel=1e-4)
    assert found["ssim"] < 1
