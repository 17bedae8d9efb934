"""Evaluation metrics during training: those of ``segcft evaluate``, on a few validation subjects."""

from dataclasses import replace

import numpy as np
import pandas as pd
from lightning.pytorch import LightningModule, Trainer

from segcft.callbacks.judge_overfitting import witness
from segcft.callbacks.tensorboard import writer
from segcft.counterfactual.model import CounterfactualModel
from segcft.evaluation.bootstrap import mean, means
from segcft.evaluation.protocol import Answers, Cohort, EvaluatedMethod, Method, gather, predict
from segcft.evaluation.rows import rows
from segcft.evaluation.summary import COLUMNS, moments
from segcft.guidance.judges import SegmentationModel
from segcft.tasks.base import Batch, FirstValidationBatch

METRICS = {
    "effectiveness": mean("judged"),
    "leakage": COLUMNS["leakage_mean"].metric,
    "locality": mean("outside"),
    "truth": COLUMNS["truth_ratio"].metric,
}


class ValidationMetrics(FirstValidationBatch):
    """Logs ``effectiveness/NAME``, ``leakage/NAME``, ``locality/NAME`` and, for phantoms, ``truth/NAME`` in validation.

    For do(NAME): error in % of the target (for a variable that is not a size, of the training standard deviation); mean
    change of the other variables in %; mean |x* - x| outside the structure; error to the true counterfactual divided by
    that of the unchanged image. Logs nothing if there is no segmentor, see ``witness``.

    Args:
        subjects: Number of validation subjects; every variable is intervened on for each.
    """

    def __init__(self, subjects: int = 16) -> None:
        self.subjects = subjects
        self._cohort: Cohort | None = None

    def look(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Predict counterfactuals, measure them and log the metrics."""
        if writer(trainer) is None:
            return
        model, judge = getattr(module, "model", None), witness(trainer, module)
        if isinstance(model, CounterfactualModel) and judge is not None:
            cohort = self._asked(trainer, judge)
            for name, value in numbers(answered(model, cohort, judge)).items():
                module.log(name, value, batch_size=1, rank_zero_only=True)

    def _asked(self, trainer: Trainer, judge: SegmentationModel) -> Cohort:
        """Subjects and interventions, the same at every validation."""
        if self._cohort is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            cohort = gather(data, data.dataset("val"), judge, self.subjects, seed=0)
            self._cohort = replace(cohort, do={n: target for n, target in cohort.do.items() if n in judge.names})
        return self._cohort


def answered(model: CounterfactualModel, cohort: Cohort, judge: SegmentationModel) -> pd.DataFrame:
    """Evaluation rows of a model's counterfactuals."""
    image, values = cohort.batch["image"], model.parents.take(cohort.batch)
    worlds = [model.act(values, {name: target}) for name, target in cohort.do.items()]
    images, _ = predict(EvaluatedMethod(model, None, Method("")), image, values, worlds)
    return rows(Answers(dict(zip(cohort.do, images, strict=True)), {}, None, None, {}), cohort, judge)


def numbers(frame: pd.DataFrame) -> dict[str, float]:
    """``METRIC/NAME`` -> its value over the subjects; undefined ones are left out."""
    found: dict[str, float] = {}
    for name, part in frame.groupby("do", sort=False):
        averages = means(moments(part), np.ones((1, len(part))))
        found |= {f"{tag}/{name}": float(metric(averages)[0]) for tag, metric in METRICS.items()}
    return {tag: value for tag, value in found.items() if np.isfinite(value)}
