"""Adapter for segmentation networks trained elsewhere: converts their input and output conventions to ours."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segcft.guidance.imported_networks import ExternalNetwork, opened
from segcft.guidance.judges import SegmentationModel
from segcft.variables.variables import DataDescription

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation mode by spatial dimensions


@dataclass(frozen=True)
class InputConvention:
    """The input format of an external network; our images are (B, C, *S) in [-1, 1].

    Attributes:
        levels: The grey levels that -1 and 1 stand for in our images, for instance the HU of the data's window.
        window: Levels the network was trained on; values outside are clipped. By default the same as ``levels``.
        range: The values to which the window's ends are mapped, for instance [0, 1] or [0, 255]; or ``zscore``, which
            standardises every image to mean 0 and standard deviation 1.
        channels: Number of input channels; a grey image is repeated.
        size: Spatial size *S of the input; images are resized linearly to it and logits back. By default not resized.
    """

    levels: tuple[float, float] = (-1.0, 1.0)
    window: tuple[float, float] | None = None
    range: tuple[float, float] | Literal["zscore"] = (-1.0, 1.0)
    channels: int = 1
    size: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, pair in (("levels", self.levels), ("window", self.window)):
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError(f"input.{name}: {list(pair)}: the first value must be below the second")

    def __call__(self, image: Tensor) -> Tensor:
        """Images (B, C, *S) in [-1, 1] -> network input (B, channels, *size)."""
        low, high = self.levels
        bottom, top = self.window or self.levels
        share = (low + (image + 1) / 2 * (high - low) - bottom) / (top - bottom)
        share = share if self.window is None else share.clamp(0, 1)
        if self.range == "zscore":
            axes = tuple(range(1, image.dim()))
            given = (share - share.mean(axes, keepdim=True)) / share.std(axes, keepdim=True).clamp(min=1e-6)
        else:
            given = self.range[0] + share * (self.range[1] - self.range[0])
        if given.shape[1] == 1:
            given = given.expand(-1, self.channels, *given.shape[2:])
        return _resized(given, self.size)


class ExternalSegmentor(SegmentationModel):
    """A judge made of a segmentation network that was trained elsewhere.

    Args:
        network: TorchScript file, folder of a MONAI bundle, or ``ImportedNetwork``.
        channels: Structure of the data -> its output channel, by index or by name.
        input: The network's input format.
        output: ``sigmoid``: independent logits per structure; ``softmax``: logits of exclusive classes, including the
            background; ``probabilities``: either of them after the activation.
        temperature: See ``SegmentationModel``; 1 uses the network's probabilities unchanged.
        description: Structures and variables of the data; set by the task or the evaluation.

    Raises:
        ValueError: If the network cannot be opened or does not fit structures, channels or images; names the option.
    """

    def __init__(
        self,
        network: ExternalNetwork | str,
        channels: dict[str, int | str],
        input: InputConvention = InputConvention(),
        output: Literal["sigmoid", "softmax", "probabilities"] = "sigmoid",
        temperature: float = 1.0,
        description: DataDescription | None = None,
    ) -> None:
        super().__init__(description, temperature)
        self.network = opened(network) if isinstance(network, str) else network
        self.input, self.output, self.channels = input, output, channels
        self._index = {structure: self._found(structure, channel) for structure, channel in channels.items()}
        if self.attached:
            self._check_structures()

    def attach(self, description: DataDescription) -> None:
        """Set the description of the data, and check the network on an empty image.

        Raises:
            ValueError: If a structure has no channel, or the network rejects such images or returns unexpected outputs.
        """
        if self.attached:
            return
        super().attach(description)
        self._check_structures()
        dims = description.spatial_dims
        size = self.input.size or (128 if dims == 2 else 64,) * dims
        with torch.no_grad():
            self.eval()(torch.zeros(1, description.channels, *size))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) in [-1, 1] -> logits (B, K, *S); under ``softmax``, those of one class against all others.

        Raises:
            ValueError: If the network rejects the image or does not return the expected channels.
        """
        given = self.input(image)
        try:
            found = _tensor(self.network(given))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"network cannot read images of shape {tuple(given.shape)}: {reason}; see input.channels, input.size"
            ) from error
        self._check_outputs(found, given)
        indices = [self._index[structure] for structure in self.description.structures]
        return _resized(_logits(found.float(), indices, self.output), image.shape[2:])

    def _found(self, structure: str, channel: int | str) -> int:
        names = self.network.outputs
        if isinstance(channel, int):
            count = len(names) if names else channel + 1
            if 0 <= channel < count:
                return channel
            raise ValueError(f"channels: {structure}: {channel}: not one of the outputs 0 to {count - 1}")
        if names is None:
            raise ValueError(f"channels: {structure}: {channel!r}: the network's outputs have no names; give an index")
        if channel not in names:
            raise ValueError(f"channels: {structure}: {channel!r}: the network outlines {', '.join(names)}")
        return names.index(channel)

    def _check_structures(self) -> None:
        wanted, given = self.description.structures, list(self._index)
        if missing := [name for name in wanted if name not in given]:
            raise ValueError(
                f"channels: no output is named for {', '.join(missing)}; the data hold {', '.join(wanted)}"
            )
        if unknown := [name for name in given if name not in wanted]:
            raise ValueError(f"channels: {', '.join(unknown)} is no structure of the data: {', '.join(wanted)}")
        size = self.input.size
        if size is not None and len(size) != self.description.spatial_dims:
            raise ValueError(f"input.size: {list(size)}: the data have {self.description.spatial_dims} spatial axes")

    def _check_outputs(self, found: Tensor, given: Tensor) -> None:
        if found.dim() != given.dim() or len(found) != len(given):
            raise ValueError(f"network returns shape {tuple(found.shape)} for images of shape {tuple(given.shape)}")
        count, names = found.shape[1], self.network.outputs
        if names is not None and len(names) != count:
            raise ValueError(f"network returns {count} channels, but outputs names {len(names)}: {', '.join(names)}")
        for structure, index in self._index.items():
            if index >= count:
                raise ValueError(f"channels: {structure}: {index}: the network returns {count} channels, from 0 on")
        if self.output == "softmax" and count < 2:
            raise ValueError("output: softmax needs a background and a structure; the network returns 1 channel")


def _tensor(found: Any) -> Tensor:
    """The first tensor in a network's output, which may be a tuple, a list or a dict."""
    while not isinstance(found, Tensor):
        if not isinstance(found, dict | list | tuple) or not found:
            raise ValueError(f"network returns {type(found).__name__}, not a tensor")
        found = next(iter(found.values() if isinstance(found, dict) else found))
    return found


def _logits(found: Tensor, indices: list[int], output: str) -> Tensor:
    """Selected channels of (B, outputs, *S) converted to independent (sigmoid) logits, (B, K, *S)."""
    if output == "softmax":
        everyone = range(found.shape[1])
        rest = [found[:, [other for other in everyone if other != k]].logsumexp(1) for k in indices]
        return found[:, indices] - torch.stack(rest, dim=1)
    chosen = found[:, indices]
    return chosen.clamp(1e-6, 1 - 1e-6).logit() if output == "probabilities" else chosen


def _resized(image: Tensor, size: Any) -> Tensor:
    """(B, C, *S) resized linearly to ``size``, or unchanged if it has that size."""
    if size is None or tuple(size) == tuple(image.shape[2:]):
        return image
    return F.interpolate(image, size=tuple(size), mode=_LINEAR[image.dim() - 2], align_corners=False)
