"""Shape model: predicts position and extent (centroid, spread) of every structure under an intervention.

An area determines how much a structure grows, but not in which direction. Shape is modelled as an effect of the parents
with additive noise, shape = f(pa) + noise; so the counterfactual shape is the factual one plus f(pa*) - f(pa).
"""

import torch
from torch import Tensor, nn

from segcft.variables.measurements import AXES, shape_descriptors
from segcft.variables.variables import DataDescription, Values

FINEST = 0.25  # lower bound of the scale of errors, in pixels; for log spreads 5 % of it


class ShapeModel(nn.Module):
    """Centroid and spread of every structure along every axis in mm, fitted by least squares with a quadratic f.

    Spreads are positive, so their logarithm is modelled.

    Args:
        description: Structures, spacing and parents.
    """

    coefficients: Tensor
    scale: Tensor
    is_spread: Tensor

    def __init__(self, description: DataDescription) -> None:
        super().__init__()
        self.parents, self.spacing = description.parents, description.spacing
        axes = AXES[: description.spatial_dims]
        kinds = [f"{kind}_{axis}" for kind in ("centroid", "spread") for axis in axes]  # as shape_descriptors has them
        self.names = [f"{structure}_{kind}" for structure in description.structures for kind in kinds]
        features = self.features(dict.fromkeys(self.parents.names, torch.zeros(1))).shape[1]
        self.register_buffer("coefficients", torch.full((features, len(self.names)), torch.nan))
        finest = [FINEST * edge for edge in reversed(self.spacing)] + [FINEST / 5] * len(axes)
        self.register_buffer("scale", torch.tensor(finest * len(description.structures)))
        is_spread = torch.tensor(["spread" in kind for kind in kinds] * len(description.structures))
        self.register_buffer("is_spread", is_spread, persistent=False)

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` was called, in this run or in the one whose checkpoint was loaded."""
        return bool(self.coefficients.isfinite().all())

    def measure(self, mask: Tensor) -> dict[str, Tensor]:
        """Soft masks (B, K, *S) -> centroids in mm from the image's first edge and spreads in log mm, (B,) each."""
        found = shape_descriptors(mask, self.spacing)
        found = torch.where(self.is_spread, found.clamp(min=1e-3).log(), found)
        return dict(zip(self.names, found.unbind(1), strict=True))

    def features(self, values: Values) -> Tensor:
        """Regression features of the parents: 1, the encoded parents, and squares of the continuous ones, (B, F)."""
        encoded = self.parents.encode(values)
        continuous = [name for name in self.parents.names if self.parents[name].kind == "continuous"]
        squares = [self.parents.standardise(values, continuous).square()] if continuous else []
        return torch.cat([torch.ones_like(encoded[:, :1]), encoded, *squares], dim=1)

    def fit(self, measured: Values, values: Values) -> None:
        """Fit by least squares to the measured shapes and the parents of the training subjects, (N,) each."""
        features = self.features(values).double()
        shapes = torch.stack([measured[name] for name in self.names], dim=1).double()
        ridge = 1e-4 * len(features) * torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
        solved = torch.linalg.solve(features.T @ features + ridge, features.T @ shapes)
        self.coefficients.copy_(solved)
        self.scale.copy_(torch.maximum(self.scale, shapes.std(0).float()))

    def counterfactual(self, measured: Values, values: Values, cf_values: Values) -> dict[str, Tensor]:
        """Counterfactual shape of the same subjects under other parents, (B,) each."""
        moved = (self.features(cf_values) - self.features(values)) @ self.coefficients
        return {name: measured[name] + moved[:, k] for k, name in enumerate(self.names)}

    def distance(self, measured: Values, target: Values) -> Tensor:
        """Mean absolute error in training standard deviations, a scalar."""
        apart = torch.stack([measured[name] - target[name] for name in self.names], dim=1)
        return (apart / self.scale).abs().mean()
