"""One image asked again and again: abducted once when it is opened, then a decoder pass a question.

Knows neither HTTP nor Lightning. A reply depends on its subject and its question alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segcft.counterfactual.subject import Answer, Effect, OpenedSubject
from segcft.inference.answer_file import Row, reasons, rows
from segcft.inference.file_geometry import Framing
from segcft.io.isolation import Decoders
from segcft.io.picture import Picture, Window

Levels = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """An image that is there to be picked.

    Attributes:
        name: Of the subject.
        image: (1, 1, *frame) in [-1, 1].
        values: All of its parents in real units, (1,) each.
    """

    name: str
    image: Tensor
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A picture that was opened.

    Attributes:
        name: Of the case or of the file.
        picture: What was read; of a case, its frame in grey levels from 0 to 255.
        framing: Of the picture, in the model's frame.
        opened: What the model knows of it; one image.
        file: That was read; None of a case.
        window: As the file was read with.
        decoders: That read the file, and write it with its change; None of a case.
    """

    name: str
    picture: Picture
    framing: Framing
    opened: OpenedSubject
    file: Path | None = None
    window: Window | None = None
    decoders: Decoders | None = None

    @cached_property
    def shown(self) -> Framing:
        """Of the picture as it is shown, at most 512 pixels a side."""
        return Framing(self.opened.preview.geometry, self.framing.window)

    @cached_property
    def levels(self) -> Levels:
        """Grey levels as they are shown, (*shown.geometry.shape)."""
        return self.shown.levels(self.opened.preview.image + 1) + np.float32(self.framing.window[0])

    def change(self, answer: Answer) -> Levels:
        """What an answer does to the picture on its own grid, in grey levels, (*N)."""
        return self.framing.levels(replace(answer, canvas=self.opened.canvas).difference)

    def enlarge(self, values: Tensor) -> Levels:
        """(1, 1, *frame) -> (*shown.geometry.shape), smoothly."""
        return self.shown.enlarge(values)


@dataclass(frozen=True)
class Question:
    """What the page asks.

    Attributes:
        do: Requests, ``left_lung_area=+20%`` and the like.
        effect: Whether descendants follow.
        refined: Measure the answer, ask again for what is missing, and leave what lies beyond alone; slower.
        particles: Also draw particles of the posterior, and show how they deviate.
    """

    do: Sequence[str] = ()
    effect: Effect = "total"
    refined: bool = True
    particles: bool = False

    @property
    def text(self) -> str:
        """As it is written into files."""
        return " ".join(self.do) or "nothing"


@dataclass(frozen=True)
class Reply:
    """What the page shows.

    Attributes:
        subject: That was asked about.
        question: That was asked.
        answer: Drawn as it is shown, one image.
        intervened: Variables that were set.
    """

    subject: Subject
    question: Question
    answer: Answer
    intervened: frozenset[str] = frozenset()

    @cached_property
    def change(self) -> Levels:
        """Counterfactual minus factual in grey levels, (*shown.geometry.shape)."""
        return self.subject.shown.levels(self.answer.difference)

    @cached_property
    def reasons(self) -> list[str]:
        """To doubt it, a sentence each."""
        return reasons(self.answer, sorted(self.intervened))

    @property
    def rows(self) -> list[Row]:
        """A row a variable: what it was, was to be, and is by the segmentor; as in ``answers.csv``.

        An upload's name, which may name a patient, is not in it.
        """
        image = self.subject.name if self.subject.file is None else "upload"
        about = {"image": image, "request": self.question.text, "effect": self.question.effect}
        return [{**about, **row} for row in rows(self.answer, self.intervened, self.reasons)]
