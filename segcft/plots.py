"""Tensors to figures: images, signed differences and contours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segcft.judges import Segmentor

_COLOURS = ("#e8553d", "#3d8be8", "#f2c14e", "#58b368", "#b05cc6")


def comparison(
    batch: Mapping[str, Tensor],
    do: Mapping[str, Tensor],
    truth: Mapping[str, Mapping[str, Tensor]],
    images: Mapping[str, Mapping[str, Tensor]],
    judge: Segmentor,
) -> Any:
    """Subjects by methods: factual, true counterfactual where known, then image and difference of every method.

    Two subjects a variable: the median request to shrink and the median request to grow.

    Returns:
        A matplotlib figure, drawn without a display.
    """
    from matplotlib.figure import Figure  # lazily: slow to import

    rows = [(name, subject) for name, target in do.items() for subject in typical(target, batch[name])]
    columns = 1 + 2 * (len(images) + bool(truth))
    figure = Figure(figsize=(1.9 * columns + 0.9, 2.05 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    drawn = None
    for row, (name, subject) in zip(axes, rows, strict=True):
        factual, target = batch["image"][subject], float(do[name][subject] / batch[name][subject])
        draw_image(row[0], factual, judge)
        row[0].set_ylabel(f"{name}\n{100 * (target - 1):+.0f} %", fontsize=9)
        shown = {"true counterfactual": truth[name]["image"]} if truth else {}
        shown |= {method: answers[name] for method, answers in images.items()}
        for place, (title, answers) in enumerate(shown.items()):
            left, right = row[1 + 2 * place], row[2 + 2 * place]
            draw_image(left, answers[subject], judge)
            drawn = draw_difference(right, answers[subject] - factual)
            if row is axes[0]:
                left.set_title(title.replace("_", " "), fontsize=10)
                right.set_title("difference", fontsize=9)
    axes[0][0].set_title("factual", fontsize=10)
    if drawn is not None:
        figure.colorbar(drawn, ax=axes[:, -1], shrink=0.5, label="change (image range is 2)")
    return figure


def typical(target: Tensor, before: Tensor) -> list[int]:
    """Subjects with the median request below and above their own value, (N,) each."""
    ratio = target / before
    subjects = []
    for wanted in (ratio < 1, ratio > 1):
        found = torch.nonzero(wanted).flatten()
        if len(found):
            subjects.append(int(found[ratio[found].argsort()[len(found) // 2]]))
    return subjects


def draw_image(axis: Any, image: Tensor, judge: Segmentor) -> None:
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
