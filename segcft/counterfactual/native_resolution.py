"""What is to be done to an image: pixels move along a flow, then something is painted; at any resolution.

The model says it in its own frame, in smooth maps. An image of any size is answered by enlarging the maps to its grid
and warping it once, so what is sharp stays sharp and moves along.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from segcft.counterfactual.side_markers import markers
from segcft.spatial.diffeomorphism import exponential, sharpened, warp, warp_cubic
from segcft.spatial.geometry import Geometry
from segcft.spatial.resize import spread

FAINT = 4 / 255  # of enlarged paint: two 8-bit levels of [-1, 1]
SHUT = 0.02  # of an enlarged gate
STILL = 0.05  # pixels of the image: what moves less stays as it is
PREVIEW = 512  # pixels a side
BLOCK = 2**20  # pixels or voxels that are warped at a time


class Edit(NamedTuple):
    """A change of an image x in the model's frame: x* = x + gate (x o phi + paint - x), phi the flow of the velocity.

    Attributes:
        paint: Added to the image once it is carried, (B, C, *S) in image units.
        velocity: Of the flow that carries the image, (B, D, *S) in pixels of the frame; None if nothing moves.
        gate: Share of the change that is made, (B, C, *S) in [0, 1]; None for all of it.
        freely: Whether structures may be painted as well as moved, so that their masks cannot move along.
    """

    paint: Tensor
    velocity: Tensor | None = None
    gate: Tensor | None = None
    freely: bool = False

    @property
    def carries_masks(self) -> bool:
        """Whether the flow says where structures are in the edited image: masks which move along are its masks."""
        return self.velocity is not None and not self.freely

    @property
    def only_moves(self) -> bool:
        """Whether the flow carries the whole image and nothing is painted on it."""
        return self.carries_masks and self.gate is None and not self.paint.any()

    @property
    def displacement(self) -> Tensor | None:
        """Of the flow, (B, D, *S) in pixels of the frame; None if nothing moves."""
        return None if self.velocity is None else exponential(self.velocity)

    def apply(self, image: Tensor) -> Tensor:
        """The edited image, (B, C, *S) in [-1, 1], linear between pixels: what training sees."""
        moved = (image if self.velocity is None else warp(image, exponential(self.velocity))) + self.paint
        return (moved if self.gate is None else image + self.gate * (moved - image)).clamp(-1, 1)

    def within(self, painted: Tensor, moved: Tensor) -> "Edit":
        """The same where weights (B, 1, *S) are 1, nothing where they are 0: of paint and gate, and of the flow."""
        velocity = None if self.velocity is None else self.velocity * moved
        if self.gate is not None:
            return self._replace(velocity=velocity, gate=self.gate * painted)
        return self._replace(paint=self.paint * painted, velocity=velocity)

    def where(self, chosen: Tensor, other: "Edit") -> "Edit":
        """This one for the subjects that are ``chosen``, (B,) bool, and the ``other`` for the rest."""
        return self._of(lambda ours, theirs: torch.where(spread(chosen[:, None], ours), ours, theirs), other)

    def mean(self, samples: int) -> "Edit":
        """Over the ``samples`` edits of each image, which follow each other."""
        return self._of(lambda values, _: values.view(-1, samples, *values.shape[1:]).mean(1), self)

    def carry(self, masks: Tensor) -> Tensor:
        """Masks (B, K, *S) of the image, moved by the flow: those of the edited image."""
        gate = None if self.gate is None else self.gate.amax(1, keepdim=True)
        return Edit(torch.zeros_like(masks[:, :1]), self.velocity, gate).apply(masks)

    def _of(self, combined: Callable[[Tensor, Tensor], Tensor], other: "Edit") -> "Edit":
        """Map by map; both edits come from one prediction."""

        def both(ours: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            return None if ours is None or theirs is None else combined(ours, theirs)

        paint = combined(self.paint, other.paint)
        return Edit(paint, both(self.velocity, other.velocity), both(self.gate, other.gate), self.freely)


@dataclass(frozen=True)
class Canvas:
    """An image at its own resolution, and how the model's frame lies in it.

    Attributes:
        image: (B, C, *N); [-1, 1] is what the model sees, levels beyond are kept.
        geometry: Of image and frame.
    """

    image: Tensor
    geometry: Geometry

    @cached_property
    def frame(self) -> Tensor:
        """What the model sees, (B, C, *S) in [-1, 1]."""
        return (self.geometry.shrink(self.image + 1) - 1).clamp(-1, 1)  # black beyond the image

    @cached_property
    def letters(self) -> Tensor:
        """Where side markers and other burned-in letters lie, (B, 1, *S) bool."""
        return self.geometry.shrink(markers(self.image).to(self.image)) > 0.02

    def draw(self, edit: Edit) -> Tensor:
        """The edited image, (B, C, *N): warped once, by a cubic spline, block by block, then painted.

        Pixels that neither move nor are painted keep their value, bit by bit.
        """
        return self.painted(carry(edit, self.image, self.geometry), edit)

    def moved(self, edit: Edit) -> Tensor:
        """``draw`` without the paint, (B, C, *N), also of masks."""
        gate = None if edit.gate is None else edit.gate.amax(1, keepdim=True)
        unpainted = Edit(torch.zeros_like(edit.paint[:, :1]), edit.velocity, gate)
        return self.draw(unpainted)

    def painted(self, found: Tensor, edit: Edit) -> Tensor:
        """``draw`` of what ``carry`` has found, (B, C, *N)."""
        if edit.gate is None and not edit.paint.any():
            return found
        paint = self.geometry.restore(edit.paint)
        change = found - self.image + self._clear(paint, FAINT)
        if edit.gate is not None:
            change = change * self._clear(self.geometry.enlarge(edit.gate).clamp(0, 1), SHUT)
        low, high = (float(end) for end in torch.aminmax(self.image))
        return (self.image + change).clamp(min(-1.0, low), max(1.0, high))

    def _clear(self, values: Tensor, least: float) -> Tensor:
        """What was enlarged without its faintest parts, which are haze and would leave no pixel alone."""
        return values if self.geometry.same else torch.where(values.abs() < least, 0.0, values)

    def seen(self, edit: Edit) -> Tensor:
        """The edited image as the model sees it, (B, C, *S)."""
        return Canvas(self.draw(edit), self.geometry).frame

    def repeated(self, samples: int) -> "Canvas":
        """Each image ``samples`` times."""
        return Canvas(self.image.repeat_interleave(samples, 0), self.geometry) if samples > 1 else self

    def preview(self) -> "Canvas":
        """The same, averaged to at most ``PREVIEW`` pixels a side: what corrections are measured on."""
        small = self.geometry.reduced(PREVIEW)
        return Canvas(Geometry.of(self.geometry.shape, small.shape).shrink(self.image), small)


def carry(edit: Edit, image: Tensor, geometry: Geometry) -> Tensor:
    """What the flow alone makes of images or masks (B, C, *N); only the bounding box of what moves is computed."""
    found, displacement = image.clone(), edit.displacement
    if displacement is None:
        return found
    low, high = (float(end) for end in torch.aminmax(image))
    scale = displacement.new_tensor(geometry.steps).view(-1, *[1] * len(geometry.steps))
    displacement = displacement * scale  # pixels of the image
    box = _box(displacement, geometry)
    if box is None:
        return found
    rows = max(1, BLOCK // max(1, image[0, 0, 0].numel() * len(image)))
    for first in range(box[0].start, box[0].stop, rows):
        last = min(first + rows, box[0].stop)
        block = (slice(max(first - 2, box[0].start), min(last + 2, box[0].stop)), *box[1:])  # neighbours, to sharpen
        local = geometry.enlarge(displacement, block[0])[(slice(None), slice(None), slice(None), *block[1:])]
        local = torch.where(local.abs().amax(1, keepdim=True) < STILL, 0.0, local)
        warped = sharpened(warp_cubic(image, local, [part.start for part in block]), local).clamp(low, high)
        kept = warped[:, :, first - block[0].start : last - block[0].start]
        found[(slice(None), slice(None), slice(first, last), *box[1:])] = kept
    return found


def _box(displacement: Tensor, geometry: Geometry) -> tuple[slice, ...] | None:
    """Smallest box of the image that holds all that moves, (B, D, *S) in the image's pixels; None if nothing does."""
    moving = (displacement.abs().amax((0, 1)) >= STILL / 2).nonzero()  # (places, D)
    if not len(moving):
        return None
    box = []
    ends = zip(moving.amin(0).tolist(), moving.amax(0).tolist(), strict=True)
    for (low, high), n, s, step in zip(ends, geometry.shape, geometry.frame, geometry.steps, strict=True):
        start, stop = (n / 2 + (place - s / 2) * step for place in (low - 2, high + 3))  # cubic reaches two pixels
        box.append(slice(max(0, int(start)), min(n, int(stop) + 1)))
    return tuple(box)
