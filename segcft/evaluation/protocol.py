"""Who is asked what, and what the methods answer; nothing here looks at an answer."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from data_modules.common.data_module import Batch, DataModule, ImageDataset, Rerenderable
from segcft.causal.structural_causal_model import Mechanism
from segcft.core import checkpoints
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.subject import Answer, OpenedSubject
from segcft.guidance.judges import Judge, SegmentationModel
from segcft.variables.mask_measurements import measure_masks
from segcft.variables.requests import parse
from segcft.variables.variables import DataDescription

Values = dict[str, Tensor]
AT_ONCE = 32  # subjects that a model answers at a time


@dataclass(frozen=True)
class Method:
    """A trained model, and how it is asked.

    Attributes:
        checkpoint: Of a counterfactual model.
        corrections: Rounds of the correction loop, in which the guide measures an answer and the target is moved by
            what is missing; 0 answers once.
        confined: Change nothing but the neighbourhood of what was to move, by the guide's masks.
    """

    checkpoint: str
    corrections: int = 0
    confined: bool = False

    @property
    def refinement(self) -> str:
        """What the guide still does when the model answers, for tables."""
        rounds = [f"{self.corrections} rounds"] if self.corrections else []
        return ", ".join([*rounds, *(["confined"] if self.confined else [])]) or "off"


@dataclass
class EvaluatedMethod:
    """A method whose checkpoint has been read.

    Attributes:
        model: Predicts the counterfactuals.
        guide: The judge that guided its fine-tuning; None without one.
        asked: The corrections and the confinement that are asked for.
    """

    model: CounterfactualModel
    guide: Judge | None
    asked: Method

    def answer(self, subject: OpenedSubject, cf_values: Values) -> Answer:
        """Counterfactuals of opened subjects under ``cf_values``, in real units, (B,) each."""
        return subject.answer(cf_values, corrections=self.asked.corrections, confined=self.asked.confined)


@dataclass
class Cohort:
    """Everything about the test subjects that no method can change.

    Attributes:
        batch: Images, masks and parents, (N, ...) each.
        do: Variable -> targets in real units, (N,).
        truth: Variable -> true counterfactual batch; missing where the data cannot draw it.
        measured: Evaluator's values on the factual images, (N,) each.
        masks: Evaluator's masks of the factual images, (N, K, *S), bool.
        description: Of the data: kinds, units and training ranges.
    """

    batch: Batch
    do: Values
    truth: dict[str, Batch]
    measured: Values
    masks: Tensor
    description: DataDescription


def refuse_exchanged(cohort: Cohort, judge: SegmentationModel) -> None:
    """See that the evaluator does not outline one structure where the data have another one.

    Raises:
        ValueError: If it does, with a Dice of at least 0.5 that is more than twice that of the right structure.
    """
    if "mask" not in cohort.batch:
        return
    ours, theirs = cohort.masks.flatten(2).double(), cohort.batch["mask"].flatten(2).double()
    shared = 2 * torch.einsum("njs,nks->jk", ours, theirs)
    dice = shared / (ours.sum((0, 2))[:, None] + theirs.sum((0, 2))[None]).clamp(min=1)
    names = cohort.description.structures
    for row, name in zip(dice, judge.description.structures, strict=True):
        best = int(row.argmax())
        right = float(row[names.index(name)]) if name in names else 1.0
        if row[best] >= 0.5 and right < 0.5 * row[best]:
            raise ValueError(f"the evaluator outlines {name} where the data have {names[best]}: are they exchanged?")


@dataclass
class Answers:
    """A method's counterfactuals for every row of the table.

    Attributes:
        images: Variable -> (N, C, *S).
        returned: Variable -> the way back from them; empty where nobody went back.
        null: The null intervention's images; None if nobody asked.
        reconstruction: Mean |mu - x| of the abducted pixels, (N,); None if there are none.
        guided: Variable -> what the method's own guide measures in its answers; empty without one.
    """

    images: dict[str, Tensor]
    returned: dict[str, Tensor]
    null: Tensor | None
    reconstruction: Tensor | None
    guided: dict[str, Tensor]


def opened(method: Method, causal: Mechanism | None) -> EvaluatedMethod:
    """Read a method's model and the guide inside its checkpoint.

    Raises:
        ValueError: If the checkpoint is missing or of the wrong kind.
    """
    model = checkpoints.load(method.checkpoint, CounterfactualModel).replaced(None, causal).eval()
    guide = checkpoints.search(method.checkpoint, Judge)
    if guide is not None:
        guide.attach(model.description)
    model.segmentor = guide if isinstance(guide, SegmentationModel) else None
    return EvaluatedMethod(model, guide.eval() if guide else None, method)


def gather(
    data: DataModule,
    dataset: ImageDataset,
    judge: SegmentationModel,
    subjects: int,
    seed: int,
    ask: str | None = None,
) -> Cohort:
    """Choose subjects and targets by ``seed``; tensors lie where the judge is.

    Args:
        data: Says what the variables are.
        dataset: Of the split.
        judge: Measures the factual images.
        subjects: How many; fewer if the split has fewer.
        seed: Of the choice.
        ask: What all are asked of every variable, as ``segcft.variables.requests`` writes it (``-25%``); by
            default each is asked for the values of another.

    Raises:
        ValueError: If ``ask`` is malformed or asks the impossible of a variable.
    """
    parents = data.description.parents
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:subjects]
    device = next((weight.device for weight in judge.parameters()), torch.device("cpu"))
    batch = _moved(dataset.read(chosen), device)
    do = {}
    for name in parents.structural:
        if ask is None:
            do[name] = batch[name][torch.randperm(len(chosen), generator=generator)]
        else:
            do[name] = parse(f"{name}={ask}", parents).target(batch[name])
    truth = {}
    if isinstance(dataset, Rerenderable):
        drawn = [name for name in do if dataset.can_draw(name)]
        asked = {name: dataset.counterfactual(chosen, {name: do[name].cpu()}) for name in drawn}
        truth = {name: _moved(drawn_again, device) for name, drawn_again in asked.items()}
    measured, masks = measure(judge, batch["image"])
    return Cohort(batch, do, truth, measured, masks, data.description)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {name: values.to(device) for name, values in batch.items()}


def answer(evaluated: EvaluatedMethod, cohort: Cohort) -> Answers:
    """Counterfactuals under every do(), the way back, the null intervention, and the guide's own opinion."""
    model, guide = evaluated.model, evaluated.guide
    image, values = cohort.batch["image"], model.parents.take(cohort.batch)
    there = {name: model.act(values, {name: target}) for name, target in cohort.do.items()}
    (*drawn, null), loc = predict(evaluated, image, values, [*there.values(), values])
    images, returned, guided = dict(zip(there, drawn, strict=True)), {}, {}
    for name, cf_values in there.items():
        back = model.act(cf_values, {name: values[name]})
        (returned[name],), _ = predict(evaluated, images[name], cf_values, [back])
        if guide is not None and name in guide.description.parents.structural:
            pairs = zip(torch.split(images[name], 64), torch.split(image, 64), strict=True)
            guided[name] = torch.cat([guide.measure(part, factual)[name] for part, factual in pairs])
    return Answers(images, returned, null, (loc - image).abs().flatten(1).mean(1), guided)


