"""Networks that measure the structural parents in an image: a segmentor through its masks, a regressor directly."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcft.core.recipes import Recorded
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.variables import DataDescription


class Judge(nn.Module, Recorded):
    """Measures every variable of an image that it can read.

    Args:
        description: What the data measure; carried so that a judge can be used away from its data. One that was made
            elsewhere may do without until ``attach``.

    Raises:
        ValueError: If there is none.
    """

    description: DataDescription

    def __init__(self, description: DataDescription | None) -> None:
        super().__init__()
        if description is not None:
            Judge.attach(self, description)

    @property
    def attached(self) -> bool:
        """Whether it knows what the data measure."""
        return "description" in self.__dict__

    def attach(self, description: DataDescription) -> None:
        """Tell a judge that was built without its data what they measure; one that knows keeps what it knows.

        Raises:
            ValueError: If it can read none of their variables.
        """
        if self.attached:
            return
        if not self.readable(description):
            raise ValueError("no variable names a structure, or is visible to a regressor: there is nothing to measure")
        self.description = description

    @staticmethod
    def readable(description: DataDescription) -> list[str]:
        """Variables that a judge of this kind can measure: those of structures."""
        return list(description.parents.structural)

    @property
    def names(self) -> list[str]:
        """The variables that it measures, in order."""
        return self.readable(self.description)

    def measure(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """The variables that it reads in real units, (B,) each.

        Args:
            image: (B, C, *S) in [-1, 1].
            factual: Image whose anatomy regions are laid into, (B, C, *S); ``image`` itself unless given.
        """
        raise NotImplementedError


class SegmentationModel(Judge):
    """Anything that outlines the structures: one logit map each, (B, C, *S) -> (B, K, *S); masks may overlap.

    Args:
        description: Structures, spacing and variables; see ``Judge``.
        temperature: Divides the logits before a soft area is taken; below 1 it removes the bias of many faint pixels.
    """

    def __init__(self, description: DataDescription | None, temperature: float) -> None:
        super().__init__(description)
        self.temperature = temperature

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) in [-1, 1] -> logits (B, K, *S), structures in the order of the description."""
        raise NotImplementedError

    def probabilities(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> sharpened probability of every structure, (B, K, *S), in fp32."""
        return self.sharpened(self(image))

    def sharpened(self, logits: Tensor) -> Tensor:
        """Logits -> probabilities of the same shape, in fp32."""
        return torch.sigmoid(logits.float() / self.temperature)

    def measure(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Soft measurements."""
        return self.measure_outlines(self.probabilities(image), image, factual)

    def measure_outlines(self, masks: Tensor, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """The same of outlines (B, K, *S) known already; the factual image is only outlined if a region needs it."""
        anatomy = None
        if factual is not None and self.description.follows_anatomy:
            with torch.no_grad():
                anatomy = self.probabilities(factual)
        return measure_masks(masks, image, self.description, anatomy)


class Segmentor(SegmentationModel):
    """A network of ours with one logit map per structure, so that structures may overlap in projection.

    Args:
        description: Structures, spacing and variables.
        network: ``monai.NAME`` (2-D and 3-D) or ``smp.NAME`` (segmentation-models-pytorch, 2-D).
        options: Further arguments of that network.
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
        outputs = len(description.structures)
        self.network = segmentation_network(network, description.spatial_dims, description.channels, outputs, options)

    def attach(self, description: DataDescription) -> None:
        """Measure the variables of these data from now on, if their structures are those that it outlines."""
        ours, theirs = self.description, description
        if (ours.structures, ours.spatial_dims) == (theirs.structures, theirs.spatial_dims):
            self.description = description

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> logits (B, K, *S)."""
        logits: Tensor = self.network(image)
        return logits


class Regressor(Judge):
    """Predicts the visible variables from the whole image, without a notion of where they are.

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
        """Structural variables, and those declared visible."""
        return description.parents.visible

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> standardised variables (B, len(names))."""
        standardised: Tensor = self.head(F.silu(self.trunk(image)).flatten(2).mean(2))
        return standardised

    def measure(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """Predictions in real units; of regions, it has learnt those of the image that it sees."""
        predicted, parents = self(image).float(), self.description.parents
        return {name: predicted[:, k] * parents[name].std + parents[name].mean for k, name in enumerate(self.names)}


def segmentation_network(
    name: str, spatial_dims: int, channels: int, outputs: int, options: dict[str, Any] | None = None
) -> nn.Module:
    """Build a network of MONAI or segmentation-models-pytorch by name, always with fresh weights.

    Raises:
        ValueError: If the library or the network is unknown, a 2-D network is asked for volumes, or an option is wrong.
    """
    library, _, architecture = name.partition(".")
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
    try:
        return factory(**fixed, **(options or {}))
    except TypeError as error:
        raise ValueError(f"network {name!r} does not take these options: {options}: {error}") from error
