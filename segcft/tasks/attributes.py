"""Training of the structural causal model of the parents, from the table of attributes (no images)."""

from torch import Tensor

from segcft.causal.interventions import fixed_do
from segcft.causal.structural_causal_model import StructuralCausalModel
from segcft.tasks.base import Batch, Optimisation, Task
from segcft.variables.variables import DataDescription


class TrainAttributes(Task):
    """Fits the mechanism of every variable given its causes by exact maximum likelihood; no image is read.

    Args:
        description: Structures and variables of the data; linked from the data module.
        graph: Variable -> its causes; a variable that is not listed has none.
        positive: Variables whose logarithm is modelled; by default areas and volumes.
        hidden: Width of the networks that read the causes.
        bins: Number of bins of each spline.
        stage: Name of the stage.
        optimisation: Optimiser and schedule.
    """

    parts = ("mechanism",)
    reads_images = False

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
        """Let the data module load variables without images."""
        super().setup(stage)
        self.trainer.datamodule.attributes_only = True  # type: ignore[attr-defined]

    def teardown(self, stage: str) -> None:
        """Let the data module load images again."""
        self.trainer.datamodule.attributes_only = False  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean negative log-likelihood, nats per subject."""
        nll = self.terms(batch)
        self.show("train", {"nll": nll}, batch)
        return nll

    def terms(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of a batch, a scalar."""
        return -self.mechanism.log_prob(batch).mean()

    def evaluate(self, batch: Batch, stage: str) -> None:
        """Log the negative log-likelihood of all variables and of each, in nats per subject (density per real unit)."""
        terms = {name: -found.mean() for name, found in self.mechanism.log_probs(batch).items()}
        total = sum(terms.values(), start=batch["index"].new_zeros(()))
        self.show(stage, {"nll": total, **{f"nll_{name}": value for name, value in terms.items()}}, batch)

    def predictions(self, batch: Batch) -> Batch:
        """Counterfactual values, (B,) each, under one do() per subject; ``do_NAME`` is NaN where not intervened on."""
        names = self.mechanism.parents.names
        do = fixed_do(batch, names, self.neighbours(batch, "test", names))
        values = self.mechanism.counterfactual(self.mechanism.parents.take(batch), do)
        return {**values, **{f"do_{name}": asked for name, asked in do.items()}}
