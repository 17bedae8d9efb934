"""One file, answered: read, frame, ask, write, draw."""

import textwrap
import unicodedata
import warnings
from argparse import Namespace
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segcft.core.formatting import number
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.subject import Answer, OpenedSubject
from segcft.inference.file_geometry import Framing
from segcft.io.picture import Picture, Window
from segcft.io.readers import read_picture
from segcft.io.writers import mask_path, suffix, write_changed, write_mask
from segcft.plots import panels
from segcft.plots.panels import View
from segcft.spatial.geometry import Geometry
from segcft.variables.requests import Request, beyond

Row = dict[str, Any]
NOTE = "Synthetic counterfactual by segcft, not acquired: "
MISSED = 0.25  # share of a request: an answer that is further off is warned of, by the segmentor or the evaluator


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
    framing = Framing.of(picture, job.model, job.window, job.options.spacing, job.parents[file])
    image = framing.canvas(picture.levels).image.to(job.options.device)
    subject = job.model.open(image, job.parents[file], framing.geometry, picture.doubts)
    names = ("effect", "samples", "temperature", "corrections", "confined", "strict")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they become a column
        answers = subject.ask(job.questions, **{name: getattr(job.options, name) for name in names})
    folder = job.files[file]
    folder.mkdir(parents=True, exist_ok=True)
    found, changes = [], []
    for place, (question, answer) in enumerate(zip(job.questions, answers, strict=True)):
        name = "counterfactual" if len(answers) == 1 else f"{place:03d}"
        changes.append(framing.levels(answer.difference))
        target = folder / f"{name}{suffix(file)}"
        asked = " ".join(request.text for request in question.values())
        write_changed(file, changes[-1], target, job.window, note(asked, subject), job.options.keep_identity)
        if job.options.manifest:
            for structure, mask in zip(subject.structures, answer.large_masks[0].cpu().numpy(), strict=True):
                write_mask(file, mask > 0.5, mask_path(target, structure))
        about = {"counterfactual": str(target.relative_to(job.options.out)), "request": asked}
        about = {"image": str(file), **about, "effect": job.options.effect}
        found += [{**about, **row} for row in rows(answer, question, reasons(answer, question))]
    _draw(job, picture, framing, answers, changes, folder)
    return found


def note(asked: str, subject: OpenedSubject) -> str:
    """What is written into a counterfactual file, in ASCII: what it is, and why its subject is doubtful."""
    text = unicodedata.normalize("NFKC", "; ".join([NOTE + asked, *subject.doubts]))
    return text.encode("ascii", "replace").decode()


def rows(answer: Answer, intervened: Container[str], warnings: list[str]) -> list[Row]:
    """One row a variable: what it was, was to be, and is by the segmentor; shares of the requested change."""
    subject, parents = answer.subject, answer.subject.model.parents
    return [
        {
            "variable": name,
            "unit": parents[name].unit,
            "intervened": name in intervened,
            "source": "given" if name in subject.given else "measured",
            "factual": float(subject.values[name]),
            "target": float(answer.values[name]),
            "factual_measured": float(subject.measured[name]) if name in subject.measured else None,
            "measured": float(answer.measured[name]) if name in answer.measured else None,
            "share": _share(answer, name) if name in intervened else None,
            "evaluator_share": _share(answer, name, evaluator=True) if name in intervened else None,
            "warning": "; ".join(warnings),
        }
        for name in parents.names
    ]


def reasons(answer: Answer, intervened: Iterable[str]) -> list[str]:
    """To doubt an answer, a sentence each: an image or target unlike those of the training, a missed request."""
    asked = {name: answer.values[name] for name in intervened}
    return answer.subject.doubts + beyond(asked, answer.subject.model.parents) + missed(answer, asked)


def missed(answer: Answer, question: Iterable[str]) -> list[str]:
    """One sentence for every request of which a quarter or more is still to be done, by segmentor or evaluator."""
    reasons = []
    for name in question:
        judged = _share(answer, name, evaluator=True)
        if judged is not None and not judged >= 1 - MISSED:
            reasons.append(f"{name}: the evaluator measures {number(100 * judged)} % of the change that was asked for")
        if name in answer.measured:
            was, asked, found = (float(v[name]) for v in (answer.subject.values, answer.values, answer.measured))
            if abs(found - asked) > MISSED * abs(asked - was):
                shown = answer.subject.model.parents[name].shown
                reasons.append(f"{name} = {shown(asked)} was asked, {shown(found)} is measured")
    return reasons


