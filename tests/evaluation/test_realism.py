"""Laws of distances between sets of features."""

import pytest
import torch
from torch import nn

from segcft.evaluation.realism import features, frechet, kernel_distance
from segcft.guidance.judges import segmentation_network


def draw(seed, count=200, size=8):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_equal_sets_have_no_frechet_distance_and_a_shift_has_its_square():
    real = draw(0)
    assert frechet(real, real) == pytest.approx(0, abs=1e-6)
    assert frechet(real.flip(0), real) == pytest.approx(0, abs=1e-6)
    moved = frechet(real + real.std(0), real)
    assert moved == pytest.approx(8, rel=1e-4)
    assert frechet(2 * real, real) == pytest.approx(8, rel=0.05), "twice the deviation, eight times 1"


def test_the_kernel_distance_is_unbiased_around_zero():
    found = torch.stack([kernel_distance(draw(2 * s, 40), draw(2 * s + 1, 40))[0] for s in range(60)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / 60**0.5
    assert float(found.min()) < 0 < float(found.max())
    assert kernel_distance(draw(0) + 1, draw(1))[0] > 10 * found.abs().max()


def test_weights_count_rows_and_order_does_not_matter():
    found, real = draw(0, 30), draw(1, 50)
    plain = kernel_distance(found, real)
    torch.testing.assert_close(kernel_distance(found.flip(0), real), plain)
    some = torch.ones(2, 30)
    some[1, 20:] = 0
    weighted = kernel_distance(found, real, some)
    torch.testing.assert_close(weighted[0], plain[0])
    torch.testing.assert_close(weighted[1], kernel_distance(found[:20], real)[0])


@pytest.mark.parametrize(("name", "dims"), [("monai.UNet", 2), ("monai.UNet", 3), ("monai.SegResNet", 2)])
def test_features_are_those_of_the_coarsest_layer(name, dims):
    options = {"monai.UNet": {"channels": [4, 8, 12], "strides": [2, 2]}, "monai.SegResNet": {"init_filters": 8}}[name]
    network = segmentation_network(name, dims, 1, 2, options).eval()
    image = torch.rand(3, 1, *[16] * dims)
    found = features(network, image, size=2)
    assert found.shape == (3, 12 if name == "monai.UNet" else 64)
    torch.testing.assert_close(found[:1], features(network, image[:1]))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_without_a_map_has_no_features():
    image = torch.rand(3, 1, 4, 4)
    for network in (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.jit.script(nn.Conv2d(1, 2, 3))):
        assert features(network, image).shape == (3, 0)
