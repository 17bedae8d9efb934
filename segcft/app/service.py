"""Opens images and answers questions about them; knows neither HTTP nor Lightning."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from segcft.app.opened_image import Case, Question, Reply, Subject
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.subject import Do, OpenedSubject
from segcft.inference.file_geometry import Framing
from segcft.io.isolation import Decoders
from segcft.io.picture import Picture, Window
from segcft.spatial.geometry import Geometry
from segcft.variables.requests import once, parse

MOST = 2**26  # pixels or voxels of an upload
PARTICLES = 8  # of the posterior, where their deviation is asked for
Result = TypeVar("Result")


class CounterfactualService:
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
        self.decoders = Decoders()

    @property
    def graph(self) -> dict[str, list[str]]:
        """Variable -> its causes, causes first."""
        return dict(self.model.mechanism.graph) or {name: [] for name in self.model.parents.names}

    @torch.no_grad()
    def open_case(self, name: str) -> Subject:
        """Abduct a case.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in self.cases:
            raise ValueError(f"there is no case {name!r}; there are {', '.join(self.cases) or 'none'}")
        case = self.cases[name]
        picture = Picture((case.image[0, 0].float().numpy() + 1) * 127.5)
        framing = Framing(Geometry.of(self.frame, self.frame), (0.0, 255.0))
        return Subject(name, picture, framing, self._opened(case.image, case.values, framing, picture))

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
        return self.open_picture(self.read(file, name, window), file, name, given, window, spacing)

    def read(self, file: Path, name: str, window: Window | None) -> Picture:
        """Read a file in another process, with limits on memory and time; arguments and errors are ``open_file``'s."""
        if window is not None and not window[0] < window[1]:
            raise ValueError(f"levels {window[0]:g} and {window[1]:g}: black must lie below white")
        with _called(name, file):
            return self.decoders.read_picture(file, window, MOST)

    @torch.no_grad()
    def open_picture(
        self,
        picture: Picture,
        file: Path,
        name: str,
        given: Mapping[str, float],
        window: Window | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Subject:
        """Abduct what ``read`` returned; arguments and errors are ``open_file``'s."""
        with _called(name, file):
            framing = Framing.of(picture, self.model, window, spacing, given)
        opened = self._opened(framing.canvas(picture.levels).image, given, framing, picture)
        return Subject(name, picture, framing, opened, file, window, self.decoders)

    def _opened(
        self, image: Tensor, given: Mapping[str, Tensor | float], framing: Framing, picture: Picture
    ) -> OpenedSubject:
        opened = self.model.open(image.to(self.device), given, framing.geometry, picture.doubts)
        _alike(opened.abduction)
        return opened

    def ask(self, subject: Subject, question: Question) -> Reply:
        """Answer one question; the same question gets the same answer.

        Raises:
            ValueError: If a request is malformed, or asks for a category that does not exist.
        """
        requests = once([parse(text, self.model.parents) for text in question.do])
        return _alike(lambda: self._answered(subject.opened, subject, question, requests))

    def _answered(self, opened: OpenedSubject, subject: Subject, question: Question, requests: Do) -> Reply:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they become reasons
            values = opened.act(requests, question.effect)
        answer = replace(opened.answer(values, corrections=None if question.refined else 0), canvas=opened.preview)
        if question.particles:
            particles = opened.answer(values, samples=PARTICLES, corrections=0)
            answer = replace(answer, posterior_deviation=particles.posterior_deviation)
        return Reply(subject, question, answer, frozenset(requests))


def _alike(work: Callable[[], Result]) -> Result:
    """Chance that is the same each time, and nobody else's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return work()


@contextmanager
def _called(name: str, file: Path) -> Iterator[None]:
    """Errors call a file by the name that its owner gave it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_for_people(str(error).replace(str(file), name))) from error


def _for_people(message: str) -> str:
    """Errors of the command line name its options; the page has fields of other names."""
    message = message.replace("set window: [low, high]", "say which levels are black and white")
    message = re.sub(r"give --parent \S+", "say them", message)
    return message.replace("give --spacing", "say the edge lengths of a pixel")
