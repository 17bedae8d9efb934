"""Whether an image and its outlines look like those of the training split; every doubt is one sentence."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor

from segcft.core.formatting import number
from segcft.core.recipes import Recorded

MARGIN = 0.5  # of the training range: a value may lie that far beyond it without a doubt


class Kind(NamedTuple):
    """How values of one characteristic are compared with the training range.

    Attributes:
        slack: Distance from the training range that is always allowed.
        low: Whether smaller values than in training are doubtful.
        high: Whether larger ones are.
        text: Sentence; ``{of}`` is the structure, ``{found}`` the value, ``{usual}`` the training range.
    """

    slack: float
    low: bool
    high: bool
    text: str


KINDS = {
    "level": Kind(0.1, True, True, "the image is unusually dark or bright: its mean grey level is {found} {usual}"),
    "contrast": Kind(0.01, True, True, "grey levels of the image have a standard deviation of {found} {usual}"),
    "smoothness": Kind(
        0.1, True, False, "neighbouring pixels correlate by {found} {usual}: the image looks like noise"
    ),
    "size": Kind(0.01, True, True, "{of} covers {found} of the image {usual}"),
    "whole": Kind(0.1, True, False, "{of} is in several parts, the largest of which is {found} of it {usual}"),
    "place": Kind(0.05, True, True, "{of} is elsewhere: its centre is at {found} of the image's {axis} {usual}"),
    "edge": Kind(0.03, False, True, "{of} touches the edge of the image, {found} of it {usual}"),
}
AXES = {2: ("height", "width"), 3: ("first axis", "second axis", "third axis")}
UNTOLD = {"contrast": [0.05, 0.5], "smoothness": [0.7, 1.0], "size": [1e-6, 1.0], "whole": [0.95, 1.0]}  # by kind
FLAT = 0.015  # standard deviation of the grey levels, from black 0 to white 1, below which nothing can be seen


class Profile(Recorded):
    """Ranges of ``characteristics`` over training images; travels in checkpoints.

    Args:
        ranges: Characteristic -> smallest and largest value.
    """

    def __init__(self, ranges: dict[str, list[float]]) -> None:
        self.ranges = ranges

    @classmethod
    def of(cls, found: Iterable[Mapping[str, Tensor]]) -> Self:
        """Ranges over batches of ``characteristics``, without those that no image has (an absent structure's)."""
        batches = list(found)
        columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        known = {name: values[values.isfinite()] for name, values in columns.items()}
        return cls({name: [float(v.min()), float(v.max())] for name, v in known.items() if len(v)})


def characteristics(image: Tensor, masks: Tensor, structures: Iterable[str]) -> dict[str, Tensor]:
    """What images are compared by, (B,) each; NaN where a structure is absent.

    ``level`` and ``contrast`` are mean and standard deviation of the grey levels, from black 0 to white 1, and
    ``smoothness`` is the correlation of neighbouring pixels that differ. Of every structure: ``size`` as a share of all
    pixels, ``whole`` as the largest connected part's share of it, ``place_0`` and so on as its centre along each axis
    in [0, 1], and ``edge`` as the share of the image's outermost pixels that it holds.

    Args:
        image: (B, C, *S) in [-1, 1].
        masks: Probabilities or labels, (B, K, *S).
        structures: Names of the K masks.
    """
    grey = (image.float().mean(1) + 1) / 2
    flat = grey.flatten(1)
    found = {"level": flat.mean(1), "contrast": flat.std(1, correction=0), "smoothness": _smoothness(grey)}
    for name, mask in zip(structures, (masks > 0.5).unbind(1), strict=True):
        found |= {f"{name}: {kind}": values for kind, values in _outline(mask).items()}
    return {name: values.cpu() for name, values in found.items()}


def doubts(image: Tensor, masks: Tensor, structures: Iterable[str], profile: Profile | None) -> list[str]:
    """Why an image may not be one that the model knows; one sentence each, none of an image like those of training.

    Args:
        image: One image, (1, C, *S) in [-1, 1].
        masks: Its outlines, (1, K, *S); K may be 0.
        structures: Names of the K masks.
        profile: Of the training images; without one, what holds of most images: contrast, smoothness, and structures
            that are there and in one part.
    """
    found = {name: float(values[0]) for name, values in characteristics(image, masks, structures).items()}
    ranges = {name: UNTOLD.get(name.rpartition(": ")[2]) for name in found} if profile is None else profile.ranges
    least, _ = ranges.get("contrast") or (1.0, 1.0)
    if found["contrast"] < min(FLAT, least / 2):
        spread = number(100 * found["contrast"])
        return [f"the image is nearly constant: its grey levels have a standard deviation of {spread} %"]
    known = {name: usual for name in found if (usual := ranges.get(name))}
    sentences = [_doubt(name, found[name], usual, image.dim() - 2) for name, usual in known.items()]
    return [sentence for sentence in sentences if sentence]


def _doubt(name: str, value: float, usual: list[float], dims: int) -> str:
    """A sentence about a value far outside the training range; empty for any other, and for NaN."""
    of, _, measured = name.rpartition(": ")
    kind, _, axis = measured.partition("_")
    about, (low, high) = KINDS[kind], usual
    if kind == "size" and value == 0 < low:
        return f"{of} is not found in the image"
    slack = max(about.slack, MARGIN * (high - low))
    if not (about.low and value < max(low - slack, low / 2)) and not (about.high and value > high + slack):
        return ""
    shown, least, most = (f"{number(100 * each)} %" for each in (value, low, high))
    told = f"at least {least}" if not about.high else f"at most {most}" if not about.low else f"{least} to {most}"
    side = AXES[dims][int(axis)] if axis else ""
    return about.text.format(of=of, found=shown, usual=f"({told} in training)", axis=side)


def _smoothness(grey: Tensor) -> Tensor:
    """Correlation of neighbours along all axes of images (B, *S), (B,); 1 of flat images.

    Pairs of equal pixels are left out: a black border would make noise look smooth.
    """
    axes = []
    for axis, size in enumerate(grey.shape[1:], start=1):
        pair = [grey.narrow(axis, start, size - 1).flatten(1).double() for start in (0, 1)]
        differ = pair[0] != pair[1]
        count = differ.sum(1, keepdim=True)
        one, other = ((values - (values * differ).sum(1, keepdim=True) / count) * differ for values in pair)
        axes.append((one * other).sum(1) / (one.square().sum(1) * other.square().sum(1)).sqrt())
    return torch.stack(axes).nanmean(0).nan_to_num(1.0).float()


def _outline(mask: Tensor) -> dict[str, Tensor]:
    """Characteristics of one structure's masks (B, *S), bool."""
    pixels = mask.flatten(1).sum(1).float()
    found = {"size": pixels / mask[0].numel(), "whole": _largest_part(mask) / pixels}
    inner = mask[(slice(None), *[slice(1, -1)] * (mask.dim() - 1))]
    outermost = mask[0].numel() - inner[0].numel()
    found["edge"] = (pixels - inner.flatten(1).sum(1)) / outermost
    for axis in range(1, mask.dim()):
        others = [other for other in range(1, mask.dim()) if other != axis]
        profile = mask.float().sum(others)
        places = (torch.arange(mask.shape[axis], device=mask.device) + 0.5) / mask.shape[axis]
        found[f"place_{axis - 1}"] = (profile * places).sum(1) / pixels
    return found


def _largest_part(mask: Tensor) -> Tensor:
    """Pixels of the largest connected part, (B,)."""
    sizes = [np.bincount(label(each)[0].ravel())[1:].max(initial=0) for each in mask.cpu().numpy()]
    return torch.tensor(sizes, dtype=torch.float32, device=mask.device)
