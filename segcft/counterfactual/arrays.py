"""Images as users hold them, NumPy or torch of any number type and shape, as the model reads them; or refused."""

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segcft.spatial.geometry import Geometry

if TYPE_CHECKING:
    from segcft.counterfactual.model import CounterfactualModel

Window = tuple[float, float]
BYTES: Window = (0.0, 255.0)  # of uint8
SIGNED: Window = (-1.0, 1.0)
EDGES = (1e-6, 1e3)  # mm, of a pixel of any image


def scaled(array: Any, model: "CounterfactualModel", window: Window | None = None) -> Tensor:
    """Images (B, C, *N) in [-1, 1], float32.

    Args:
        array: (*N), (C, *N) or (B, C, *N); NumPy, torch, or what NumPy makes an array of.
        model: Says how many axes and channels an image has.
        window: Values that are black and white. By default 0 to 255 of uint8, -1 to 1 of floats.

    Raises:
        ValueError: If the shape does not fit the model, a value is not finite, or what is black and white is not clear:
            integers other than uint8 without a window, floats that leave [-1, 1] or look like [0, 1].
    """
    values = array.detach().cpu() if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
    if values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"an image of {values.dtype} is none: integers or floats are needed")
    if not torch.isfinite(values.float()).all():
        raise ValueError("some values of the image are not finite numbers")
    image = _batched(values, model)
    low, high = window or _window(image)
    if not low < high:
        raise ValueError(f"window ({low:g}, {high:g}): black must lie below white")
    return ((image.double() - low) * (2 / (high - low)) - 1).float()


def laid(
    model: "CounterfactualModel",
    shape: Sequence[int],
    spacing: Sequence[float] | None,
    given: Container[str] | None = None,
) -> Geometry:
    """How the model's frame lies in an image of ``shape``, as ``data_modules.folder`` draws training data.

    Resampled to the model's spacing where its sizes are in mm, else padded to a square (cube) and resized.

    Args:
        model: Knows frame, spacing and units.
        shape: Of the image, (*N).
        spacing: Edge lengths of a pixel in mm; needed where the model measures in mm.
        given: Variables whose factual values are known; the error about the spacing names the others that are needed.

    Raises:
        ValueError: If the image has other axes than the frame, no known spacing, or one that is absurd.
    """
    about, frame = model.description, model.frame
    if len(shape) != len(frame):
        raise ValueError(f"an image of shape {tuple(shape)} does not fit a model of {about.channels} x {frame}")
    if spacing is not None and (len(spacing) != len(frame) or not all(EDGES[0] < side < EDGES[1] for side in spacing)):
        raise ValueError(f"spacing {list(spacing)}: {len(frame)} edge lengths between 1e-6 and 1000 mm are needed")
    units = [about.parents[name].unit for name in about.parents.structural]
    if not any(unit.startswith("mm") for unit in units):
        return Geometry(tuple(shape), frame, tuple(max(shape) / side for side in frame))
    if spacing is None:
        hidden = [] if given is None else [name for name in model.hidden if name not in given]
        more = (
            f"; factual {', '.join(hidden)} cannot be measured either: give --parent {hidden[0]}=..." if hidden else ""
        )
        raise ValueError(f"the image does not say its spacing, and the model measures in mm: give --spacing{more}")
    return Geometry(tuple(shape), frame, tuple(new / old for new, old in zip(about.spacing, spacing, strict=True)))


def _batched(values: Tensor, model: "CounterfactualModel") -> Tensor:
    """(*N), (C, *N) or (B, C, *N) -> (B, C, *N)."""
    dims, channels = len(model.frame), model.description.channels
    more = values.dim() - dims
    if more == 0 and channels == 1:
        values = values[None, None]
    elif more == 1:
        values = values[None]
    if values.dim() != dims + 2 or values.shape[1] != channels or 0 in values.shape:
        wanted = ["(B, C, *N)", "(C, *N)", *(["(*N)"] if channels == 1 else [])]
        raise ValueError(
            f"an array of shape {tuple(values.shape)} is no image of this model: {' or '.join(wanted)} with "
            f"{dims} axes *N and C = {channels} is needed"
        )
    return values


def _window(image: Tensor) -> Window:
    if image.dtype == torch.uint8:
        return BYTES
    low, high = (float(end) for end in torch.aminmax(image.float()))
    if not image.is_floating_point():
        raise ValueError(f"values of {image.dtype} from {low:g} to {high:g}: give window=(black, white)")
    if low < -1 or high > 1:
        raise ValueError(f"values from {low:g} to {high:g} leave [-1, 1]: give window=(black, white)")
    if low >= 0:
        raise ValueError(f"values from {low:g} to {high:g} may be of [0, 1] or [-1, 1]: give window=(0, 1) or (-1, 1)")
    return SIGNED
