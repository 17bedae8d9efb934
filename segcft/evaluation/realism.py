"""Do counterfactuals look like real images, to a network of one's own: distances between sets of features.

No pretrained network is fetched: features are those of the evaluator, which has seen images of this very kind. Numbers
compare methods on one data set; they are no FID of the literature. Read them against the row of the unchanged images.
"""

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule


def features(network: nn.Module, image: Tensor, size: int = 64) -> Tensor:
    """The coarsest feature map of any convolutional network, averaged over space.

    Args:
        network: Reads images; called without gradient.
        image: (N, C, *S).
        size: Images at a time.

    Returns:
        (N, F), F the channels of the map with the fewest positions (above one), of the widest such layer; F is 0 if no
        layer lets itself be watched, as in TorchScript.
    """
    with torch.no_grad():
        return torch.cat([_coarsest(network, part) for part in torch.split(image, size)])


def frechet(found: Tensor, real: Tensor) -> float:
    """Fréchet distance between two sets of features, (N, F) and (M, F) (Heusel et al., 2017, arXiv:1706.08500).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in double precision, of features standardised by ``real``. It grows as
    N falls: compare equal N.
    """
    one, other = _standardised(found, real)
    first, second = torch.cov(one.T), torch.cov(other.T)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    distance = (one.mean(0) - other.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross
    return float(distance.clamp(min=0))


def kernel_distance(found: Tensor, real: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared maximum mean discrepancy of features (N, F) and (M, F), unbiased, of the cubic kernel (x.y / F + 1)^3.

    (Bińkowski et al., 2018, arXiv:1801.01401.) Features are standardised by ``real``, so that no channel rules.

    Args:
        found: Features of the answers.
        real: Features of real images.
        weights: How often each answer counts, (R, N), a row a resample; once each if not given.

    Returns:
        (R,), around 0 if both sets come from one distribution; it may be negative.
    """
    one, other = _standardised(found, real)
    counts = torch.ones(1, len(one), dtype=one.dtype) if weights is None else weights.double()
    total, pairs = counts.sum(1), counts.square().sum(1)
    inner = _kernel(one, one)
    within = ((counts @ inner) * counts).sum(1) - counts.square() @ inner.diagonal()
    theirs = _kernel(other, other)
    size = len(other)
    among = (theirs.sum() - theirs.diagonal().sum()) / (size * (size - 1))
    between = (counts @ _kernel(one, other).mean(1)) / total
    return within / (total.square() - pairs) + among - 2 * between


def _standardised(found: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    centre, scale = real.double().mean(0), real.double().std(0).clamp(min=1e-6)
    return (found.double() - centre) / scale, (real.double() - centre) / scale


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.T / one.shape[1] + 1) ** 3


def _coarsest(network: nn.Module, image: Tensor) -> Tensor:
    """Watch every layer during one pass; layers may be shared between resolutions."""
    best: tuple[tuple[int, int], Tensor] | None = None

    def note(_: nn.Module, __: object, output: object) -> None:
        nonlocal best
        if not isinstance(output, Tensor) or output.dim() != image.dim():
            return
        positions, size = output[0, 0].numel(), (output[0, 0].numel(), -output.shape[1])
        if positions > 1 and (best is None or size <= best[0]):
            best = size, output.float().flatten(2).mean(2)

    layers = [each for each in network.modules() if not list(each.children()) and not isinstance(each, ScriptModule)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    return image.new_empty(len(image), 0) if best is None else best[1]
