"""Judges: networks that measure variables in an image, a segmentor through its masks, a regressor directly."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcft.core.recipes import Recorded
from segcft.guidance.imported_networks import MONAI, SMP, refuse_fetching, refuse_unlisted
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.variables import DataDescription


class Judge(nn.Module, Recorded):
    """Base class of networks that measure variables in an image.

    Args:
        description: Structures and variables of the data, stored so that the judge can be used without the data. An
            external judge may get it later, by ``attach``.

    Raises:
        ValueError: If the data have no variable that it can measure.
    """

    description: DataDescription

    def __init__(self, description: DataDescription | None) -> None:
        super().__init__()
        if description is not None:
            Judge.attach(self, description)

    @property
    def attached(self) -> bool:
        """Whether the description of the data is known."""
        return "description" in self.__dict__

    def attach(self, description: DataDescription) -> None:
        """Set the description if it is not known yet; otherwise it is kept.

        Raises:
            ValueError: If the data have no variable that it can measure.
        """
        if self.attached:
            return
        if not self.readable(description):
            raise ValueError("no variable names a structure, or is visible to a regressor: there is nothing to measure")
        self.description = description

    @staticmethod
    def readable(description: DataDescription) -> list[str]:
        """Names of the variables that this kind of judge can measure: those that belong to a structure."""
        return list(description.parents.structural)

    @property
    def names(self) -> list[str]:
        """Names of the variables it measures, in order."""
        return self.readable(self.description)

    def measure(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure the variables in real units, (B,) each.

        Args:
            image: (B, C, *S) in [-1, 1].
            factual: Factual image, whose anatomy defines the regions, (B, C, *S); by default ``image``.
        """
        raise NotImplementedError


