"""Counterfactual fine-tuning: teach the HVAE that its counterfactuals must measure what was asked for."""

from itertools import islice

import torch
from torch import Tensor

from segcft import checkpoints
from segcft.counterfactual import Counterfactual, CounterfactualModel
from segcft.guidance import Guidance
from segcft.interventions import Questions, fixed_do
from segcft.losses import ElboConstraint, guidance_loss, minimality_loss
from segcft.mechanisms import Mechanism, opened
from segcft.parents import DataDescription
from segcft.prediction import Prediction
from segcft.tasks.base import Batch, Optimisation, Task, predictions


class CounterfactualFineTuning(Task):
    """No-CFT, Reg-CFT or Seg-CFT, by choice of the guidance (Xia et al., 2025, arXiv:2509.24913).

    One encoder and two decoder passes a step: the pass that abducts also gives the ELBO.

    Args:
        description: What the data measure; linked from the data module, must fit the pretrained model's.
        pretrained: Checkpoint of ``PretrainHVAE``.
        guidance: Judge of the counterfactuals.
        prediction: Replaces the pretrained model's prediction if given.
        mechanism: Replaces the pretrained model's mechanism if given, itself or the checkpoint of ``TrainAttributes``.
        constraint: Bound on the NELBO.
        weights: Factor of a guided variable in the guidance loss, 1 where not named.
        guidance_weight: Factor of the guidance loss.
        minimality: Factor of the mean absolute change.
        questions: Where the targets come from.
        stage: Name of the stage: ``nocft``, ``regcft`` or ``segcft``.
        optimisation: Optimiser and schedule.
    """

    parts = ("model", "guidance")

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
        questions: Questions = Questions(),  # noqa: B008 (frozen)
        stage: str = "segcft",
        optimisation: Optimisation = Optimisation(flat=0.5, weight_decay=0.0),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(stage, optimisation)
        self.model = checkpoints.load(pretrained, CounterfactualModel).replaced(prediction, opened(mechanism))
        guidance.attach(description)
        self.guidance, self.constraint = guidance, constraint or ElboConstraint()
        self.weights, self.guidance_weight, self.minimality = weights or {}, guidance_weight, minimality
        self.earlier_seconds = {**checkpoints.seconds(pretrained), **guidance.seconds}
        if isinstance(mechanism, str):
            self.earlier_seconds |= checkpoints.seconds(mechanism)
        self.model.check_fit(description)
        for name in self.weights:
            self.model.parents[name]
        self.questions = questions
        self.asked = list(guidance.names) or list(self.model.parents.structural)

    def on_fit_start(self) -> None:
        """Measure the bound on the pretrained model, unless a resumed run knows it."""
        super().on_fit_start()
        if not self.constraint.measured:
            self.constraint.measure(self._pretrained_nelbo())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Ask a random question of every subject and judge the answer."""
        answer = self.model(batch["image"], batch, self.questions.draw(batch, self.asked, self.model.parents))
        guidance, change = self._judge(batch, answer)
        nelbo, learning = answer.abduction.elbo.nelbo().mean(), self.guidance.learn(batch, answer.image)
        loss: Tensor = (
            sum(learning.values()) + self.guidance_weight * guidance + self.minimality * change + self.constraint(nelbo)
        )
        self.constraint.ascend(nelbo)
        multiplier = self.constraint.multiplier
        terms = {"guidance": guidance, "nelbo": nelbo, "change": change, "multiplier": multiplier, "loss": loss}
        self.show("train", {**terms, **learning}, batch)
        return loss

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Ask the same questions each time, with deterministic abduction."""
        answer = self.model(batch["image"], batch, fixed_do(batch, self.asked), temperature=0.0)
        guidance, change = self._judge(batch, answer)
        self.show(stage, {"guidance": guidance, "nelbo": answer.abduction.elbo.nelbo().mean(), "change": change}, batch)

    def predictions(self, batch: Batch) -> Batch:
        """Images (B, C, *S) under one do() a subject; ``do_NAME`` in real units, NaN where not asked."""
        return predictions(self.model, batch, self.asked)

    def _judge(self, batch: Batch, answer: Counterfactual) -> tuple[Tensor, Tensor]:
        """Guidance loss and mean change."""
        measured = self.guidance(answer.image)
        guidance = guidance_loss(measured, answer.values, self.model.parents, self.weights)
        return guidance, minimality_loss(answer.image, batch["image"])

    @torch.no_grad()
    def _pretrained_nelbo(self, batches: int = 16) -> Tensor:
        """Mean NELBO on training batches; all processes agree on it."""
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        losses = []
        for batch in islice(loader, batches):
            moved = {name: value.to(self.device) for name, value in batch.items()}
            losses.append(self.model.abduct(moved["image"], moved).elbo.nelbo().mean())
        gathered = self.all_gather(torch.stack(losses).mean())
        assert isinstance(gathered, Tensor)
        return gathered.mean()
