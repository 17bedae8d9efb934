"""Abduction, action, prediction: a model that answers "what if" for images."""

from typing import NamedTuple

from torch import Tensor, nn

from segcft.hvae import HVAE, Abduction
from segcft.mechanisms import Independent, Mechanism
from segcft.parents import DataDescription, Values
from segcft.prediction import Gated, Prediction
from segcft.recipes import Recorded


class Counterfactual(NamedTuple):
    """An answer, and what it was derived from.

    Attributes:
        image: Counterfactual image, (B, C, *S) in [-1, 1].
        values: Its parents in real units, (B,) each.
        abduction: The factual image's latents, pixel distribution and ELBO.
    """

    image: Tensor
    values: dict[str, Tensor]
    abduction: Abduction


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
        self.mechanism = (mechanism or Independent()).requires_grad_(False)  # its answers are targets
        self.mechanism.check_fit(self.parents)

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

    def abduct(self, image: Tensor, values: Values, temperature: float = 1.0) -> Abduction:
        """Latents z ~ q(z | image, parents), with parents in real units."""
        return self.hvae.abduct(image, self.parents.encode(values), temperature)

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
        abduction = self.abduct(image, factual, temperature)
        cf_values = self.mechanism.counterfactual(factual, do)
        cf_pixels = self.hvae.predict(abduction.latents, self.parents.encode(cf_values))
        return Counterfactual(self.prediction(image, abduction.pixels, cf_pixels), cf_values, abduction)
