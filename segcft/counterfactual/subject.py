"""Images that are opened once, and then asked any number of questions: command line, app, Python and evaluation alike.

The segmentor outlines the factual images once, an answer once before and once after every correction, and the final
image once: five passes for a question with two corrections.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from segcft.counterfactual.native_resolution import Canvas, Edit
from segcft.counterfactual.refinement import Refinement
from segcft.hvae.hvae import Mediation
from segcft.hvae.latents import Abduction
from segcft.spatial.geometry import Geometry
from segcft.variables import plausibility
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.requests import Request, beyond, refuse_absurd, targets

if TYPE_CHECKING:
    from segcft.counterfactual.model import CounterfactualModel

Effect = Literal["total", "direct"]
Do = Mapping[str, Request | str | float | Tensor]
CORRECTIONS = 2  # by default, of a model that holds its segmentor


class OpenedSubject:
    """One or more images with all that is known of them; each thing is found out once, when it is first needed.

    Attributes:
        canvas: The images at their own resolution, (B, C, *N), and where the model's frame lies in them.
        given: Names of the parents that were not measured.
        values: All factual parents in real units, (B,) each.

    Args:
        model: Answers.
        image: Factual images, (B, C, *N) in [-1, 1]; answers have the same size.
        parents: Their parents in real units, (B,) each or one number for all; the segmentor measures structural ones
            that are missing.
        geometry: How the model's frame lies in the images; by default it covers them exactly.
        doubts: What their files leave open, a sentence each.

    Raises:
        ValueError: If the image is not finite, or a parent is unknown, not finite, absurd, a size that is not above 0,
            or missing where nothing can measure it.
    """

    def __init__(
        self,
        model: "CounterfactualModel",
        image: Tensor,
        parents: Mapping[str, Tensor | float] | None = None,
        geometry: Geometry | None = None,
        doubts: Iterable[str] = (),
    ) -> None:
        if not bool(image.isfinite().all()):
            raise ValueError("the image holds values that are not finite")
        self.model, self.given, self._told = model, frozenset(parents or {}), tuple(doubts)
        self.canvas = Canvas(image, geometry or Geometry.of(image.shape[2:], model.frame))
        self._abductions: dict[tuple[int, float], Abduction] = {}
        self.values = self._completed(parents or {})

    @property
    def image(self) -> Tensor:
        """The images as the model sees them, (B, C, *S) in [-1, 1]."""
        return self.canvas.frame

    @cached_property
    def preview(self) -> Canvas:
        """The images averaged to at most 512 pixels a side: corrections are measured there."""
        return self.canvas.preview()

    @property
    def structures(self) -> tuple[str, ...]:
        """Those of ``masks``; none without a segmentor."""
        return () if self.model.segmentor is None else tuple(self.model.segmentor.description.structures)

    @cached_property
    def masks(self) -> Tensor:
        """The segmentor's probability of every structure, (B, K, *S)."""
        return self.outline(self.image)

    @cached_property
    def measured(self) -> dict[str, Tensor]:
        """What the segmentor finds in the images, in real units, (B,) each; nothing without one."""
        return self.measure(self.masks, self.image)

    @cached_property
    def judged(self) -> dict[str, Tensor]:
        """What the evaluator finds in the images, in real units, (B,) each; nothing without one."""
        return self.judge(self.image)

    @cached_property
    def doubts(self) -> list[str]:
        """Why the images may not be ones that the model knows, a sentence each, see ``plausibility.doubts``.

        Factual values beyond the training range, given or measured, are among them, and what the files leave open.
        """
        parents, told = self.model.parents, [*self._told]
        told += beyond(self.values, parents)
        told += beyond({name: value for name, value in self.measured.items() if name in self.given}, parents)
        for image, masks in zip(torch.split(self.image, 1), torch.split(self.masks, 1), strict=True):
            told += plausibility.doubts(image, masks, self.structures, self.model.profile)
        return list(dict.fromkeys(told))

    @torch.no_grad()
    def outline(self, image: Tensor) -> Tensor:
        """The segmentor's probability of every structure in images (B, C, *S), (B, K, *S)."""
        segmentor = self.model.segmentor
        return image[:, :0] if segmentor is None else segmentor.probabilities(image)

    def measure(self, masks: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Variables by masks (B, K, *S) of images (B, C, *S), regions laid into the factual masks; (B,) each."""
        segmentor = self.model.segmentor
        return {} if segmentor is None else measure_masks(masks, image, segmentor.description, self.masks)

    @torch.no_grad()
    def judge(self, image: Tensor) -> dict[str, Tensor]:
        """Variables by the evaluator in images (B, C, *S), regions laid into the factual ones; (B,) each."""
        evaluator = self.model.evaluator
        return {} if evaluator is None else evaluator.measure(image, self.image)

    @torch.no_grad()
    def abduction(self, samples: int = 1, temperature: float | None = None) -> Abduction:
        """Latents of every image: ``samples`` particles; of a single one the posterior's mean unless told."""
        key = (samples, float(samples > 1) if temperature is None else temperature)
        if key not in self._abductions:
            self._abductions[key] = self.model.abduct(self.image, self.values, key[1], samples)
        return self._abductions[key]

    def act(self, do: Do, effect: Effect = "total", strict: bool = False) -> dict[str, Tensor]:
        """The parents had ``do`` been so, in real units, (B,) each.

        Args:
            do: Intervention as in ``requests.targets``: ``{"left_lung_area": "+20%"}``.
            effect: Between the parents, see ``CounterfactualModel.act``.
            strict: Refuse targets outside the training range instead of warning.

        Raises:
            ValueError: If a request is wrong.
        """
        asked = targets(do, self.values, self.model.parents)
        self.model.parents.check(asked, strict)
        return self.model.act(self.values, asked, effect)

    @torch.no_grad()
    def answer(
        self,
        cf_values: dict[str, Tensor],
        mediation: Mediation = "total",
        samples: int = 1,
        temperature: float | None = None,
        corrections: int | None = None,
        confined: bool | None = None,
    ) -> "Answer":
        """The images had their parents been ``cf_values``, in real units, (B,) each.

        Args:
            cf_values: Counterfactual parents, for instance of ``act``.
            mediation: Whether the image follows them itself, through its latents or both; see ``HVAE.predict``.
            samples: Particles of the posterior.
            temperature: Of the latents, see ``abduction``.
            corrections: Times to measure the answer by the segmentor and ask again for what is missing; by default 2
                where there is a segmentor.
            confined: Leave the image as it is beyond the neighbourhood of what moves; by default where there is a
                segmentor.

        Raises:
            ValueError: If one of the last two is wanted of a model without a segmentor.
        """
        model, segmentor = self.model, self.model.segmentor
        corrections = CORRECTIONS * (segmentor is not None) if corrections is None else corrections
        confined = segmentor is not None if confined is None else confined
        abduction, canvas = self.abduction(samples, temperature), self.preview.repeated(samples)
        image = self.image.repeat_interleave(samples, 0)
        asked = {name: value.repeat_interleave(samples, 0) for name, value in cf_values.items()}

        def draw(pa: Tensor) -> Edit:
            return model.draw(image, abduction, pa, mediation).edit

        if not (corrections or confined):
            edit = draw(model.parents.encode(asked))
        elif segmentor is None:
            raise ValueError("the segmentor that guided the model refines answers; the checkpoint holds none")
        else:
            anatomy = self.masks.repeat_interleave(samples, 0)
            refinement = Refinement(segmentor, canvas, anatomy, model.parents, abduction.pa, asked)
            edit = refinement.edit(draw, corrections, confined)
        deviation = canvas.seen(edit).view(-1, samples, *image.shape[1:]).std(1) if samples > 1 else None
        return Answer(self, self.canvas, cf_values, edit.mean(samples), deviation)

    def ask(
        self, questions: Iterable[Do], effect: Effect = "total", strict: bool = False, **options: Any
    ) -> list["Answer"]:
        """Any number of questions, all checked before the first is answered.

        Args:
            questions: Interventions.
            effect: See ``act``.
            strict: See ``act``.
            **options: Of ``answer``.

        Raises:
            ValueError: As ``act`` and ``answer`` do.
        """
        acted = [self.act(do, effect, strict) for do in questions]
        return [self.answer(values, **options) for values in acted]

    def _completed(self, given: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
        parents, image, values = self.model.parents, self.canvas.image, dict[str, Tensor]()
        for name, value in given.items():
            parents[name]
            values[name] = torch.as_tensor(value, dtype=image.dtype, device=image.device).expand(len(image))
            if not values[name].isfinite().all():
                raise ValueError(f"{name} = {value} is not a finite number")
            refuse_absurd(name, values[name], parents)
        absent = [name for name in parents.names if name not in values]
        hidden = [name for name in absent if name not in parents.structural]
        if hidden:
            raise ValueError(f"{', '.join(hidden)}: not given, and cannot be measured in an image")
        if absent and self.model.segmentor is None:
            raise ValueError(f"{', '.join(absent)}: not given, and the checkpoint holds no segmentor to measure them")
        return parents.take({**self.measured, **values} if absent else values)


@dataclass(frozen=True)
class Answer:
    """What a user gets: images and numbers, side by side; each is drawn or measured when it is first looked at.

    Attributes:
        subject: That was asked.
        canvas: What the answer is drawn on: the factual images at their own resolution, or a smaller copy of them.
        values: Counterfactual parents in real units, (B,) each.
        edit: What is done to the images, in the model's frame; of several particles, the mean of their edits.
        posterior_deviation: Of the particles in the model's frame, (B, C, *S) in image units; None of a single one.
            What the image leaves open of its latents, and no error bar: see docs/asking.md.
    """

    subject: OpenedSubject
    canvas: Canvas
    values: dict[str, Tensor]
    edit: Edit
    posterior_deviation: Tensor | None

    @cached_property
    def image(self) -> Tensor:
        """Counterfactual images, (B, C, *N) in [-1, 1].

        Raises:
            ValueError: If they are not finite.
        """
        image = self.canvas.draw(self.edit)
        if not bool(image.isfinite().all()):
            raise ValueError("the model's answer is not finite")
        return image

    @property
    def difference(self) -> Tensor:
        """Counterfactual minus factual image, (B, C, *N)."""
        return self.image - self.canvas.image

    @cached_property
    def seen(self) -> Tensor:
        """Counterfactual images as the model and its segmentor see them, (B, C, *S) in [-1, 1]."""
        shown = Canvas(self.image, self.canvas.geometry).frame
        blur = self.canvas.frame - self.subject.image  # 0 unless the canvas is a smaller copy
        return (shown - blur).clamp(-1, 1)

    @cached_property
    def masks(self) -> Tensor:
        """The segmentor's probability of every structure in what is seen, (B, K, *S)."""
        return self.subject.outline(self.seen)

    @cached_property
    def measured(self) -> dict[str, Tensor]:
        """What the segmentor finds in the images, in real units, (B,) each; nothing without one."""
        return self.subject.measure(self.masks, self.seen)

    @cached_property
    def judged(self) -> dict[str, Tensor]:
        """What the evaluator, which guided nothing, finds in the images, in real units, (B,) each."""
        return self.subject.judge(self.seen)

    def share(self, name: str, evaluator: bool = False) -> Tensor | None:
        """Share of the requested change of a variable that was made, (B,); None if it is not measured.

        Args:
            name: Of the variable.
            evaluator: Measured by the evaluator instead of the segmentor, in the factual images as well.
        """
        subject = self.subject
        before, after = (subject.judged, self.judged) if evaluator else (subject.measured, self.measured)
        if name not in after:
            return None
        return (after[name] - before[name]) / (self.values[name] - subject.values[name])

    @property
    def large_masks(self) -> Tensor:
        """Probability of every structure in the images, (B, K, *N).

        Where a flow moves the structures, the factual masks moved along; else those that the segmentor now sees.
        """
        geometry = self.canvas.geometry
        if not self.edit.carries_masks:
            return geometry.enlarge(self.masks)
        return Canvas(geometry.enlarge(self.subject.masks), geometry).moved(self.edit)
