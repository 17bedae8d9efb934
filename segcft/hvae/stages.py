"""Stages of the HVAE: the resolutions of its hierarchy, which follow from the size of the images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

COARSE = 8  # pixels along the longest side: the coarsest stage has fewer, if a stage may be repeated


@dataclass(frozen=True)
class Stage:
    """One resolution of the hierarchy, used by the encoder and the decoder.

    Attributes:
        width: Channels.
        blocks: Number of encoder blocks and of decoder blocks at this resolution.
        latent_channels: Channels of each block's latent; 0 makes the resolution deterministic.
        resolution: Pixels along every axis, or one number per axis. By default the first stage has the size of the
            images, and every other one half the pixels of the stage before it along every axis.
        as_needed: Use the stage as often as it takes for the last stage to have fewer than 8 pixels along its longest
            side: not at all for small images, several times for large ones.
    """

    width: int
    blocks: int = 1
    latent_channels: int = 0
    resolution: int | tuple[int, ...] | None = field(default=None, kw_only=True)
    as_needed: bool = field(default=False, kw_only=True)

    def size(self, spatial_dims: int) -> tuple[int, ...]:
        """Resolution along every axis.

        Raises:
            ValueError: If it is not known, or has another number of axes.
        """
        if self.resolution is None:
            raise ValueError("the first stage has no resolution, and the size of the images is not given")
        if isinstance(self.resolution, int):
            return (self.resolution,) * spatial_dims
        if len(self.resolution) != spatial_dims:
            raise ValueError(f"stage resolution {self.resolution} does not have {spatial_dims} axes")
        return tuple(self.resolution)


def resolved(stages: Sequence[Stage], spatial_dims: int, frame: Sequence[int] | None = None) -> list[Stage]:
    """The same stages with all their resolutions, and those that are ``as_needed`` as often as they are.

    Args:
        stages: Finest first.
        spatial_dims: 2 or 3.
        frame: Shape S of the images; by default the first stage's resolution.

    Raises:
        ValueError: If the first stage has another resolution than the images, the images cannot be halved as often as
            the stages ask for, a resolution does not divide the one before it, or several stages are
            ``as_needed``, or one that names a resolution or is the first one.
    """
    flexible = [depth for depth, stage in enumerate(stages) if stage.as_needed]
    if flexible[1:] or any(depth == 0 or stages[depth].resolution is not None for depth in flexible):
        raise ValueError("as_needed: of one stage at most, which is not the first one and names no resolution")
    size = stages[0].size(spatial_dims) if frame is None or stages[0].resolution is not None else tuple(frame)
    if frame is not None and size != tuple(frame):
        raise ValueError(f"the first stage has the resolution {_sides(size)}, images have {_sides(frame)} pixels")
    sized: list[Stage] = []
    for stage in _repeated(stages, size):
        if sized:
            size = _halved(size, stages, sized) if stage.resolution is None else stage.size(spatial_dims)
        same = len(set(size)) == 1
        sized.append(replace(stage, resolution=size[0] if same else size, as_needed=False))
    _check_divisible(sized, spatial_dims)
    return sized


def _repeated(stages: Sequence[Stage], frame: Sequence[int]) -> list[Stage]:
    """Repeat stages that are ``as_needed`` while the coarsest resolution is too fine and can be halved once more."""
    halvings = sum(not stage.as_needed for stage in stages) - 1
    needed = 0
    while max(frame) >> halvings >= COARSE and not any(side % 2 ** (halvings + 1) for side in frame):
        halvings, needed = halvings + 1, needed + 1
    return [each for stage in stages for each in [stage] * (needed if stage.as_needed else 1)]


def _halved(size: Sequence[int], stages: Sequence[Stage], finer: Sequence[Stage]) -> tuple[int, ...]:
    if not any(side % 2 for side in size):
        return tuple(side // 2 for side in size)
    unit = 2 ** (sum(not stage.as_needed for stage in stages) - 1)
    first = finer[0].resolution
    sides = [first] if isinstance(first, int) else list(first or size)
    odd = next((side for side in sides if side % unit), sides[0])
    near = " or ".join(str(side) for side in (odd // unit * unit, -(-odd // unit) * unit) if side)
    raise ValueError(
        f"images of {_sides(sides if len(sides) > 1 else sides * len(size))} pixels cannot be halved for each of the "
        f"HVAE's stages: sides have to be multiples of {unit}, such as {near} in place of {odd}"
    )


def _check_divisible(stages: Sequence[Stage], spatial_dims: int) -> None:
    for fine, coarse in pairwise(stages):
        sizes = fine.size(spatial_dims), coarse.size(spatial_dims)
        if any(big % small for big, small in zip(*sizes, strict=True)):
            raise ValueError(f"stage resolution {sizes[1]} does not divide the finer {sizes[0]}")


def _sides(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