def _share(answer: Answer, name: str, evaluator: bool = False) -> float | None:
    """Share of the requested change that was made of one image; None if it is not known, or none was requested."""
    found = answer.share(name, evaluator)
    return None if found is None or not bool(found.isfinite()) else float(found)


def _draw(
    job: Plan,
    picture: Picture,
    framing: Framing,
    answers: list[Answer],
    changes: list[Any],
    folder: Path,
) -> None:
    """Panel of the only answer, or strip and animation of a sweep."""
    levels = picture.levels.astype(np.float32)
    index, subject = busiest(changes), answers[0].subject
    small = Framing(framing.geometry.reduced(panels.LARGEST), framing.window)
    smaller = Geometry.of(levels.shape, small.geometry.shape)

    def fitted(values: Any) -> Any:
        mean = F.interpolate(torch.from_numpy(values)[None, None], smaller.frame, mode="area")
        return plane(mean[0, 0].numpy(), _at(index, smaller))

    def spread(values: Tensor) -> Any:
        return plane(small.enlarge(values), _at(index, smaller))

    def view(masks: Tensor, change: Any, deviation: Tensor | None = None) -> View:
        outlines = {
            name: spread(mask) for name, mask in zip(subject.structures, torch.split(masks, 1, 1), strict=False)
        }
        grey = (framing.window[1] - framing.window[0]) / 2
        deep = None if deviation is None else spread(deviation) * grey
        return View(fitted(levels + change), fitted(change), outlines, deep)

    factual = view(subject.masks, np.zeros_like(levels))
    pairs = zip(answers, changes, strict=True)
    views = [view(answer.masks, change, answer.posterior_deviation) for answer, change in pairs]
    if len(views) == 1:
        title = " ".join(request.text for request in job.questions[0].values())
        figure = panels.panel(factual, views[0], framing.window, title, _numbers(job, answers[0]))
        panels.save(figure, folder / "panel.png")
        return
    labels = [list(question.values())[-1].text.partition("=")[2] for question in job.questions]
    figure = panels.strip(factual, views, labels, framing.window)
    figure.supxlabel("\n".join(_doubtful(subject)), fontsize=8)
    panels.save(figure, folder / "strip.png")
    panels.animate(views, framing.window, folder / "sweep.gif")


def _numbers(job: Plan, answer: Answer) -> str:
    lines = _doubtful(answer.subject)
    for name in job.model.parents.names:
        shown = job.model.parents[name].shown
        line = f"{name}: factual {shown(float(answer.subject.values[name]))}, asked {shown(float(answer.values[name]))}"
        measured = f", measured {shown(float(answer.measured[name]))}" if name in answer.measured else ""
        lines.append(line + measured + _shares(answer, name))
    return "\n".join(lines)


def _shares(answer: Answer, name: str) -> str:
    """Shares of a change that an evaluator judges; empty without one."""
    judged = _share(answer, name, evaluator=True)
    if judged is None:
        return ""
    by = {"segmentor": _share(answer, name), "evaluator": judged}
    known = (f"{number(100 * share)} % by the {judge}" for judge, share in by.items() if share is not None)
    return f"; share of the change: {', '.join(known)}"


def _doubtful(subject: OpenedSubject) -> list[str]:
    """Why a subject is doubtful, in lines that fit below a picture."""
    return textwrap.wrap("DOUBTFUL: " + "; ".join(subject.doubts), 120) if subject.doubts else []


def busiest(changes: Sequence[Any]) -> int | None:
    """Of volumes (*S), the axial slice that changes most, or the middle one if none does; None of images."""
    if changes[0].ndim == 2:
        return None
    amount = sum(np.abs(change).sum((0, 1)) for change in changes)
    return int(amount.argmax()) if amount.any() else len(amount) // 2


def _at(index: int | None, smaller: Geometry) -> int | None:
    """A slice of the file's in a smaller copy."""
    return None if index is None else min(int((index + 0.5) / smaller.steps[-1]), smaller.frame[-1] - 1)


def plane(values: Any, index: int | None) -> Any:
    """What is shown of an image or a RAS+ volume: rows from anterior down, columns from the patient's right."""
    return values if index is None else values[::-1, ::-1, index].T
