"""A chain computes what autograd would, however it is written out."""

import pytest
import torch
from torch import nn

from segcft.hvae import convolutions
from segcft.hvae.blocks import conv
from segcft.hvae.convolutions import CHANNELS_LAST, GELU, NONE, SILU, added, chain, gelu, weights_of

WRITTEN_OUT = {"LARGE": 0}  # always
WAYS = {
    "as it comes": {},
    "written out": WRITTEN_OUT,
    "turned": {**WRITTEN_OUT, "TURNED": 0},
}
FIRST = torch.contiguous_format


def layers(dims, *channels, kernel=3):
    torch.manual_seed(0)
    made = [
        conv(dims, one, other, size) for one, other, size in zip(channels, channels[1:], (1, kernel, 1), strict=False)
    ]
    for layer in made:
        layer.bias.data.normal_()
    return [layer.double() for layer in made]


def plainly(features, made, activation, shift=None):
    for place, layer in enumerate(made):
        weight, function = layer.weight, torch.nn.functional.conv2d if features.dim() == 4 else nn.functional.conv3d
        features = function(activation(features), weight, layer.bias, padding=weight.shape[2] // 2)
        if place == 0 and shift is not None:
            features = features + shift
    return features


def gradients(value, given):
    return torch.autograd.grad(value.square().sum(), given)


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request, monkeypatch):
    for name, value in request.param.items():
        monkeypatch.setattr(convolutions, name, value)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [(6, 3, 3, 8), (3, 6, 5, 2)])
@pytest.mark.parametrize(("activation", "plain"), [(GELU, nn.GELU()), (SILU, nn.SiLU()), (NONE, nn.Identity())])
def test_a_chain_is_its_activations_and_convolutions(lean, dims, channels, activation, plain):
    made = layers(dims, *channels)
    pixels = torch.randn(2, channels[0], *[4] * dims, dtype=torch.double)
    for size, layout in ((4, FIRST), (1, CHANNELS_LAST[2 + dims])):  # a shift a position, and one for all of them
        features = pixels.contiguous(memory_format=layout).requires_grad_()
        shift = torch.randn(2, channels[1], *[size] * dims, dtype=torch.double, requires_grad=True)
        given = [features, shift, *(weight for layer in made for weight in layer.parameters())]
        (ours,), theirs = (
            chain(features, weights_of(*made), activation, shift, lean=lean),
            plainly(features, made, plain, shift),
        )
        torch.testing.assert_close(ours, theirs)
        for one, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dims", [2, 3])
def test_parts_are_those_of_the_whole_and_dense_where_written_out(dims):
    made = layers(dims, 6, 3, 3, 8)
    features = torch.randn(2, 6, *[4] * dims, dtype=torch.double, requires_grad=True)
    (whole,), parts = (
        chain(features, weights_of(*made), GELU),
        chain(features, weights_of(*made), GELU, sizes=(5, 2, 1)),
    )
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    given = [features, *(weight for layer in made for weight in layer.parameters())]
    for one, other in zip(gradients(torch.cat(parts, 1), given), gradients(whole, given), strict=True):
        torch.testing.assert_close(one, other)
    if convolutions.LARGE == 0:
        assert all(part.untyped_storage().nbytes() == 8 * part.numel() for part in parts)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bias", [True, False])
def test_single_pixels_and_missing_biases(bias):
    layer = nn.Conv2d(5, 3, 1, bias=bias).double()
    for features in (torch.randn(16, 5, 1, 1), torch.randn(2, 5, 1, 1), torch.randn(2, 5, 6, 4)):
        features = features.double().requires_grad_()
        ours, theirs = chain(features, weights_of(layer))[0], layer(features)
        torch.testing.assert_close(ours, theirs)
        given = [features, *layer.parameters()]
        for one, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("large", [0, 2**62])