class SegmentationModel(Judge):
    """Base class of segmentors: one logit map per structure, (B, C, *S) -> (B, K, *S); masks may overlap.

    Args:
        description: Structures, spacing and variables; see ``Judge``.
        temperature: Divides the logits before soft areas are computed; values below 1 reduce the bias from many pixels
            with a small probability.
    """

    def __init__(self, description: DataDescription | None, temperature: float) -> None:
        super().__init__(description)
        self.temperature = temperature

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) in [-1, 1] -> logits (B, K, *S), structures in the order of the description."""
        raise NotImplementedError

    def probabilities(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> probability of every structure after temperature scaling, (B, K, *S), in fp32."""
        return self.sharpened(self(image))

    def sharpened(self, logits: Tensor) -> Tensor:
        """Logits -> probabilities after temperature scaling, same shape, in fp32."""
        return torch.sigmoid(logits.float() / self.temperature)

    def measure(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Measure the variables on the soft masks; see ``Judge.measure``."""
        return self.measure_outlines(self.probabilities(image), image, factual)

    def measure_outlines(self, masks: Tensor, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """As ``measure``, from given masks (B, K, *S); the factual image is segmented only if a region needs it."""
        anatomy = None
        if factual is not None and self.description.follows_anatomy:
            with torch.no_grad():
                anatomy = self.probabilities(factual)
        return measure_masks(masks, image, self.description, anatomy)


class Segmentor(SegmentationModel):
    """A segmentor trained by segcft, with independent logit maps, since structures may overlap in projection.

    Args:
        description: Structures, spacing and variables.
        network: ``monai.NAME`` (2-D and 3-D) or ``smp.NAME`` (segmentation-models-pytorch, 2-D).
        options: Further constructor arguments of that network.
        temperature: See ``SegmentationModel``.

    Raises:
        ValueError: If the network is unknown or cannot be built with these options.
    """

    def __init__(
        self,
        description: DataDescription,
        network: str = "monai.BasicUNet",
        options: dict[str, Any] | None = None,
        temperature: float = 0.5,
    ) -> None:
        super().__init__(description, temperature)
        self.name, outputs = network, len(description.structures)
        self.network = segmentation_network(network, description.spatial_dims, description.channels, outputs, options)

    def attach(self, description: DataDescription) -> None:
        """Use the variables of these data from now on, if their structures are the ones it was trained on."""
        ours, theirs = self.description, description
        if (ours.structures, ours.spatial_dims) == (theirs.structures, theirs.spatial_dims):
            self.description = description

    def check_sides(self, sides: Sequence[int]) -> None:
        """Check that the network takes images of these sides S, before it is trained on them.

        Raises:
            ValueError: Naming what sides have to be multiples of.
        """
        if not self._takes(sides):
            factors = (2**power for power in range(1, 9))
            factor = next((f for f in factors if self._takes([-(-side // f) * f for side in sides])), None)
            shown = " x ".join(map(str, sides))
            need = f"sides have to be multiples of {factor}" if factor else "no size near it does either"
            raise ValueError(f"images of {shown} pixels do not fit {self.name}: {need}")

    @torch.no_grad()
    def _takes(self, sides: Sequence[int]) -> bool:
        training = self.network.training
        image = next(self.parameters()).new_zeros(1, self.description.channels, *sides)
        try:
            return bool(self.network.eval()(image).shape[2:] == image.shape[2:])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError):  # libraries have no error of their own for it
            return False
        finally:
            self.network.train(training)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> logits (B, K, *S)."""
        logits: Tensor = self.network(image)
        return logits


class Regressor(Judge):
    """Predicts the visible variables from the whole image, without localising structures.

    Args:
        description: Variables and their training statistics.
        widths: Channels of the residual stages; each halves the resolution.
    """

    def __init__(self, description: DataDescription, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__(description)
        from monai.networks.nets import Regressor as MonaiRegressor  # lazily: slow to import

        self.trunk = MonaiRegressor(
            in_shape=(description.channels, *[2 ** len(widths)] * description.spatial_dims),
            out_shape=(len(self.names),),
            channels=tuple(widths),
            strides=(2,) * len(widths),
            norm=("GROUP", {"num_groups": 4}),
        ).net
        self.head = nn.Linear(widths[-1], len(self.names))

    @staticmethod
    def readable(description: DataDescription) -> list[str]:
        """Names of structural variables and of those declared visible."""
        return description.parents.visible

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> standardised variables (B, len(names))."""
        standardised: Tensor = self.head(F.silu(self.trunk(image)).flatten(2).mean(2))
        return standardised

    def measure(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Predict the variables in real units; ``factual`` is ignored."""
        predicted, parents = self(image).float(), self.description.parents
        return {name: predicted[:, k] * parents[name].std + parents[name].mean for k, name in enumerate(self.names)}


def segmentation_network(
    name: str, spatial_dims: int, channels: int, outputs: int, options: dict[str, Any] | None = None
) -> nn.Module:
    """Build a network of MONAI or segmentation-models-pytorch by name, with random weights.

    Raises:
        ValueError: If the library or the network is unknown, a 2-D network is asked for volumes, an option is wrong, or
            one would download weights.
    """
    library, _, architecture = name.partition(".")
    refuse_fetching(options or {}, name)
    factory: Callable[..., nn.Module] | None = None
    fixed: dict[str, Any] = {}
    if library == "monai":
        import monai.networks.nets as nets  # lazily: slow to import

        factory = getattr(nets, architecture, None)
        fixed = {"spatial_dims": spatial_dims, "in_channels": channels, "out_channels": outputs}
    elif library == "smp":
        if spatial_dims != 2:
            raise ValueError(f"{name} reads 2-D images only; take a monai network for spatial_dims={spatial_dims}")
        import segmentation_models_pytorch as smp  # lazily: slow to import

        factory = getattr(smp, architecture, None)
        fixed = {"in_channels": channels, "classes": outputs, "encoder_weights": None}
    if factory is None:
        raise ValueError(f"unknown network {name!r}: write monai.NAME or smp.NAME")
    refuse_unlisted(architecture, MONAI if library == "monai" else SMP, name)
    try:
        return factory(**fixed, **(options or {}))
    except TypeError as error:
        raise ValueError(f"network {name!r} does not take these options: {options}: {error}") from error
