"""Which edge moves: where structures lie and how far they reach, abducted from the image and predicted under do().

An area says how much a structure grows, not where. Its shape is no parent of the image, but an effect of the parents
with its own noise, shape = f(pa) + noise; so a counterfactual shape is the factual one, moved by f(pa*) - f(pa).
"""

import torch
from torch import Tensor, nn

from segcft.parents import DataDescription, Values

_AXES = "xyz"


class ShapeModel(nn.Module):
    """Centroid and spread of every structure along every axis, mm; f is quadratic, by least squares.

    A spread is positive and modelled by its logarithm.

    Args:
        description: Structures, spacing and parents.
    """

    coefficients: Tensor
    scale: Tensor

    def __init__(self, description: DataDescription) -> None:
        super().__init__()
        self.parents, self.spacing = description.parents, description.spacing
        axes = _AXES[: description.spatial_dims]
        kinds = [f"{kind}_{axis}" for kind in ("centroid", "spread") for axis in axes]
        self.names = [f"{structure}_{kind}" for structure in description.structures for kind in kinds]
        features = self.features(dict.fromkeys(self.parents.names, torch.zeros(1))).shape[1]
        self.register_buffer("coefficients", torch.full((features, len(self.names)), torch.nan))
        self.register_buffer("scale", torch.ones(len(self.names)))

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` was called, now or before a checkpoint was written."""
        return bool(self.coefficients.isfinite().all())

    def measure(self, mask: Tensor) -> dict[str, Tensor]:
        """Probabilities (B, K, *S) -> centroids in mm from the first edge, and spreads in log mm, (B,) each."""
        found = []
        weight = mask.float()
        total = weight.flatten(2).sum(2) + 1e-3  # (B, K)
        axes = range(mask.dim() - 1, 1, -1)  # x is the last
        places = [self._places(mask, axis) for axis in axes]
        centroids = [(weight * place).flatten(2).sum(2) / total for place in places]
        for place, centroid, edge in zip(places, centroids, reversed(self.spacing), strict=True):
            away = (place - centroid.view(*centroid.shape, *[1] * len(self.spacing))).square()
            found.append(((weight * away).flatten(2).sum(2) / total + edge**2 / 12).log() / 2)
        columns = torch.stack([*centroids, *found], dim=2).flatten(1)  # (B, K * 2 D)
        return dict(zip(self.names, columns.unbind(1), strict=True))

    def _places(self, mask: Tensor, axis: int) -> Tensor:
        size = mask.shape[axis]
        centres = (torch.arange(size, device=mask.device) + 0.5) * self.spacing[axis - 2]
        return centres.view(size, *[1] * (mask.dim() - 1 - axis))

    def features(self, values: Values) -> Tensor:
        """Parents in real units, (B,) each -> 1, the encoded parents and the squares of the continuous, (B, F)."""
        encoded = self.parents.encode(values)
        continuous = [name for name in self.parents.names if self.parents[name].kind == "continuous"]
        squares = [self.parents.standardise(values, continuous).square()] if continuous else []
        return torch.cat([torch.ones_like(encoded[:, :1]), encoded, *squares], dim=1)

    def fit(self, measured: Values, values: Values) -> None:
        """Least squares over training subjects: what was measured and their parents, (N,) each."""
        features = self.features(values).double()
        shapes = torch.stack([measured[name] for name in self.names], dim=1).double()
        ridge = 1e-4 * len(features) * torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
        solved = torch.linalg.solve(features.T @ features + ridge, features.T @ shapes)
        self.coefficients.copy_(solved)
        self.scale.copy_(shapes.std(0).clamp(min=1e-6))

    def counterfactual(self, measured: Values, values: Values, cf_values: Values) -> dict[str, Tensor]:
        """Shape of the same subjects under other parents, (B,) each."""
        moved = (self.features(cf_values) - self.features(values)) @ self.coefficients
        return {name: measured[name] + moved[:, k] for k, name in enumerate(self.names)}

    def distance(self, measured: Values, target: Values) -> Tensor:
        """Mean absolute distance in training deviations, a scalar."""
        apart = torch.stack([measured[name] - target[name] for name in self.names], dim=1)
        return (apart / self.scale).abs().mean()
