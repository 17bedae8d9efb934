"""One image asked again and again: abducted once when it is opened, then a decoder pass a question.

Knows neither HTTP nor Lightning. A subject is immutable, and a reply depends on its subject and its question alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segcft.counterfactual.edits import Canvas, Edit
from segcft.counterfactual.model import Answer, CounterfactualModel, Effect
from segcft.hvae.latents import Abduction
from segcft.inference.answer_file import Masks, Row, measured_in
from segcft.inference.file_geometry import Framing
from segcft.io.readers import Picture, Window
from segcft.io.resampling import resample
from segcft.variables.requests import beyond

SHOWN = 512  # pixels: the longest side of what is shown; files are written at their own size
PARTICLES = 8  # of the posterior, where their deviation is asked for
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
    """An image that was opened.

    Attributes:
        model: That answers.
        name: Of the case or of the file.
        picture: What was read; of a case, its frame in grey levels from 0 to 255.
        framing: Of the picture, in the model's frame.
        image: In the model's frame, (1, 1, *frame) in [-1, 1].
        values: Factual parents in real units, (1,) each.
        given: Those that were not measured.
        masks: Structure -> probabilities, (1, 1, *frame); empty without a segmentor.
        file: That was read; None of a case.
        window: As the file was read with.
    """

    model: CounterfactualModel
    name: str
    picture: Picture
    framing: Framing
    image: Tensor
    values: dict[str, Tensor]
    given: frozenset[str]
    masks: Masks
    file: Path | None = None
    window: Window | None = None

    @cached_property
    def abduction(self) -> Abduction:
        """The posterior's mean: one encoder pass, whatever is asked."""
        return self.model.abduct(self.image, self.values, temperature=0.0)

    @cached_property
    def particles(self) -> Abduction:
        """Draws from the posterior, the same each time."""
        return self.model.abduct(self.image, self.values, samples=PARTICLES)

    @cached_property
    def measured(self) -> dict[str, Tensor]:
        """What the segmentor finds in the factual image, (1,) each."""
        return measured_in(self.model, self.masks, self.image, self.masks)

    @property
    def reasons(self) -> list[str]:
        """To doubt it before anything is asked: sizes beyond those of the training."""
        parents = self.model.parents
        return beyond({name: self.values[name] for name in parents.structural}, parents)

    @cached_property
    def shown(self) -> Framing:
        """Of the picture as it is shown, at most ``SHOWN`` pixels a side."""
        return Framing(self.framing.geometry.reduced(SHOWN), self.framing.window)

    @cached_property
    def levels(self) -> Levels:
        """Grey levels as they are shown, (*shown.geometry.shape)."""
        old, new = self.picture.levels.shape, self.shown.geometry.shape
        if old == new:
            return self.picture.levels.astype(np.float32)
        return resample(self.picture.levels, new, [a / b for a, b in zip(old, new, strict=True)])

    @cached_property
    def canvas(self) -> Canvas:
        """The picture as it is shown, to be edited."""
        return self.shown.canvas(self.levels).to(self.image.device)

    def change(self, edit: Edit) -> Levels:
        """What an edit does to the picture on its own grid, in grey levels, (*N)."""
        whole = self.framing.canvas(self.picture.levels).to(self.image.device)
        return self.framing.levels(whole.draw(edit) - whole.image)

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
        answer: Images as they are shown, and numbers; measured is what is shown.
        change: Counterfactual minus factual in grey levels, (*shown.geometry.shape).
        masks: Structure -> probabilities in what is shown, (1, 1, *frame).
        reasons: To doubt it, a sentence each.
        intervened: Variables that were set.
    """

    subject: Subject
    question: Question
    answer: Answer
    change: Levels
    masks: Masks
    reasons: list[str] = field(default_factory=list)
    intervened: frozenset[str] = frozenset()

    @property
    def rows(self) -> list[Row]:
        """A row a variable: what it was, was to be, and is by the segmentor; as in ``answers.csv``."""
        parents, before, answer = self.subject.model.parents, self.subject.measured, self.answer
        return [
            {
                "image": self.subject.name,
                "request": self.question.text,
                "effect": self.question.effect,
                "variable": name,
                "unit": parents[name].unit,
                "intervened": name in self.intervened,
                "source": "given" if name in self.subject.given else "measured",
                "factual": float(answer.factual_values[name]),
                "target": float(answer.values[name]),
                "factual_measured": float(before[name]) if name in before else None,
                "measured": float(answer.measured[name]) if name in answer.measured else None,
                "warning": "; ".join(self.reasons),
            }
            for name in parents.names
        ]
