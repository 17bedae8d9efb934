import math

import pytest
import torch

from segcft.evaluation import metrics
from segcft.variables.regions import dilate


def test_percent_is_relative_and_positive():
    found = metrics.percent(torch.tensor([10.0, -5.0]), torch.tensor([100.0, 100.0]))
    assert found.tolist() == [10, 5]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_dilation_reaches_exactly_so_far(spatial_dims):
    mask = torch.zeros(1, *[9] * spatial_dims, dtype=torch.bool)
    mask[(0, *[4] * spatial_dims)] = True
    grown = dilate(mask, 2)
    assert int(grown.sum()) == 5**spatial_dims
    assert not grown[(0, *[1] * spatial_dims)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_locality_sees_only_changes_outside(spatial_dims):
    image = torch.zeros(1, 1, *[8] * spatial_dims)
    near = torch.zeros(1, *[8] * spatial_dims, dtype=torch.bool)
    near[:, :4] = True
    inside, outside = image.clone(), image.clone()
    inside[:, :, :4], outside[:, :, 4:] = 1, 0.25
    assert metrics.change_outside(image, inside, near).tolist() == [0]
    assert metrics.change_outside(image, outside, near).tolist() == [0.25]
    assert metrics.change(image, outside).tolist() == [0.125]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_truth_errors_keep_subjects_apart(spatial_dims):
    truth = torch.rand(2, 1, *[16] * spatial_dims) * 2 - 1
    near = torch.zeros(2, *[16] * spatial_dims, dtype=torch.bool)
    near[:, :8] = True
    wrong = truth.clone()
    wrong[1, :, :8] += 0.1
    found = metrics.truth_errors(wrong, truth, near)
    assert found["mae"].tolist() == pytest.approx([0, 0.05], rel=1e-4)
    assert found["mae_neighbourhood"].tolist() == pytest.approx([0, 0.1], rel=1e-4)
    assert found["ssim"][0] == pytest.approx(1)
    assert found["ssim"][1] < 1
    assert found["psnr"][0] == pytest.approx(10 * math.log10(4e10), rel=1e-4)
    again = metrics.truth_errors(wrong.flip(0), truth.flip(0), near)
    for name, values in found.items():
        torch.testing.assert_close(again[name].flip(0), values)


def test_masks_differ_where_one_alone_is_true():
    one, other = torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    one[:, :2], other[:, 1:3] = True, True
    assert metrics.mask_difference(one, other).tolist() == [8]
    assert metrics.mask_difference(one, one).tolist() == [0]


def disc(radius, spatial_dims, size=24):
    axes = [torch.arange(size) - size / 2 + 0.5] * spatial_dims
    return (torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0) < radius**2)[None]  # (1, *S)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("inside", [1.0, -1.0])
def test_the_old_border_is_there_unchanged_half_gone_or_gone(spatial_dims, inside):
    large, small = (disc(radius, spatial_dims).expand(12, *[-1] * spatial_dims) for radius in (9, 4))
    texture = 0.2 * torch.randn(12, 1, *large.shape[1:], generator=torch.Generator().manual_seed(0))
    factual, clean = (inside * mask.float()[:, None] + texture for mask in (large, small))
    ramp = clean + torch.linspace(0, 0.5, large.shape[-1])

    def edge(image):
        return float(metrics.old_border(image, large, small).mean())

    assert edge(factual) * inside > 0.1
    shares = [edge(image) / edge(factual) for image in (factual, (factual + clean) / 2, clean, ramp)]
    assert shares == pytest.approx([1, 0.5, 0, 0], abs=0.06)


def test_no_old_border_without_a_border_that_was_left():
    large, small = disc(9, 2), disc(4, 2)
    image = large.float()[None]
    assert metrics.old_border(image, large, large).isnan()
    assert metrics.old_border(image, small, large).isnan()
