"""A few subjects while one variable at a time goes through its range: pictures for reports, kept in one file."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_modules.common.data_module import Batch, ImageDataset, Rerenderable
from segcft.evaluation.protocol import Cohort, EvaluatedMethod, Values, predict
from segcft.evaluation.traversal_file import Sweeps
from segcft.guidance.judges import SegmentationModel
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.variables import Variable

STEPS = 7
MARGIN = 0.05  # share of the training subjects beyond either end
Array = npt.NDArray[Any]


def sweep(
    methods: Mapping[str, EvaluatedMethod],
    cohort: Cohort,
    dataset: ImageDataset,
    judge: SegmentationModel,
    subjects: int,
    truth: str,
) -> Sweeps:
    """Ask every method for ``STEPS`` values of every variable, of the first subjects.

    Args:
        methods: Methods by name.
        cohort: The first of its subjects are asked.
        dataset: Draws true counterfactuals if it can; they are left out if one of them cannot be.
        judge: Measures and outlines.
        subjects: How many are asked.
        truth: Name of the true counterfactuals among the methods.
    """
    few = {name: value[:subjects] for name, value in cohort.batch.items()}
    parents = cohort.description.parents
    targets = {name: steps(parents[name]) for name in cohort.do}
    drawn = _true(dataset, few, targets) if cohort.do.keys() <= cohort.truth.keys() else None
    images = {} if drawn is None else {truth: drawn}
    images |= {name: _asked(evaluated, few, targets) for name, evaluated in methods.items()}
    found = [_seen(judge, given, few["image"]) for given in images.values()]
    factual, factual_outlines = few["image"], judge.probabilities(few["image"])
    return Sweeps(
        methods=np.array(list(images)),
        variables=np.array(list(targets)),
        units=np.array([parents[name].unit for name in targets]),
        structures=np.array(judge.description.structures),
        subjects=few["index"].numpy(),
        targets=np.stack([value.numpy() for value in targets.values()]),
        values=np.stack([few[name].numpy() for name in targets]),
        measured=np.stack([part[0] for part in found]),
        factual=_grey(factual),
        factual_outlines=_bytes(_slice(factual_outlines)),
        frames=np.stack([part[1] for part in found]),
        outlines=np.stack([part[2] for part in found]),
    )


def steps(variable: Variable) -> Tensor:
    """``STEPS`` values between the outer quantiles of the training subjects, or their range if those are not known."""
    ends = (variable.low, variable.high)
    if variable.quantiles:
        ends = (variable.quantile(MARGIN), variable.quantile(1 - MARGIN))
    return torch.linspace(*ends, STEPS)


def _asked(evaluated: EvaluatedMethod, few: Batch, targets: Values) -> dict[str, Tensor]:
    """Variable -> images (N * T, C, *S), subject by subject."""
    count = len(few["image"])
    values = {name: value.repeat_interleave(STEPS, 0) for name, value in evaluated.model.parents.take(few).items()}
    acted = [evaluated.model.act(values, {name: target.repeat(count)}) for name, target in targets.items()]
    images, _ = predict(evaluated, few["image"].repeat_interleave(STEPS, 0), values, acted)
    return dict(zip(targets, images, strict=True))


def _true(dataset: ImageDataset, few: Batch, targets: Values) -> dict[str, Tensor] | None:
    assert isinstance(dataset, Rerenderable)
    index, count = few["index"].repeat_interleave(STEPS, 0), len(few["index"])
    try:
        return {n: dataset.counterfactual(index, {n: target.repeat(count)})["image"] for n, target in targets.items()}
    except ValueError:  # this anatomy cannot be
        return None


def _seen(judge: SegmentationModel, images: dict[str, Tensor], factual: Tensor) -> tuple[Array, Array, Array]:
    """Values (V, N, T), pictures (V, N, T, H, W) and outlines (V, N, T, K, H, W) of one method's answers."""
    anatomy = (judge.probabilities(factual) > 0.5).repeat_interleave(STEPS, 0)
    split, values, frames, outlines = (len(factual), STEPS), [], [], []
    for name, image in images.items():
        soft = judge.probabilities(image)
        values.append(measure_masks(soft, image, judge.description, anatomy)[name].view(split).numpy())
        frames.append(_grey(image).reshape(*split, *image.shape[-2:]))
        outlines.append(_bytes(_slice(soft)).reshape(*split, soft.shape[1], *image.shape[-2:]))
    return np.stack(values), np.stack(frames), np.stack(outlines)


def _grey(image: Tensor) -> Array:
    """Images (B, C, *S) in [-1, 1] as (B, H, W) from 0 to 255."""
    return _bytes((_slice(image)[:, 0] + 1) / 2)


def _bytes(values: Tensor) -> Array:
    flat: Array = values.float().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    return flat


def _slice(values: Tensor) -> Tensor:
    return values if values.dim() == 4 else values[:, :, values.shape[2] // 2]
