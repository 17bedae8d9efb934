"""Abduction, action, prediction: a model that answers "what if" for images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from segcft.causal.structural_causal_model import Independent, Mechanism
from segcft.core import checkpoints
from segcft.core.recipes import Recorded
from segcft.counterfactual.edits import Canvas, Edit
from segcft.counterfactual.prediction import Drawn, Gated, Prediction
from segcft.counterfactual.refinement import confine, correct
from segcft.guidance.judges import SegmentationModel
from segcft.hvae.hvae import HVAE, Mediation
from segcft.hvae.latents import Abduction
from segcft.spatial.geometry import Geometry
from segcft.variables.requests import Request, targets
from segcft.variables.variables import DataDescription, Values

Effect = Literal["total", "direct"]
Do = Mapping[str, Request | str | float | Tensor]
CORRECTIONS = 2  # by default, of a model that holds its segmentor


class Counterfactual(NamedTuple):
    """An answer, and what it was derived from.

    Attributes:
        image: Counterfactual image, (B, C, *S) in [-1, 1].
        values: Its parents in real units, (B,) each.
        abduction: The factual image's latents, pixel distribution and ELBO.
        cost: Of the way it was drawn, a scalar, see ``prediction``.
        edit: What was done to the factual image.
    """

    image: Tensor
    values: dict[str, Tensor]
    abduction: Abduction
    cost: Tensor
    edit: Edit


@dataclass(frozen=True)
class Answer:
    """What a user gets: images and numbers, side by side.

    Attributes:
        image: Counterfactual image at the factual one's resolution, (B, C, *N) in [-1, 1]; of several particles, by
            the mean of their edits.
        values: Its parents in real units, (B,) each.
        measured: What the segmentor finds in it, (B,) each; empty without a segmentor.
        posterior_deviation: Of the particles in the model's frame, (B, C, *S) in image units; None of a single one.
            What the image leaves open of its latents, and no error bar: see docs/asking.md.
        factual_image: As it was given, (B, C, *N).
        factual_values: Its parents, given or measured, (B,) each.
        edit: What was done to it, in the model's frame.
        seen: Counterfactual image as the model and its segmentor see it, (B, C, *S).
    """

    image: Tensor
    values: dict[str, Tensor]
    measured: dict[str, Tensor]
    posterior_deviation: Tensor | None
    factual_image: Tensor
    factual_values: dict[str, Tensor]
    edit: Edit
    seen: Tensor

    @property
    def difference(self) -> Tensor:
        """Counterfactual minus factual image, (B, C, *N)."""
        return self.image - self.factual_image


class CounterfactualModel(nn.Module, Recorded):
    """A deep structural causal model of images (Pawlowski et al., 2020, arXiv:2006.06485).

    Args:
        description: Parents, structures and spacing of the data it was trained on.
        hvae: Image mechanism.
        prediction: From both worlds' pixels to the counterfactual image.
        mechanism: How parents cause each other; as it is given, for it is fitted before and then frozen.

    Raises:
        ValueError: If the mechanism relates other variables.
    """

    def __init__(
        self,
        description: DataDescription,
        hvae: HVAE,
        prediction: Prediction | None = None,
        mechanism: Mechanism | None = None,
    ) -> None:
        super().__init__()
        self.description, self.parents, self.hvae = description, description.parents, hvae
        self.prediction = prediction or Gated()
        self.prediction.attach(hvae.widths, hvae.spatial_dims)
        self.mechanism = (mechanism or Independent()).requires_grad_(False)  # its answers are targets
        self.mechanism.check_fit(self.parents)
        self.segmentor: SegmentationModel | None = None  # completes parents and refines answers; ``load`` sets it

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model of a checkpoint or bundle, ready to be asked, with the segmentor that guided it if there was one.

        Raises:
            ValueError: If the checkpoint cannot be read or holds no such model, or the bundle is not intact.
        """
        model = checkpoints.load(path, cls)
        model.segmentor = checkpoints.search(path, SegmentationModel)
        if model.segmentor is not None:
            model.segmentor.attach(model.description)
        return model.eval()

    def replaced(self, prediction: Prediction | None, mechanism: Mechanism | None) -> "CounterfactualModel":
        """The same model, sharing its weights, with another way from pixels to the image or another mechanism."""
        return CounterfactualModel(
            self.description, self.hvae, prediction or self.prediction, mechanism or self.mechanism
        )

    def check_fit(self, description: DataDescription) -> None:
        """See that data measure what this model was trained on; ranges may differ between data sets.

        Raises:
            ValueError: If variables, structures or spatial dimensions differ.
        """
        ours, theirs = self.description, description
        for what, mine, given in (
            ("variables", ours.parents.names, theirs.parents.names),
            ("structures", ours.structures, theirs.structures),
            ("spatial_dims", ours.spatial_dims, theirs.spatial_dims),
        ):
            if mine != given:
                raise ValueError(f"the model was trained with {what} {mine}, the data have {given}")

    def abduct(self, image: Tensor, values: Values, temperature: float = 1.0, samples: int = 1) -> Abduction:
        """Latents z ~ q(z | image, parents), with parents in real units; ``samples`` particles of every image."""
        return self.hvae.abduct(image, self.parents.encode(values), temperature, samples)

    def forward(self, image: Tensor, values: Values, do: Values, temperature: float = 1.0) -> Counterfactual:
        """The same subjects had ``do`` been so.

        Args:
            image: Factual images, (B, C, *S) in [-1, 1].
            values: Their parents in real units, (B,) each.
            do: Intervened variables in real units, (B,) each; NaN leaves a subject alone.
            temperature: Of the abducted latents; 0 takes the posterior's mean and makes the answer deterministic.

        Raises:
            ValueError: If a parent is missing or ``do`` names an unknown variable.
        """
        factual = self.parents.take(values)
        for name in do:
            self.parents[name]
        return self.answer(image, self.abduct(image, factual, temperature), self.act(factual, do))

    def act(self, values: Values, do: Values, effect: Effect = "total") -> dict[str, Tensor]:
        """Action: the parents had ``do`` been so, (B,) each.

        Args:
            values: Factual parents in real units, (B,) each.
            do: Intervened variables in real units, (B,) each; NaN leaves a subject alone.
            effect: ``total`` lets descendants follow the mechanism, ``direct`` holds them at their factual values.
        """
        mechanism = self.mechanism if effect == "total" else Independent()
        return mechanism.counterfactual(values, do)

    def answer(
        self,
        image: Tensor,
        abduction: Abduction,
        cf_values: dict[str, Tensor],
        mediation: Mediation = "total",
        corrections: int = 0,
        confined: bool = False,
        canvas: Canvas | None = None,
    ) -> Counterfactual:
        """Prediction: one decoder pass, for any number of questions about one abduction.

        Args:
            image: Factual images, (B, C, *S) in [-1, 1], as many as the abduction has rows.
            abduction: Of these images.
            cf_values: Counterfactual parents in real units, (B,) each.
            mediation: Whether the image follows them itself, through its latents or both; see ``HVAE.predict``. Of the
                exogenous prior, ``total`` is ``direct`` and ``indirect`` changes nothing.
            corrections: Times to measure the answer by the segmentor and ask again for what is missing.
            confined: Leave the image as it is beyond the neighbourhood of what moves, by the segmentor's masks before
                and after.
            canvas: These images at their own resolution: the answer is what the model sees of the one drawn there,
                and that is measured.

        Raises:
            ValueError: If one of the last two is wanted of a model without a segmentor.
        """
        if (corrections or confined) and self.segmentor is None:
            raise ValueError("the segmentor that guided the model refines answers; the checkpoint holds none")
        wanted = (cf_values, abduction.pa, self.parents)

        def draw(pa: Tensor) -> Drawn:
            drawn = self._draw(image, abduction, pa, mediation)
            if confined:
                assert self.segmentor is not None
                edit = confine(drawn, image, *wanted, self.segmentor, canvas.letters if canvas else None)
                drawn = drawn._replace(edit=edit, image=edit.apply(image))
            return drawn if canvas is None else drawn._replace(image=canvas.seen(drawn.edit))

        if corrections:
            assert self.segmentor is not None
            drawn = correct(draw, image, *wanted, self.segmentor, corrections)
        else:
            drawn = draw(self.parents.encode(cf_values))
        return Counterfactual(drawn.image, cf_values, abduction, drawn.cost, drawn.edit)

    def _draw(self, image: Tensor, abduction: Abduction, pa: Tensor, mediation: Mediation) -> Drawn:
        drawn: Drawn = self.prediction(image, abduction.pixels, self.hvae.predict(abduction, pa, mediation))
        return drawn

    def counterfactual(
        self, image: Tensor, parents: Mapping[str, Tensor | float] | None = None, do: Do | None = None, **options: Any
    ) -> Answer:
        """One question; see ``counterfactuals`` for arguments and options."""
        return self.counterfactuals(image, parents, [do or {}], **options)[0]

    @torch.no_grad()
    def counterfactuals(
        self,
        image: Tensor,
        parents: Mapping[str, Tensor | float] | None,
        questions: Sequence[Do],
        *,
        effect: Effect = "total",
        mediation: Mediation = "total",
        samples: int = 1,
        temperature: float | None = None,
        corrections: int | None = None,
        confined: bool | None = None,
        strict: bool = False,
        geometry: Geometry | None = None,
    ) -> list[Answer]:
        """Any number of questions about the same images, which are encoded once.

        Args:
            image: Factual images at their own resolution, (B, C, *N) in [-1, 1]; answers have the same.
            parents: Their parents in real units, (B,) each or one number for all; the segmentor measures structural
                ones that are missing.
            questions: Interventions, each as in ``requests.targets``: ``{"left_lung_area": "+20%"}``.
            effect: Between the parents, see ``act``.
            mediation: From the parents to the image, see ``answer``.
            samples: Particles of the posterior.
            temperature: Of the latents; by default 1, and 0, the posterior's mean, of a single particle.
            corrections: See ``answer``; by default 2 where there is a segmentor, 0 where there is none.
            confined: See ``answer``; by default where there is a segmentor.
            strict: Refuse targets outside the training range instead of warning.
            geometry: How the model's frame lies in the images; by default it covers them exactly.

        Raises:
            ValueError: If a request or a parent is wrong, or a parent is missing that cannot be measured.
        """
        canvas = Canvas(image, geometry or Geometry.of(image.shape[2:], self.frame))
        small = canvas.frame
        factual = self.complete(small, parents or {})
        asked = [targets(do, factual, self.parents) for do in questions]
        for do in asked:
            self.parents.check(do, strict)
        temperature = float(samples > 1) if temperature is None else temperature
        abduction = self.abduct(small, factual, temperature, samples)
        acted = [self.act(factual, do, effect) for do in asked]
        if corrections is None:
            corrections = CORRECTIONS if self.segmentor else 0
        if confined is None:
            confined = self.segmentor is not None
        everyone, preview = small.repeat_interleave(samples, 0), canvas.preview().repeated(samples)
        found = []
        for values in acted:
            repeated = {name: value.repeat_interleave(samples, 0) for name, value in values.items()}
            drawn = self.answer(everyone, abduction, repeated, mediation, corrections, confined, preview)
            edit = drawn.edit.mean(samples)
            shown = canvas.draw(edit)
            seen = Canvas(shown, canvas.geometry).frame
            posterior_deviation = None
            if samples > 1:
                posterior_deviation = drawn.image.view(len(small), samples, *small.shape[1:]).std(1)
            found.append(
                Answer(shown, values, self.measure(seen, small), posterior_deviation, image, factual, edit, seen)
            )
        return found

    @property
    def frame(self) -> tuple[int, ...]:
        """Shape S of the images that the HVAE reads."""
        return self.hvae.stages[0].size(self.hvae.spatial_dims)

    def measure(self, image: Tensor, factual: Tensor | None = None) -> dict[str, Tensor]:
        """What the segmentor finds in images (B, C, *S), (B,) each, see ``Judge.measure``; nothing without one."""
        return {} if self.segmentor is None else self.segmentor.measure(image, factual)

    def complete(self, image: Tensor, given: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
        """All parents of images (B, C, *S), (B,) each: those given, and structural ones measured.

        Raises:
            ValueError: If one is unknown, not a finite number, or missing where nothing can measure it.
        """
        values = {}
        for name, value in given.items():
            self.parents[name]
            values[name] = torch.as_tensor(value, dtype=image.dtype, device=image.device).expand(len(image))
            if not values[name].isfinite().all():
                raise ValueError(f"{name} = {value} is not a finite number")
        absent = [name for name in self.parents.names if name not in values]
        if not absent:
            return self.parents.take(values)
        hidden = [name for name in absent if name not in self.parents.structural]
        if hidden:
            raise ValueError(f"{', '.join(hidden)}: not given, and cannot be measured in an image")
        if self.segmentor is None:
            raise ValueError(f"{', '.join(absent)}: not given, and the checkpoint holds no segmentor to measure them")
        return self.parents.take({**self.measure(image), **values})
