"""Tensors to figures: images, signed differences and contours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segcft.judges import SegmentationModel

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
        row[0].set_ylabel(f"do({name})\n{number(before)} to {number(target)} {units[name].unit}".rstrip(), fontsize=9)
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


def typical(target: Tensor, before: Tensor) -> list[int]:
    """Subjects with the median request below and above their own value, (N,) each."""
    request = target - before
    subjects = []
    for wanted in (request < 0, request > 0):
        found = torch.nonzero(wanted).flatten()
        if len(found):
            subjects.append(int(found[request[found].argsort()[len(found) // 2]]))
    return subjects


def draw_image(axis: Any, image: Tensor, judge: SegmentationModel) -> None:
    """One image (C, *S) with the evaluator's contours; a volume shows its middle slice."""
    masks = judge.probabilities(image[None])[0]  # (K, *S)
    axis.imshow(_slice(image[0]), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    for mask, colour in zip(masks, _COLOURS, strict=False):
        flat = _slice(mask)
        if flat.max() > 0.5 > flat.min():
            axis.contour(flat, levels=[0.5], colors=[colour], linewidths=0.9)
    axis.set(xticks=[], yticks=[])


def draw_difference(axis: Any, difference: Tensor, limit: float = 0.8) -> Any:
    """Signed change (C, *S): red brighter, blue darker, white none."""
    axis.set(xticks=[], yticks=[])
    return axis.imshow(_slice(difference[0]), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")


def _slice(values: Tensor) -> Any:
    middle = values if values.dim() == 2 else values[values.shape[0] // 2]
    return middle.float().cpu().numpy()


def number(value: float) -> str:
    """Three digits and no exponent.

    >>> number(17712.4), number(0.21349), number(-3.0)
    ('17,712', '0.213', '-3')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
