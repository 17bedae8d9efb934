"""Learn how the parents cause each other, from the table of attributes alone."""

from torch import Tensor

from segcft.causal.interventions import fixed_do
from segcft.causal.structural_causal_model import StructuralCausalModel
from segcft.tasks.base import Batch, Optimisation, Task
from segcft.variables.variables import DataDescription


class TrainAttributes(Task):
    """Exact maximum likelihood of the variables given their causes; no image is read or drawn.

    Args:
        description: What the data measure; linked from the data module.
        graph: Variable -> its causes; a variable that is not named has none.
        positive: Variables that are modelled by their logarithm; areas and volumes by default.
        hidden: Width of the networks that read the causes.
        bins: Pieces of each spline.
        stage: Name of the stage.
        optimisation: Optimiser and schedule.
    """

    parts = ("mechanism",)

    def __init__(
        self,
        description: DataDescription,
        graph: dict[str, list[str]],
        positive: list[str] | None = None,
        hidden: int = 16,
        bins: int = 8,
        stage: str = "attributes",
        optimisation: Optimisation = Optimisation(lr=1e-2, weight_decay=0.0, flat=0.3),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(stage, optimisation)
        self.mechanism = StructuralCausalModel(description.parents, graph, positive, hidden, bins)

    def setup(self, stage: str) -> None:
        """Ask the data module for variables alone."""
        super().setup(stage)
        self.trainer.datamodule.attributes_only = True  # type: ignore[attr-defined]

    def teardown(self, stage: str) -> None:
        """Let others have their images."""
        self.trainer.datamodule.attributes_only = False  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Negative log-likelihood, nats per subject."""
        nll = self.terms(batch)
        self.show("train", {"nll": nll}, batch)
        return nll

    def terms(self, batch: Batch) -> Tensor:
        """Negative log-likelihood."""
        return -self.mechanism.log_prob(batch).mean()

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Negative log-likelihood of all variables together and of each, in nats per subject and real units."""
        terms = {name: -found.mean() for name, found in self.mechanism.log_probs(batch).items()}
        total = sum(terms.values(), start=batch["index"].new_zeros(()))
        self.show(stage, {"nll": total, **{f"nll_{name}": value for name, value in terms.items()}}, batch)

    def predictions(self, batch: Batch) -> Batch:
        """Counterfactual values, (B,) each, under one do() a subject; ``do_NAME`` is NaN where not asked."""
        do = fixed_do(batch, self.mechanism.parents.names)
        values = self.mechanism.counterfactual(self.mechanism.parents.take(batch), do)
        return {**values, **{f"do_{name}": asked for name, asked in do.items()}}
