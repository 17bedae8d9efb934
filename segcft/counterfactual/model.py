"""Abduction, action, prediction: a model that answers "what if" for images."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from segcft.causal.structural_causal_model import Independent, Mechanism
from segcft.core import checkpoints
from segcft.core.recipes import Recorded
from segcft.counterfactual.arrays import laid, scaled
from segcft.counterfactual.native_resolution import Edit
from segcft.counterfactual.prediction import Drawn, Gated, Prediction
from segcft.counterfactual.subject import Answer, Do, Effect, OpenedSubject
from segcft.guidance.judges import SegmentationModel
from segcft.hvae.hvae import HVAE, Mediation
from segcft.hvae.latents import Abduction
from segcft.spatial.geometry import Geometry
from segcft.variables.plausibility import Profile
from segcft.variables.variables import DataDescription, Values


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


class CounterfactualModel(nn.Module, Recorded):
    """A deep structural causal model of images (Pawlowski et al., 2020, arXiv:2006.06485).

    Args:
        description: Parents, structures and spacing of the data it was trained on.
        hvae: Image mechanism.
        prediction: From both worlds' pixels to the counterfactual image.
        mechanism: How parents cause each other; as it is given, for it is fitted before and then frozen.
        profile: What training images look like, to doubt others by; training sets it.

    Raises:
        ValueError: If the mechanism relates other variables.
    """

    def __init__(
        self,
        description: DataDescription,
        hvae: HVAE,
        prediction: Prediction | None = None,
        mechanism: Mechanism | None = None,
        profile: Profile | None = None,
    ) -> None:
        super().__init__()
        self.description, self.parents, self.hvae, self.profile = description, description.parents, hvae, profile
        self.prediction = prediction or Gated()
        self.prediction.attach(hvae.widths, hvae.spatial_dims)
        self.mechanism = (mechanism or Independent()).requires_grad_(False)  # its answers are targets
        self.mechanism.check_fit(self.parents)
        self.segmentor: SegmentationModel | None = None  # completes parents and refines answers; ``load`` sets it
        self.evaluator: SegmentationModel | None = None  # judges answers and guided nothing; ``load`` sets it

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model of a checkpoint or bundle, ready to be asked, with its segmentor and evaluator where it has them.

        Raises:
            ValueError: If the checkpoint cannot be read or holds no such model, or the bundle is not intact.
        """
        model = checkpoints.load(path, cls)
        model.segmentor = checkpoints.search(path, SegmentationModel)
        model.evaluator = checkpoints.search(path, SegmentationModel, evaluator=True)
        for judge in filter(None, (model.segmentor, model.evaluator)):
            judge.attach(model.description)
        return model.eval()

    def replaced(self, prediction: Prediction | None, mechanism: Mechanism | None) -> "CounterfactualModel":
        """The same model, sharing its weights, with another way from pixels to the image or another mechanism."""
        return CounterfactualModel(
            self.description, self.hvae, prediction or self.prediction, mechanism or self.mechanism, self.profile
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
        self, image: Tensor, abduction: Abduction, cf_values: dict[str, Tensor], mediation: Mediation = "total"
    ) -> Counterfactual:
        """Prediction, in the model's frame and with gradient: one decoder pass a question; users ask ``open``.

        Args:
            image: Factual images, (B, C, *S) in [-1, 1], as many as the abduction has rows.
            abduction: Of these images.
            cf_values: Counterfactual parents in real units, (B,) each.
            mediation: See ``HVAE.predict``.
        """
        drawn = self.draw(image, abduction, self.parents.encode(cf_values), mediation)
        return Counterfactual(drawn.image, cf_values, abduction, drawn.cost, drawn.edit)

    def draw(self, image: Tensor, abduction: Abduction, pa: Tensor, mediation: Mediation = "total") -> Drawn:
        """``answer`` of encoded counterfactual parents (B, P)."""
        drawn: Drawn = self.prediction(image, abduction.pixels, self.hvae.predict(abduction, pa, mediation))
        return drawn

    def open(
        self,
        image: Tensor,
        parents: Mapping[str, Tensor | float] | None = None,
        geometry: Geometry | None = None,
        doubts: Iterable[str] = (),
    ) -> OpenedSubject:
        """Images to be asked any number of questions, which are encoded and outlined once; see ``OpenedSubject``."""
        return OpenedSubject(self, image, parents, geometry, doubts)

    def counterfactual(
        self, image: Tensor, parents: Mapping[str, Tensor | float] | None = None, do: Do | None = None, **options: Any
    ) -> Answer:
        """One question; see ``counterfactuals``."""
        return self.counterfactuals(image, parents, [do or {}], **options)[0]

    def counterfactuals(
        self,
        image: Tensor,
        parents: Mapping[str, Tensor | float] | None,
        questions: Sequence[Do],
        *,
        geometry: Geometry | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Any number of questions about the same images, which are encoded once.

        Args:
            image: See ``OpenedSubject``, as of ``parents`` and ``geometry``.
            parents: Factual values.
            questions: Interventions, each as in ``requests.targets``: ``{"left_lung_area": "+20%"}``.
            geometry: How the model's frame lies in the images.
            **options: Of ``OpenedSubject.ask`` and ``answer``: ``effect``, ``strict``, ``mediation``, ``samples``,
                ``temperature``, ``corrections``, ``confined``.

        Raises:
            ValueError: If a request or a parent is wrong, or a parent is missing that cannot be measured.
        """
        return self.open(image, parents, geometry).ask(questions, **options)

    def ask(
        self,
        image: Any,
        do: Do | Sequence[Do],
        *,
        window: tuple[float, float] | None = None,
        spacing: Sequence[float] | None = None,
        parents: Mapping[str, Tensor | float] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Questions about an image as a user holds it; answers have its size.

        Args:
            image: NumPy or torch, (*N), (C, *N) or (B, C, *N), of any size and number type.
            do: Intervention, ``{"left_lung_area": "+20%"}``, or several, each answered by itself.
            window: Values that are black and white; by default 0 to 255 of uint8, -1 to 1 of floats.
            spacing: Edge lengths of a pixel in mm; needed where the model measures in mm.
            parents: Factual values; those that can be measured are if they are missing.
            **options: As of ``counterfactuals``.

        Returns:
            An answer an intervention, in order.

        Raises:
            ValueError: If shape or values cannot be an image of this model, or as ``counterfactuals`` does.
        """
        values = scaled(image, self, window).to(next(self.parameters()).device)
        geometry = laid(self, values.shape[2:], spacing, parents or {})
        return self.counterfactuals(
            values, parents, [do] if isinstance(do, Mapping) else do, geometry=geometry, **options
        )

    @property
    def hidden(self) -> list[str]:
        """Parents that must be told of an image, for nothing can measure them."""
        seen = self.parents.structural if self.segmentor is not None else {}
        return [name for name in self.parents.names if name not in seen]

    @property
    def frame(self) -> tuple[int, ...]:
        """Shape S of the images that the HVAE reads."""
        return self.hvae.stages[0].size(self.hvae.spatial_dims)
