"""Tensors to figures: images, signed differences and contours."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcft.core.formatting import question
from segcft.guidance.judges import SegmentationModel

_COLOURS = ("#e8553d", "#3d8be8", "#f2c14e", "#58b368", "#b05cc6")


def comparison(
    batch: Mapping[str, Tensor],
    do: Mapping[str, Tensor],
    truth: Mapping[str, Mapping[str, Tensor]],
    images: Mapping[str, Mapping[str, Tensor]],
    judge: SegmentationModel,
) -> Any:
    """Subjects by methods: factual, true counterfactual where all are known, then image and difference of every method.

    Two subjects a variable: the median request to shrink and the median request to grow.

    Returns:
        A matplotlib figure, drawn without a display.
    """
    from matplotlib.figure import Figure  # lazily: slow to import
    from matplotlib.lines import Line2D

    rows = [(name, subject) for name, target in do.items() for subject in typical(target, batch[name])]
    units, known = judge.description.parents, bool(do) and do.keys() <= truth.keys()
    titles = [*(["true counterfactual"] if known else []), *images]
    figure = Figure(figsize=(3.8 * len(titles) + 2.8, 2.05 * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), 1 + 2 * len(titles), squeeze=False)
    for row, (name, subject) in zip(axes, rows, strict=True):
        answers = [*([truth[name]["image"]] if known else []), *(given[name] for given in images.values())]
        drawn = _draw_row(row, batch["image"][subject], [given[subject] for given in answers], judge)
        before, target = float(batch[name][subject]), float(do[name][subject])
        row[0].set_ylabel(question(name, before, target, units[name].unit), fontsize=9)
    for axis, title in zip(axes[0], ["factual", *(t for method in titles for t in (method, "change"))], strict=True):
        axis.set_title(title.replace("_", " "), fontsize=10)
    figure.colorbar(drawn, ax=axes[:, -1], shrink=0.5, label="change (the image's range is 2)")
    lines = [Line2D([], [], color=colour) for colour, _ in zip(_COLOURS, judge.description.structures, strict=False)]
    names = [f"{name} by the evaluator".replace("_", " ") for name in judge.description.structures]
    figure.legend(lines, names, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9)
    return figure


def _draw_row(row: Any, factual: Tensor, answers: list[Tensor], judge: SegmentationModel) -> Any:
    """Factual image, then every answer beside its change."""
    draw_image(row[0], factual, judge)
    for column, given in enumerate(answers):
        draw_image(row[1 + 2 * column], given, judge)
        drawn = draw_difference(row[2 + 2 * column], given - factual)
    return drawn


def answers(
    images: Sequence[Tensor], captions: Sequence[str], judge: SegmentationModel | None, limit: float = 0.8
) -> Any:
    """A row a subject: factual, reconstruction, counterfactual, and the signed change with its colours' meaning.

    Args:
        images: The first three, (B, C, *S) each in [-1, 1].
        captions: What was asked and found, (B,).
        judge: Outlines the structures, if there is one.
        limit: Where the colours end.

    Returns:
        A matplotlib figure, drawn without a display.
    """
    from matplotlib.figure import Figure  # lazily: slow to import

    shown = [[_slice(each[0]) for each in row] for row in zip(*images, strict=True)]
    change = [[_slice((after - before)[0])] for before, _, after in zip(*images, strict=True)]
    tall, wide = _tiles(change, math.nan).shape  # a mosaic, for axes are slow
    high = 2.2 * tall / wide
    figure = Figure(figsize=(10.4, high + 0.5), dpi=80)
    left, right, bar = figure.subplots(1, 3, width_ratios=(3 * wide, wide, wide / 12), gridspec_kw={
        "left": 0.08, "right": 0.93, "bottom": 0.1 / (high + 0.5), "top": 1 - 0.3 / (high + 0.5), "wspace": 0.02,
    })  # fmt: skip
    left.imshow(_tiles(shown, math.nan), cmap="gray", vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    if judge is not None:
        masks = [judge.probabilities(each) for each in images]  # (B, K, *S) each
        for channel, colour in zip(range(masks[0].shape[1]), _COLOURS, strict=False):
            tiles = [[_slice(each[channel]) for each in row] for row in zip(*masks, strict=True)]
            _contour(left, _tiles(tiles, 0.0), colour)
    drawn = right.imshow(_tiles(change, math.nan), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    figure.colorbar(drawn, cax=bar, label="change (the image's range is 2)")
    right.set_yticks([])
    left.set_xticks([(place + 0.5) * wide for place in range(3)], ["factual", "reconstruction", "counterfactual"])
    right.set_xticks([wide / 2], ["counterfactual - factual"])
    rows = [(place + 0.5) * tall / len(captions) for place in range(len(captions))]
    left.set_yticks(rows, captions, fontsize=9, rotation=90, va="center", ma="center")
    for axis in (left, right):
        axis.set_frame_on(False)
        axis.tick_params(length=0, labeltop=True, labelbottom=False)
    return figure


def _tiles(rows: Sequence[Sequence[NDArray[Any]]], gap: float) -> NDArray[Any]:
    """Pictures of one size (H, W), side by side in rows, with gaps."""
    return np.vstack([np.hstack([np.pad(tile, 1, constant_values=gap) for tile in row]) for row in rows])


def causal_graph(causes: Mapping[str, Sequence[str]]) -> Any:
    """Who causes whom, from left to right.

    Args:
        causes: Effect -> its causes; every cause is a key, too.

    Returns:
        A matplotlib figure, drawn without a display.
    """
    from matplotlib.figure import Figure  # lazily: slow to import

    def depth(name: str) -> int:
        return 1 + max((depth(cause) for cause in causes[name]), default=-1)

    columns = [[name for name in causes if depth(name) == place] for place in range(1 + max(map(depth, causes)))]
    places = {
        name: (3.0 * x, (len(column) - 1) / 2 - y) for x, column in enumerate(columns) for y, name in enumerate(column)
    }
    high = max(map(len, columns))
    figure = Figure(figsize=(2.4 * len(columns) + 0.6, 0.55 * high + 0.6), layout="constrained", dpi=90)
    axis = figure.subplots()
    axis.set(xlim=(-1.4, 3 * len(columns) - 1.6), ylim=(-high / 2 - 0.2, high / 2 + 0.2))
    axis.set_axis_off()
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "#444444"}
    shown = {
        name: axis.text(x, y, name.replace("_", " "), ha="center", va="center", fontsize=9, bbox=box, zorder=2)
        for name, (x, y) in places.items()
    }
    for effect, found in causes.items():
        for cause in found:
            ends = {"patchA": shown[cause].get_bbox_patch(), "patchB": shown[effect].get_bbox_patch()}
            bend = {"arrowstyle": "-|>", "color": "#777777", "connectionstyle": "arc3,rad=0.08", **ends}
            axis.annotate("", places[effect], places[cause], arrowprops=bend)
    return figure


def scatter(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Any:
    """A panel a title: asked across and measured up, (n,) each; on the line they agree. A matplotlib figure."""
    from matplotlib.figure import Figure  # lazily: slow to import

    figure = Figure(figsize=(2.9 * len(pairs) + 0.2, 3.0), layout="constrained", dpi=90)
    for axis, (title, both) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs.items(), strict=True):
        asked, measured = (values.float().cpu().numpy() for values in both)
        every = np.concatenate([asked, measured]) if len(asked) else np.zeros(1)
        ends = every.min() - 0.05 * np.ptp(every) - 1e-6, every.max() + 0.05 * np.ptp(every) + 1e-6
        axis.plot(ends, ends, color="#999999", linewidth=1)
        axis.plot(asked, measured, "o", color="#2f6db3", markersize=3, alpha=0.6)
        axis.set(xlim=ends, ylim=ends, aspect="equal")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("asked", fontsize=8)
        axis.set_ylabel("measured", fontsize=8)
        axis.tick_params(labelsize=7)
    return figure


def raster(figure: Any) -> NDArray[np.uint8]:
    """A figure as pixels, (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # lazily, as above

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3]
    return pixels