def unchanged(cohort: Cohort) -> Answers:
    """Doing nothing, the baseline of every table."""
    image = cohort.batch["image"]
    nothing = dict.fromkeys(cohort.do, image)
    return Answers(nothing, nothing, image, torch.zeros(len(image)), {})


def perfect(cohort: Cohort) -> Answers:
    """The true counterfactuals: what a perfect method would score before this evaluator."""
    return Answers({name: truth["image"] for name, truth in cohort.truth.items()}, {}, None, None, {})


def predict(
    evaluated: EvaluatedMethod, image: Tensor, values: Values, cf_values: list[Values]
) -> tuple[list[Tensor], Tensor]:
    """Images under every set of parents and factual means, (N, C, *S) each; one deterministic abduction for all.

    Args:
        evaluated: The method.
        image: Factual images, (N, C, *S).
        values: Their parents in real units, (N,) each.
        cf_values: Counterfactual parents, question by question.
    """
    model = evaluated.model
    images: list[list[Tensor]] = [[] for _ in cf_values]
    means = []
    for start in range(0, len(image), AT_ONCE):
        few = slice(start, start + AT_ONCE)
        subject = model.open(image[few], {name: value[few] for name, value in values.items()})
        means.append(subject.abduction().pixels.loc)
        for place, asked in enumerate(cf_values):
            found = evaluated.answer(subject, {name: value[few] for name, value in asked.items()})
            images[place].append(found.seen)
    return [torch.cat(parts) for parts in images], torch.cat(means)


def measure(
    judge: SegmentationModel, image: Tensor, factual_masks: Tensor | None = None, size: int = 64
) -> tuple[Values, Tensor]:
    """Values (N,) each and hard masks (N, K, *S); regions lie in the factual masks, the same for every method."""
    soft = torch.cat([judge.probabilities(part) for part in torch.split(image, size)])
    return measure_masks(soft, image, judge.description, factual_masks), soft > 0.5


def interventions(cohort: Cohort) -> pd.DataFrame:
    """The questions that were asked, so that another method can be asked the same."""
    frames = []
    for name, target in cohort.do.items():
        unit = cohort.description.parents[name].unit
        columns = {"subject": cohort.batch["index"].tolist(), "variable": name, "unit": unit}
        frames.append(pd.DataFrame({**columns, "factual": cohort.batch[name].tolist(), "target": target.tolist()}))
    return pd.concat(frames)
