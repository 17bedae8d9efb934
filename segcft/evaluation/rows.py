"""From images to one row a question and subject: everything that is known of an answer, before any mean is taken."""

import functools

import pandas as pd
import torch
from torch import Tensor

from segcft.evaluation import metrics
from segcft.evaluation.protocol import Answers, Cohort, measure
from segcft.guidance.judges import SegmentationModel
from segcft.variables.mask_measurements import located, share
from segcft.variables.regions import dilate, reach
from segcft.variables.variables import DataDescription, Variable


def is_size(variable: Variable) -> bool:
    """Whether per cent of a value make sense: an area or volume, which cannot be negative."""
    return variable.measure == "area" and not variable.over and variable.low >= 0


def rows(given: Answers, cohort: Cohort, judge: SegmentationModel) -> pd.DataFrame:
    """Every question of one method, a row a subject.

    Columns: ``do``, ``subject``; ``factual``, ``target``, ``before``, ``measured`` (by the evaluator) and ``error`` in
    the variable's unit; ``error_percent`` of the target (sizes alone), ``error_sd`` in % of the training deviation,
    ``judged`` the former where it makes sense, else the latter, ``guided`` the same by the method's own guide;
    ``change_NAME`` of every other variable, signed, in % (of the deviation if it is no size), ``shift_NAME`` in
    training deviations, ``asked_sd`` the request in the same; mean absolute changes of the image ``outside`` the
    structure and what it carries, ``change``, that ``within`` the variable's region, ``reversibility``,
    ``composition``, ``reconstruction``; ``truth_*`` and ``mask_error`` to the true counterfactual, ``*_unchanged``
    those of the factual image; ``edge_before`` and ``edge_after`` across the border that a shrinking structure left.
    NaN where unknown.
    """
    return pd.concat([_question(name, given, cohort, judge) for name in given.images], ignore_index=True)


def _question(name: str, given: Answers, cohort: Cohort, judge: SegmentationModel) -> pd.DataFrame:
    image, cf_image, target = cohort.batch["image"], given.images[name], cohort.do[name]
    measured, masks = measure(judge, cf_image, cohort.masks)
    variable, both = judge.description.parents[name], (cohort.masks, masks)
    before, after = (_part(name, some, cohort.masks, judge.description) for some in both)
    moving = (located(some, variable.moves, variable.region, cohort.masks, judge.description) for some in both)
    near = dilate(functools.reduce(torch.logical_or, moving), reach(image))
    columns: dict[str, Tensor] = {
        "factual": cohort.batch[name],
        "target": target,
        "before": cohort.measured[name],
        "measured": measured[name],
        **_errors(cohort.description.parents[name], measured[name], target, given.guided.get(name)),
        **_off_target(name, cohort, measured),
        "outside": metrics.change_outside(image, cf_image, near),
        "change": metrics.change(image, cf_image),
        "within": _within(name, image, cf_image, cohort.masks, judge.description),
        **_axioms(name, given, image),
        **_edges(image, cf_image, before, after, target < cohort.batch[name]),
        **_truth(name, cohort, cf_image, before, after),
    }
    frame = pd.DataFrame({key: value.double().tolist() for key, value in columns.items()})
    frame.insert(0, "subject", cohort.batch["index"].tolist())
    frame.insert(0, "do", name)
    return frame


def _errors(variable: Variable, measured: Tensor, target: Tensor, guided: Tensor | None) -> dict[str, Tensor]:
    """Distances to the target, the evaluator's and the guide's."""
    unknown, size = torch.full_like(target, torch.nan), is_size(variable)

    def deviations(value: Tensor) -> Tensor:
        return 100 * (value - target).abs() / variable.std

    def judged(value: Tensor) -> Tensor:
        return metrics.percent(value - target, target) if size else deviations(value)

    return {
        "error": (measured - target).abs(),
        "error_percent": judged(measured) if size else unknown,
        "error_sd": deviations(measured),
        "judged": judged(measured),
        "guided": unknown if guided is None else judged(guided),
    }


def _off_target(name: str, cohort: Cohort, measured: dict[str, Tensor]) -> dict[str, Tensor]:
    """How much every other variable moved, and how much was asked of this one."""
    parents = cohort.description.parents
    found = {"asked_sd": (cohort.do[name] - cohort.batch[name]) / parents[name].std}
    for other in cohort.do:
        moved, before = measured[other] - cohort.measured[other], cohort.measured[other]
        shares = moved / before.abs().clamp(min=1e-12) if is_size(parents[other]) else moved / parents[other].std
        unknown = torch.full_like(moved, torch.nan)
        found[f"change_{other}"] = unknown if other == name else 100 * shares
        found[f"shift_{other}"] = unknown if other == name else moved / parents[other].std
    return found


def _axioms(name: str, given: Answers, image: Tensor) -> dict[str, Tensor]:
    unknown = torch.full((len(image),), torch.nan)
    return {
        "reversibility": metrics.change(image, given.returned[name]) if name in given.returned else unknown,
        "composition": unknown if given.null is None else metrics.change(image, given.null),
        "reconstruction": unknown if given.reconstruction is None else given.reconstruction,
    }


def _edges(image: Tensor, cf_image: Tensor, before: Tensor, after: Tensor, shrinks: Tensor) -> dict[str, Tensor]:
    """Sharpness of the border that was left, signed so that the factual one is positive."""
    there, still = (metrics.old_border(shown, before, after) for shown in (image, cf_image))
    there, still = (torch.where(shrinks, contrast, torch.nan) for contrast in (there, still))
    return {"edge_before": there.abs(), "edge_after": still * there.sign()}


def _part(name: str, masks: Tensor, anatomy: Tensor, about: DataDescription) -> Tensor:
    """What a variable is measured on, (B, *S), bool."""
    return located(masks, about.parents[name].structure, about.parents[name].region, anatomy, about)


def _within(name: str, image: Tensor, cf_image: Tensor, anatomy: Tensor, about: DataDescription) -> Tensor:
    """That part of the mean absolute change which lies in the variable's region; NaN without one."""
    region, structure = about.parents[name].region, about.parents[name].structure
    if region is None:
        return torch.full((len(image),), torch.nan)
    return ((cf_image - image).abs() * share(region, anatomy.float(), structure, about)).flatten(1).mean(1)


def _truth(name: str, cohort: Cohort, cf_image: Tensor, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Distances to the true counterfactual, this answer's and the unchanged image's."""
    if name not in cohort.truth:
        return {}
    truth, image = cohort.truth[name], cohort.batch["image"]
    anatomy, about = cohort.batch["mask"], cohort.description
    was, wanted = (_part(name, batch["mask"] > 0.5, anatomy, about) for batch in (cohort.batch, truth))
    near = dilate(was | wanted, reach(image))
    found, nothing = metrics.truth_errors(cf_image, truth["image"], near), metrics.change(image, truth["image"])
    missed = (image - truth["image"]).abs().mean(1)  # (B, *S)
    return {
        **{f"truth_{key}": value for key, value in found.items()},
        "truth_mae_unchanged": nothing,
        "truth_mae_neighbourhood_unchanged": metrics.masked_mean(missed, near),
        "truth_ratio": found["mae"] / nothing.clamp(min=1e-12),
        "nearer": (found["mae"] < nothing).float(),
        "mask_error": metrics.mask_difference(after, wanted),
        "mask_error_unchanged": metrics.mask_difference(before, wanted),
    }
