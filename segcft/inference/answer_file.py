"""One file, answered: read, frame, ask, write, draw."""

import warnings
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segcft.counterfactual.edits import carry
from segcft.counterfactual.model import Answer, CounterfactualModel
from segcft.inference.file_geometry import Framing
from segcft.io.readers import Picture, Window, read_picture
from segcft.io.writers import mask_path, suffix, write_changed, write_mask
from segcft.plots import panels
from segcft.plots.panels import View
from segcft.spatial.geometry import Geometry
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.requests import Request, beyond

Row = dict[str, Any]
Masks = dict[str, Tensor]  # structure -> probabilities, (1, 1, *frame)
MISSED = 0.25  # share of a request: an answer that is further off is warned of


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first file is read.

    Attributes:
        model: With its segmentor.
        questions: Variable -> request, one dict an intervention; those of a sweep in order.
        files: File -> folder for its answers.
        parents: File -> factual values that the user gave.
        options: Of the command line.
        window: Levels that are black and white; None leaves 8 bits as they are.
    """

    model: CounterfactualModel
    questions: list[dict[str, Request]]
    files: dict[Path, Path]
    parents: dict[Path, dict[str, float]]
    options: Namespace
    window: Window | None


@torch.no_grad()
def answer_file(job: Plan, file: Path) -> list[Row]:
    """Answer every question about one file and write what came of it; a row a question and variable.

    Raises:
        ValueError: If the file cannot be read, does not fit the model, or lacks a parent.
    """
    picture = read_picture(file, job.window)
    framing = Framing.of(picture, job.model, job.window, job.options.spacing)
    canvas = framing.canvas(picture.levels).to(job.options.device)
    image = canvas.frame
    names = ("effect", "samples", "temperature", "corrections", "confined", "strict")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they become a column
        answers = job.model.counterfactuals(
            canvas.image,
            job.parents[file],
            job.questions,
            geometry=framing.geometry,
            **{name: getattr(job.options, name) for name in names},
        )
    folder = job.files[file]
    folder.mkdir(parents=True, exist_ok=True)
    rows, views = [], []
    factual = outlines(job.model, image)
    before = measured_in(job.model, factual, image, factual)
    for number, (question, answer) in enumerate(zip(job.questions, answers, strict=True)):
        name = "counterfactual" if len(answers) == 1 else f"{number:03d}"
        change = framing.levels(answer.difference)
        target = folder / f"{name}{suffix(file)}"
        asked = " ".join(request.text for request in question.values())
        note = f"Synthetic counterfactual by segcft, not acquired: {asked}"
        write_changed(file, change, target, job.window, note, job.options.keep_identity)
        drawn = framing.image(picture.levels + change).to(job.options.device)  # what is written is measured
        masks = outlines(job.model, drawn)
        if job.options.manifest:
            _write_masks(answer, factual, masks, file, target, framing)
        answer = replace(answer, measured=measured_in(job.model, masks, drawn, factual))
        views.append((answer, change, masks))
        rows += _rows(job, file, target, asked, question, answer, before)
    _draw(job, picture, framing, factual, views, folder)
    return rows


def outlines(model: CounterfactualModel, image: Tensor) -> Masks:
    """What the segmentor sees in an image (1, C, *frame); nothing without a segmentor."""
    if model.segmentor is None:
        return {}
    probabilities = model.segmentor.probabilities(image)
    return {name: probabilities[:, k, None] for k, name in enumerate(model.segmentor.description.structures)}


def measured_in(model: CounterfactualModel, masks: Masks, image: Tensor, factual: Masks) -> dict[str, Tensor]:
    """Structural variables of an image by its masks, as ``CounterfactualModel.measure`` finds them."""
    if model.segmentor is None:
        return {}
    seen, anatomy = (torch.cat(list(some.values()), 1) for some in (masks, factual))
    return measure_masks(seen, image, model.segmentor.description, anatomy)


def _write_masks(answer: Answer, factual: Masks, masks: Masks, file: Path, target: Path, framing: Framing) -> None:
    """The mask of every structure beside the counterfactual file, at its resolution.

    Where a flow carried the image, its own outlines moved along; else those that the segmentor now sees.
    """
    for name, mask in masks.items():
        if not answer.edit.carries_all:
            large = framing.geometry.enlarge(mask)
        else:
            large = carry(answer.edit, framing.geometry.enlarge(factual[name]), framing.geometry)
        write_mask(file, large[0, 0].cpu().numpy() > 0.5, mask_path(target, name))


def _rows(
    job: Plan, file: Path, target: Path, asked: str, question: dict[str, Request], answer: Answer, before: Any
) -> list[Row]:
    """One row a variable: what it was, was to be, and is by the segmentor."""
    parents, factual = job.model.parents, answer.factual_values
    structural = {name: value for name, value in factual.items() if name in parents.structural}
    reasons = beyond(structural, parents) + beyond({name: answer.values[name] for name in question}, parents)
    reasons += missed(answer, question)
    return [
        {
            "image": str(file),
            "counterfactual": str(target.relative_to(job.options.out)),
            "request": asked,
            "effect": job.options.effect,
            "variable": name,
            "unit": parents[name].unit,
            "intervened": name in question,
            "source": "given" if name in job.parents[file] else "measured",
            "factual": float(factual[name]),
            "target": float(answer.values[name]),
            "factual_measured": float(before[name]) if name in before else None,
            "measured": float(answer.measured[name]) if name in answer.measured else None,
            "warning": "; ".join(reasons),
        }
        for name in parents.names
    ]


def missed(answer: Answer, question: Iterable[str]) -> list[str]:
    """One sentence for every request of which a quarter or more is still to be done."""
    reasons = []
    for name in question:
        if name in answer.measured:
            was, asked, found = (float(v[name]) for v in (answer.factual_values, answer.values, answer.measured))
            if abs(found - asked) > MISSED * abs(asked - was):
                reasons.append(f"{name} = {asked:.4g} was asked, {found:.4g} is shown")
    return reasons


def _draw(
    job: Plan,
    picture: Picture,
    framing: Framing,
    before: Masks,
    answers: list[tuple[Answer, Any, Masks]],
    folder: Path,
) -> None:
    """Panel of the only answer, or strip and animation of a sweep."""
    levels = picture.levels.astype(np.float32)
    busiest = _busiest([change for _, change, _ in answers])
    small = Framing(framing.geometry.reduced(panels.LARGEST), framing.window)
    smaller = Geometry.of(levels.shape, small.geometry.shape)

    def fitted(values: Any) -> Any:
        mean = F.interpolate(torch.from_numpy(values)[None, None], smaller.frame, mode="area")
        return _plane(mean[0, 0].numpy(), _at(busiest, smaller))

    def spread(values: Tensor) -> Any:
        return _plane(small.enlarge(values), _at(busiest, smaller))

    def view(masks: Masks, change: Any, deviation: Tensor | None) -> View:
        outlines = {name: spread(mask) for name, mask in masks.items()}
        grey = (framing.window[1] - framing.window[0]) / 2
        deep = None if deviation is None else spread(deviation) * grey
        return View(fitted(levels + change), fitted(change), outlines, deep)

    factual = view(before, np.zeros_like(levels), None)
    views = [view(masks, change, answer.posterior_deviation) for answer, change, masks in answers]
    if len(views) == 1:
        title = " ".join(request.text for request in job.questions[0].values())
        figure = panels.panel(factual, views[0], framing.window, title, _numbers(job, answers[0][0]))
        panels.save(figure, folder / "panel.png")
        return
    labels = [list(question.values())[-1].text.partition("=")[2] for question in job.questions]
    panels.save(panels.strip(factual, views, labels, framing.window), folder / "strip.png")
    panels.animate(views, framing.window, folder / "sweep.gif")


def _numbers(job: Plan, answer: Answer) -> str:
    lines = []
    for name in job.model.parents.names:
        line = f"{name}: factual {float(answer.factual_values[name]):.4g}, asked {float(answer.values[name]):.4g}"
        found = f", found {float(answer.measured[name]):.4g}" if name in answer.measured else ""
        lines.append(f"{line}{found} {job.model.parents[name].unit}")
    return "\n".join(lines)


def _busiest(changes: list[Any]) -> int | None:
    """Of volumes, the axial slice that changes most; None of images."""
    if changes[0].ndim == 2:
        return None
    return int(sum(np.abs(change).sum((0, 1)) for change in changes).argmax())


def _at(index: int | None, smaller: Geometry) -> int | None:
    """A slice of the file's in a smaller copy."""
    return None if index is None else min(int((index + 0.5) / smaller.steps[-1]), smaller.frame[-1] - 1)


def _plane(values: Any, index: int | None) -> Any:
    """What is shown of an image or a RAS+ volume: rows from anterior down, columns from the patient's right."""
    return values if index is None else values[::-1, ::-1, index].T
