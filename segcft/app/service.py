"""Opens images and answers questions about them; knows neither HTTP nor Lightning."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from segcft.app.opened_image import PARTICLES, Case, Question, Reply, Subject
from segcft.counterfactual.edits import Canvas
from segcft.counterfactual.model import CORRECTIONS, Answer, CounterfactualModel
from segcft.inference.answer_file import measured_in, missed, outlines
from segcft.inference.file_geometry import Framing
from segcft.io.readers import Picture, Window, read_picture
from segcft.spatial.geometry import Geometry
from segcft.variables.requests import beyond, once, parse, targets

MOST = 2**26  # pixels or voxels of an upload
Result = TypeVar("Result")


class Desk:
    """Opens images and answers questions about them; the same for everyone, so it remembers nobody.

    Args:
        model: With its segmentor, if there is one.
        cases: To be picked.

    Raises:
        ValueError: If the model draws colours, or a case does not fit it.
    """

    def __init__(self, model: CounterfactualModel, cases: Sequence[Case] = ()) -> None:
        if model.description.channels != 1:
            raise ValueError(f"the app shows grey images, the model draws {model.description.channels} channels")
        self.model, self.frame = model, model.frame
        for case in cases:
            if tuple(case.image.shape) != (1, 1, *self.frame):
                raise ValueError(f"case {case.name} has shape {tuple(case.image.shape)}, the model needs {self.frame}")
        self.cases = {case.name: case for case in cases}
        self.device = next(model.parameters()).device

    @property
    def graph(self) -> dict[str, list[str]]:
        """Variable -> its causes, causes first."""
        return dict(self.model.mechanism.graph) or {name: [] for name in self.model.parents.names}

    @property
    def hidden(self) -> list[str]:
        """Variables that must be told about an upload, for nothing can measure them."""
        seen = self.model.parents.structural if self.model.segmentor is not None else {}
        return [name for name in self.model.parents.names if name not in seen]

    @torch.no_grad()
    def open_case(self, name: str) -> Subject:
        """Abduct a case.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in self.cases:
            raise ValueError(f"there is no case {name!r}; there are {', '.join(self.cases) or 'none'}")
        case = self.cases[name]
        image = case.image.to(self.device)
        values = self.model.complete(image, case.values)
        picture = Picture((case.image[0, 0].float().numpy() + 1) * 127.5)
        framing = Framing(Geometry.of(self.frame, self.frame), (0.0, 255.0))
        masks = outlines(self.model, image)
        return _abducted(Subject(self.model, name, picture, framing, image, values, frozenset(values), masks))

    @torch.no_grad()
    def open_file(
        self,
        file: Path,
        name: str,
        given: Mapping[str, float],
        window: Window | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Subject:
        """Read and abduct a file; messages call it by the name that its owner gave it.

        Args:
            file: PNG, JPEG, DICOM or NIfTI.
            name: That its owner gave it.
            given: Variable -> factual value; structural ones may be left out, and are measured then.
            window: Levels that are black and white; needed of more than 8 bits.
            spacing: Edge lengths of a pixel, mm, where the file does not say.

        Raises:
            ValueError: If it cannot be read, is too large, does not fit the model or lacks a parent.
        """
        if window is not None and not window[0] < window[1]:
            raise ValueError(f"levels {window[0]:g} and {window[1]:g}: black must lie below white")
        try:
            picture = read_picture(file, window)
            if picture.levels.size > MOST:
                raise ValueError(f"{name} has {picture.levels.size} pixels; at most {MOST} are taken here")
            framing = Framing.of(picture, self.model, window, spacing)
        except ValueError as error:
            raise ValueError(_for_people(str(error).replace(str(file), name))) from error
        image = framing.image(picture.levels).to(self.device)
        values = self.model.complete(image, given)
        masks, told = outlines(self.model, image), frozenset(given)
        return _abducted(Subject(self.model, name, picture, framing, image, values, told, masks, file, window))

    @torch.no_grad()
    def ask(self, subject: Subject, question: Question) -> Reply:
        """Answer one question; the same question gets the same answer.

        Raises:
            ValueError: If a request is malformed, or asks for a category that does not exist.
        """
        requests = once([parse(text, self.model.parents) for text in question.do])
        return _alike(lambda: self._answered(subject, question, requests))

    def _answered(self, subject: Subject, question: Question, requests: Mapping[str, Any]) -> Reply:
        model = self.model
        do = targets(requests, subject.values, model.parents)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they become reasons
            model.parents.check(do)
        values = model.act(subject.values, do, question.effect)
        judged = model.segmentor is not None
        turns = CORRECTIONS if judged and question.refined else 0
        canvas = subject.canvas
        edit = model.answer(
            subject.image, subject.abduction, values, corrections=turns, confined=judged, canvas=canvas
        ).edit
        deviation = self._deviation(subject, values) if question.particles else None
        image = canvas.draw(edit)
        change = subject.shown.levels(image - canvas.image)
        seen = (subject.image + Canvas(image, canvas.geometry).frame - canvas.frame).clamp(-1, 1)
        masks = outlines(model, seen)
        found = measured_in(model, masks, seen, subject.masks)
        answer = Answer(image, values, found, deviation, canvas.image, subject.values, edit, seen)
        reasons = subject.reasons + beyond(do, model.parents) + missed(answer, requests)
        return Reply(subject, question, answer, change, masks, reasons, frozenset(requests))

    def _deviation(self, subject: Subject, values: dict[str, Tensor]) -> Tensor:
        """Over the particles, (1, 1, *frame)."""
        everyone = subject.image.expand(PARTICLES, *subject.image.shape[1:])
        repeated = {name: value.expand(PARTICLES) for name, value in values.items()}
        confined = self.model.segmentor is not None
        drawn = self.model.answer(everyone, subject.particles, repeated, confined=confined).image
        return drawn.std(0, keepdim=True)


def _abducted(subject: Subject) -> Subject:
    _alike(lambda: subject.abduction)
    return subject


def _alike(work: Callable[[], Result]) -> Result:
    """Chance that is the same each time, and nobody else's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return work()


def _for_people(message: str) -> str:
    """Errors of the command line name its options; the page has fields of other names."""
    message = message.replace("give window: [low, high]", "say which levels are black and white")
    return message.replace("give --spacing", "say the edge lengths of a pixel")