def typical(target: Tensor, before: Tensor) -> list[int]:
    """Subjects with the median request below and above their own value, (N,) each."""
    request = target - before
    subjects = []
    for wanted in (request < 0, request > 0):
        found = torch.nonzero(wanted).flatten()
        if len(found):
            subjects.append(int(found[request[found].argsort()[len(found) // 2]]))
    return subjects


def draw_image(axis: Any, image: Tensor, judge: SegmentationModel | None) -> None:
    """One image (C, *S) with the contours of a judge, if there is one; a volume shows its middle slice."""
    masks = () if judge is None else judge.probabilities(image[None])[0]  # (K, *S)
    axis.imshow(_slice(image[0]), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    for mask, colour in zip(masks, _COLOURS, strict=False):
        _contour(axis, _slice(mask), colour)
    axis.set(xticks=[], yticks=[])


def _contour(axis: Any, probability: NDArray[Any], colour: str) -> None:
    if probability.max() > 0.5 > probability.min():
        axis.contour(probability, levels=[0.5], colors=[colour], linewidths=0.9)


def draw_difference(axis: Any, difference: Tensor, limit: float = 0.8) -> Any:
    """Signed change (C, *S): red brighter, blue darker, white none."""
    axis.set(xticks=[], yticks=[])
    return axis.imshow(_slice(difference[0]), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")


def _slice(values: Tensor) -> Any:
    middle = values if values.dim() == 2 else values[values.shape[0] // 2]
    return middle.float().cpu().numpy()
