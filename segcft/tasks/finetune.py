"""Counterfactual fine-tuning (No-CFT, Reg-CFT, Seg-CFT): counterfactuals are trained to measure the do() value."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from segcft.causal.interventions import Questions
from segcft.causal.structural_causal_model import Mechanism, opened
from segcft.core import checkpoints, distributed
from segcft.counterfactual.model import Counterfactual, CounterfactualModel
from segcft.counterfactual.prediction import Prediction
from segcft.guidance.guidance import Guidance
from segcft.guidance.losses import ElboConstraint, displacement_elsewhere, guidance_loss, minimality_loss
from segcft.guidance.shape_model import ShapeModel
from segcft.spatial.diffeomorphism import exponential, warp
from segcft.spatial.resize import spread
from segcft.tasks.base import Batch, Optimisation, Task, asked_in_turn, elbo_terms, passed, predictions
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.variables import DataDescription


class CounterfactualFineTuning(Task):
    """No-CFT, Reg-CFT or Seg-CFT, depending on the guidance (Xia et al., 2025, arXiv:2509.24913).

    A step needs one encoder and two decoder passes, since abduction also yields the ELBO.

    Args:
        description: Structures and variables of the data; linked from the data module, must fit the pretrained model.
        pretrained: Checkpoint of ``PretrainHVAE``.
        guidance: Judge of the counterfactuals.
        prediction: Replaces the pretrained model's prediction if given.
        mechanism: Replaces the pretrained model's mechanism: a mechanism, or the checkpoint of ``TrainAttributes``.
        constraint: Bound on the NELBO.
        weights: Guided variable -> its factor in the guidance loss; 1 if not listed.
        guidance_weight: Factor of the guidance loss.
        minimality: Factor of the minimality loss, the mean absolute change of the image.
        annealing: Fraction of all steps over which the penalties on a change rise to their full value: minimality, and
            the prediction's penalty and gate, from 0; the factor on variables that should not change, from a half. Use
            it if the pretrained model hardly reacts to do(), see ``Gated``, or changes correlated structures together.
        carried: Factor of a second guidance loss on the factual masks warped by the flow. Their sizes are exact, and a
            change of grey levels cannot imitate them. 0 if there is no flow or there are no masks.
        elsewhere: Factor of ``displacement_elsewhere``, far from the structures that are intervened on.
        shape: Factor of the error to the shape that the guidance predicts, if it has a shape model.
        soft: For variables that should not change, use the judge's measurement of the factual image as the target, not
            the label; otherwise the judge's errors are corrected in the image (attribute amplification).
        specificity: Factor on the error of variables that should not change.
        questions: How targets are drawn.
        allow_unmoved: Do not fail if a structure does not change, see ``InterventionResponse``; for baselines.
        stage: Name of the stage: ``nocft``, ``regcft`` or ``segcft``.
        optimisation: Optimiser and schedule.

    Raises:
        ValueError: If the pretrained model does not fit the data, ``weights`` name an unknown variable, or
            ``annealing`` is not in [0, 1].
    """

    parts = ("model", "guidance")
    price: Tensor  # fraction of their full value that the penalties on a change have at this step

    def __init__(
        self,
        description: DataDescription,
        pretrained: str,
        guidance: Guidance,
        prediction: Prediction | None = None,
        mechanism: Mechanism | str | None = None,
        constraint: ElboConstraint | None = None,
        weights: dict[str, float] | None = None,
        guidance_weight: float = 1.0,
        minimality: float = 5.0,
        annealing: float = 0.0,
        carried: float = 0.0,
        elsewhere: float = 0.0,
        shape: float = 3.0,
        soft: bool = False,
        specificity: float = 1.0,
        questions: Questions = Questions(),  # noqa: B008 (frozen)
        allow_unmoved: bool = False,
        stage: str = "segcft",
        optimisation: Optimisation = Optimisation(flat=0.5, weight_decay=0.0),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(stage, optimisation)
        if not 0 <= annealing <= 1:
            raise ValueError(f"annealing is a fraction of all steps, between 0 and 1, got {annealing}")
        self.model = checkpoints.load(pretrained, CounterfactualModel).replaced(prediction, opened(mechanism))
        self.guidance, self.constraint = guidance, constraint or ElboConstraint()
        self.weights, self.guidance_weight, self.minimality = weights or {}, guidance_weight, minimality
        self.earlier_seconds = {**checkpoints.seconds(pretrained), **guidance.seconds}
        if isinstance(mechanism, str):
            self.earlier_seconds |= checkpoints.seconds(mechanism)
        self.shape, self.soft, self.specificity, self.annealing = shape, soft, specificity, annealing
        self.carried, self.elsewhere = carried, elsewhere
        self.register_buffer("price", torch.ones(()), persistent=False)
        self.model.check_fit(description)
        guidance.attach(self.model.description)
        for name in self.weights:
            self.model.parents[name]
        self.questions, self.allow_unmoved = questions, allow_unmoved
        self.asked = list(guidance.names) or self.model.parents.askable

    def on_fit_start(self) -> None:
        """Measure the pretrained model's NELBO for the bound and fit the shape model, unless a resumed run has both."""
        super().on_fit_start()
        if not self.constraint.measured:
            self.constraint.measure(self._pretrained_nelbo())
        if self.guidance.shape is not None and not self.guidance.shape.fitted:
            self._fit_shape(self.guidance.shape)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Draw one intervention per subject, predict its counterfactual and return the total loss."""
        if self.annealing:
            self._anneal()
        terms, learning = self.terms(batch, self.questions.draw(batch, self.asked, self.model.parents))
        level = distributed.mean(terms["nelbo"])
        loss: Tensor = (
            sum(learning.values())
            + self.guidance_weight * terms["guidance"]
            + self.carried * terms.get("carried", 0.0)
            + self.shape * terms["shape"]
            + self.price
            * (self.minimality * terms["change"] + terms["drawing"] + self.elsewhere * terms.get("elsewhere", 0.0))
            + self.constraint(terms["nelbo"], level)
        )
        self.constraint.ascend(level)
        self.show("train", {**terms, **learning, "multiplier": self.constraint.multiplier, "loss": loss}, batch)
        return loss

    def _anneal(self) -> None:
        """Set the penalties on a change to this step's value, also in the prediction."""
        share = passed(self.global_step + 1, int(self.trainer.estimated_stepping_batches), self.annealing)
        self.price.fill_(share)
        self.model.prediction.anneal(share)

    def terms(self, batch: Batch, do: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss terms of the counterfactuals under ``do``, and the losses that train the judge itself."""
        answer = self.model(batch["image"], batch, do)
        specificity = self.specificity * (1 + self.price) / 2
        return self._judge(batch, answer, specificity), self.guidance.learn(batch, answer.image)

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Log the loss terms for fixed interventions, with deterministic abduction."""
        _, answer = asked_in_turn(self.model, batch, self.asked, self.neighbours(batch, stage, self.asked))
        self.show(stage, self._judge(batch, answer, self.specificity), batch)

    def predictions(self, batch: Batch) -> Batch:
        """Counterfactual images (B, C, *S), one do() per subject; ``do_NAME`` in real units, NaN where not set."""
        return predictions(self.model, batch, self.asked, self.neighbours(batch, "test", self.asked))

    def _judge(self, batch: Batch, answer: Counterfactual, specificity: float | Tensor) -> dict[str, Tensor]:
        """The loss terms of the counterfactuals, before weighting."""
        image, shape, target = batch["image"], self.guidance.shape, answer.values
        kept = {name: value == batch[name] for name, value in target.items()}
        measured = self.guidance(answer.image, image)
        terms = {"guidance": image.new_zeros(()), "shape": image.new_zeros(())}  # the first is in the progress bar
        if self.soft or shape is not None:
            with torch.no_grad():
                factual = self.guidance(image)
            if self.soft:
                target = {n: torch.where(kept[n], factual.get(n, value), value) for n, value in target.items()}
            if shape is not None:
                terms["shape"] = shape.distance(measured, shape.counterfactual(factual, batch, answer.values))
        terms["guidance"] = guidance_loss(measured, target, self.model.parents, self.weights, kept, specificity)
        return {
            **terms,
            **self._flow(batch, answer, kept, specificity),
            **elbo_terms(answer.abduction),
            "change": minimality_loss(answer.image, image),
            "drawing": answer.cost,
        }

    def _flow(self, batch: Batch, answer: Counterfactual, kept: Batch, specificity: float | Tensor) -> Batch:
        """Loss terms of the flow, ``carried`` and ``elsewhere``; empty without masks."""
        velocity, about = answer.edit.velocity, self.model.description
        if velocity is None or not (answer.edit.carries_masks and "mask" in batch and (self.carried or self.elsewhere)):
            return {}
        mask, displacement = batch["mask"], exponential(velocity)
        masks = warp(mask, displacement)
        before, after = (measure_masks(some, answer.image, about, mask) for some in (mask, masks))
        target = {name: torch.where(kept[name], before[name], answer.values[name]) for name in before}
        asked = [about.parents[name].structure for name in before]
        moving = torch.stack([~kept[name] for name in before], 1)  # (B, variables)
        region = torch.stack([mask[:, about.channels_of(name)].amax(1) for name in asked], 1)
        region = (region * spread(moving.float(), region)).amax(1) > 0.5
        return {
            "carried": guidance_loss(after, target, about.parents, self.weights, kept, specificity),
            "elsewhere": displacement_elsewhere(displacement, region),
        }

    @torch.no_grad()
    def _fit_shape(self, shape: ShapeModel) -> None:
        """Fit the shape model on training subjects; all processes get the same coefficients."""
        measured, values, names = [], [], self.model.parents.names
        for batch in self._training_batches(128):
            found = self.guidance(batch["image"])
            measured.append(torch.stack([found[name] for name in shape.names], dim=1))
            values.append(torch.stack([batch[name] for name in names], dim=1))
        everyone = [self.all_gather(torch.cat(parts)) for parts in (measured, values)]
        shapes, causes = (each.flatten(0, -2).unbind(1) for each in everyone if isinstance(each, Tensor))
        shape.fit(dict(zip(shape.names, shapes, strict=True)), dict(zip(names, causes, strict=True)))

    @torch.no_grad()
    def _pretrained_nelbo(self) -> Tensor:
        """Mean NELBO on training batches, the same in all processes."""
        batches = self._training_batches(16)
        losses = [self.model.abduct(batch["image"], batch).elbo.nelbo().mean() for batch in batches]
        return distributed.mean(torch.stack(losses).mean())

    def _training_batches(self, count: int) -> Iterator[Batch]:
        """The first ``count`` batches of a pass over the training split, on the model's device."""
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        for batch in islice(loader, count):
            yield {name: value.to(self.device) for name, value in batch.items()}
