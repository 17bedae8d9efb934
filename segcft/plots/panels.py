"""Pictures of one answer at the resolution of its file: a panel, the strip of a sweep, an animation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcft.core.atomic_files import staged

COLOURS = ("#e8553d", "#3d8be8", "#f2c14e", "#58b368", "#b05cc6")
LIMIT = 0.4  # of the window: where the colours of a difference end
LARGEST = 1024  # pixels of an image in a panel or strip, at most: more than it shows
SIDE = 512  # pixels of an animation, at most

Plane = NDArray[Any]  # (H, W)


@dataclass(frozen=True)
class View:
    """What is shown of an image, (H, W) each.

    Attributes:
        levels: Grey levels.
        change: Counterfactual minus factual, in grey levels; zero for the factual image.
        outlines: Structure -> probability, by the segmentor.
        deviation: Over the particles, in grey levels; None of a single one.
    """

    levels: Plane
    change: Plane
    outlines: Mapping[str, Plane]
    deviation: Plane | None = None


def panel(factual: View, answer: View, window: tuple[float, float], title: str, numbers: str) -> Any:
    """Factual and counterfactual image with outlines, signed difference, and deviation where there are particles.

    Args:
        factual: As it was.
        answer: As it would have been; the factual outlines are dashed in it.
        window: Levels shown as black and white.
        title: Above all.
        numbers: Lines below all.

    Returns:
        A matplotlib figure, drawn without a display.
    """
    from matplotlib.figure import Figure  # lazily: slow to import

    columns = 3 if answer.deviation is None else 4
    high, wide = answer.levels.shape
    figure = Figure(figsize=(4 * columns, 4 * min(high / wide, 1.6) + 1.2), layout="constrained")
    axes = figure.subplots(1, columns)
    _image(axes[0], factual, window, "factual")
    _image(axes[1], answer, window, "counterfactual (synthetic)")
    _outline(axes[1], factual, "dashed")
    drawn = _difference(axes[2], answer, window)
    axes[2].set_title("change", fontsize=10)
    figure.colorbar(drawn, ax=axes[2], shrink=0.7, label="grey levels")
    if answer.deviation is not None:
        drawn = axes[3].imshow(answer.deviation, cmap="magma", vmin=0)
        axes[3].set_title("deviation over particles", fontsize=10)
        figure.colorbar(drawn, ax=axes[3], shrink=0.7, label="grey levels")
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(numbers, fontsize=8, family="monospace")
    _legend(figure, answer)
    return figure


def strip(factual: View, answers: Sequence[View], labels: Sequence[str], window: tuple[float, float]) -> Any:
    """All answers of a sweep side by side, and what changed below each; a matplotlib figure."""
    from matplotlib.figure import Figure  # lazily: slow to import

    high, wide = factual.levels.shape
    size = (2.1 * (len(answers) + 1), 4.2 * min(high / wide, 1.6) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2, len(answers) + 1, squeeze=False)
    _image(axes[0, 0], factual, window, "factual")
    axes[1, 0].set_axis_off()
    for column, (answer, label) in enumerate(zip(answers, labels, strict=True), start=1):
        _image(axes[0, column], answer, window, label)
        drawn = _difference(axes[1, column], answer, window)
    figure.colorbar(drawn, ax=axes[1, 0], shrink=0.8, label="change, grey levels", location="left")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    _legend(figure, factual)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with staged(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def animate(answers: Sequence[View], window: tuple[float, float], path: Path) -> None:
    """A GIF that goes through a sweep and back, whole or not at all."""
    from PIL import Image  # lazily, as above

    frames = []
    for answer in [*answers, *answers[-2:0:-1]]:
        grey = 255 * (answer.levels.astype(np.float32) - window[0]) / (window[1] - window[0])
        frame = Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
        frame.thumbnail((SIDE, SIDE))
        frames.append(frame)
    with staged(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=150, loop=0)


def _image(axis: Any, view: View, window: tuple[float, float], title: str) -> None:
    axis.imshow(view.levels, cmap="gray", vmin=window[0], vmax=window[1])
    _outline(axis, view, "solid")
    axis.set_title(title, fontsize=10)


def _difference(axis: Any, view: View, window: tuple[float, float]) -> Any:
    limit = LIMIT * (window[1] - window[0])
    return axis.imshow(view.change, cmap="RdBu_r", vmin=-limit, vmax=limit)


def _outline(axis: Any, view: View, style: str) -> None:
    for probability, colour in zip(view.outlines.values(), COLOURS, strict=False):
        if probability.max() > 0.5 > probability.min():
            axis.contour(probability, levels=[0.5], colors=[colour], linewidths=0.9, linestyles=style)


def _legend(figure: Any, view: View) -> None:
    from matplotlib.lines import Line2D

    if view.outlines:
        lines = [Line2D([], [], color=colour) for colour, _ in zip(COLOURS, view.outlines, strict=False)]
        names = [name.replace("_", " ") for name in view.outlines]
        figure.legend(lines, names, loc="outside upper right", ncols=len(lines), frameon=False, fontsize=8)