@pytest.mark.parametrize("size", [(1, 5, 3, 24, 32), (2, 3, 5, 32, 24), (1, 1, 4, 24, 24), (1, 4, 1, 24, 24)])
def test_a_product_of_matrices_is_the_same_convolution(size, large, layout, monkeypatch):
    monkeypatch.setattr(convolutions, "LARGE", large)
    count, channels, out, *pixels = size
    layer = nn.Conv2d(channels, out, 1)
    features = torch.randn(count, channels, *pixels).contiguous(memory_format=layout).requires_grad_()
    slope = torch.randn(count, out, *pixels)  # in another layout than what it belongs to
    ours, theirs = chain(features, weights_of(layer))[0], layer(features)
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(chain(features, weights_of(layer))[0], theirs)
    assert ours.is_contiguous(memory_format=layout) or channels == 1  # of which both are
    given = [features, *layer.parameters()]
    each = [torch.autograd.grad(value, given, slope) for value in (ours, theirs)]
    for one, other in zip(*each, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("large", [0, 2**62])
def test_a_value_that_is_added_to_keeps_its_gradients(large, monkeypatch):
    monkeypatch.setattr(convolutions, "LARGE", large)
    layer = nn.Conv2d(3, 4, 1)
    features = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    other = torch.randn(2, 4, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    ours, theirs = added(chain(features, weights_of(layer))[0], other), layer(features) + other
    given = [features, other, *layer.parameters()]
    torch.testing.assert_close(ours, theirs)
    for one, another in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(one, another)


def test_gradients_lie_in_memory_as_what_they_belong_to(monkeypatch):
    monkeypatch.setattr(convolutions, "LARGE", 0)
    features = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    (value,) = chain(features, weights_of(conv(2, 6, 2, 1)), GELU)
    (gradient,) = torch.autograd.grad(value, features, torch.randn(value.shape))
    assert gradient.stride() == features.stride()


@pytest.mark.parametrize("dims", [2, 3])
def test_gelu_is_gelu_however_its_numbers_lie(dims, monkeypatch):
    monkeypatch.setattr(convolutions, "TURNED", 0)
    first = 4 * torch.randn(2, 3, *[8] * dims)
    last = first.contiguous(memory_format=CHANNELS_LAST[2 + dims])
    assert gelu(last).stride() == last.stride()
    for numbers in (first, last):
        torch.testing.assert_close(gelu(numbers).double(), nn.functional.gelu(first.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lean", [False, True])
def test_in_low_precision_a_chain_computes_as_torch_does(lean, monkeypatch):
    monkeypatch.setattr(convolutions, "LARGE", 0)
    made = [layer.float() for layer in layers(2, 6, 3, 3, 8)]
    features = torch.randn(2, 6, 8, 8, requires_grad=True)
    given = [features, *(weight for layer in made for weight in layer.parameters())]
    with torch.autocast("cpu", torch.bfloat16):
        (ours,), theirs = chain(features, weights_of(*made), GELU, lean=lean), plainly(features, made, nn.GELU())
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients(ours.float(), given), gradients(theirs.float(), given), strict=True):
        assert one.dtype == torch.float
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05 * float(other.abs().max()))


def test_a_sum_loses_no_digits():
    assert added(torch.ones(2, dtype=torch.bfloat16), torch.ones(2)).dtype == torch.float
    value = torch.ones(2)
    assert added(value, torch.ones(2)) is value


def test_a_chain_compiles_as_a_whole(monkeypatch):
    """Where it cannot be followed a training step falls into dozens of graphs, and is no faster."""
    for name in ("LARGE", "TURNED"):
        monkeypatch.setattr(convolutions, name, 0)
    made, features = [layer.float() for layer in layers(2, 6, 3, 3, 8)], torch.randn(2, 6, 8, 8)
    features = features.to(memory_format=torch.channels_last).requires_grad_()

    def value():
        return added(chain(features, weights_of(*made), GELU)[0], features.mean(1, keepdim=True))

    given = [features, *(weight for layer in made for weight in layer.parameters())]
    ours = torch.compile(value, fullgraph=True, backend="aot_eager")()
    for one, other in zip(gradients(ours, given), gradients(value(), given), strict=True):
        torch.testing.assert_close(one, other)
