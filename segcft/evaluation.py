"""Compare trained models on one fixed table of interventions, always beside the unchanged image.

Flow: subjects -> table of do() -> counterfactuals of every method -> an evaluator that guided nothing -> numbers,
tables and a picture.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from data_modules.base import Batch, DataModule, ImageDataset, Rerenderable
from data_modules.splits import Split
from segcft import checkpoints, metrics, plots
from segcft.counterfactual import CounterfactualModel
from segcft.files import staged, write_text
from segcft.judges import SegmentationModel
from segcft.mechanisms import opened
from segcft.parents import DataDescription, measure_masks

Values = dict[str, Tensor]


@dataclass
class Subjects:
    """Everything about the test subjects that no method can change.

    Attributes:
        batch: Images, masks and parents, (N, ...) each.
        do: Variable -> targets in real units, (N,).
        truth: Variable -> true counterfactual batch; missing where the data cannot draw it.
        measured: Evaluator's values on the factual images, (N,) each.
        masks: Evaluator's masks of the factual images, (N, K, *S), bool.
    """

    batch: Batch
    do: Values
    truth: dict[str, Batch]
    measured: Values
    masks: Tensor


@dataclass
class Answers:
    """A method's counterfactuals for every row of the table: variable -> images (N, C, *S), and their way back."""

    images: dict[str, Tensor]
    returned: dict[str, Tensor]
    null: Tensor
    reconstruction: float


def evaluate(
    data: DataModule,
    evaluator: str | SegmentationModel,
    methods: dict[str, str],
    out: str,
    experiment: str = "default",
    subjects: int = 128,
    split: Split = "test",
    seed: int = 0,
    strict: bool = False,
    mechanism: str | None = None,
) -> dict[str, Any]:
    """Measure effectiveness, leakage, locality, composition, reversibility and, where known, distance to the truth.

    Args:
        data: Data module; its split must offer the variables that the models were trained with.
        evaluator: A segmentor that guided none of the methods, or its checkpoint.
        methods: Name -> checkpoint of a counterfactual model.
        out: Folder for metrics.json, table.csv, table.md, interventions.csv and figure.png.
        experiment: Name written into metrics.json.
        subjects: Number of subjects, the first ones of a seeded permutation.
        split: Split to look at; choices are made on val, never on test.
        seed: Of the subjects and their targets.
        strict: Refuse targets outside the training range instead of warning.
        mechanism: Checkpoint of ``TrainAttributes`` that replaces every model's own mechanism.

    Raises:
        ValueError: If a checkpoint is missing, of the wrong kind, or does not fit the data.
    """
    causal = opened(mechanism)
    models = {n: checkpoints.load(p, CounterfactualModel).replaced(None, causal).eval() for n, p in methods.items()}
    judge = (checkpoints.load(evaluator, SegmentationModel) if isinstance(evaluator, str) else evaluator).eval()
    judge.attach(data.description)
    for model in models.values():
        model.check_fit(data.description)
    with torch.inference_mode():
        people = gather(data.dataset(split), data.description, judge, subjects, seed)
        for model in models.values():
            model.parents.check(people.do, strict)
        answers = {name: answer(model, people) for name, model in models.items()}
        unchanged = Answers(dict.fromkeys(people.do, people.batch["image"]), {}, people.batch["image"], 0.0)
        results = {
            "experiment": experiment,
            "seed": seed,
            "split": split,
            "subjects": len(people.batch["image"]),
            "seconds": _seconds([p for p in (evaluator, *methods.values(), mechanism) if isinstance(p, str)]),
            "evaluator_floor": floor(people, judge),
            "identity": score(unchanged, people, judge),
            "methods": {name: score(given, people, judge) for name, given in answers.items()},
        }
        figure = plots.comparison(people.batch, people.do, people.truth, _images(answers), judge)
    _write(Path(out), results, people, figure, data.description)
    return results


def gather(
    dataset: ImageDataset, description: DataDescription, judge: SegmentationModel, subjects: int, seed: int
) -> Subjects:
    """Choose subjects and targets by ``seed``: each subject is asked for every variable of another subject."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:subjects]
    batch = dataset.read(chosen)
    do = {}
    for name in description.parents.structural:
        do[name] = batch[name][torch.randperm(len(chosen), generator=generator)]
    truth = {}
    if isinstance(dataset, Rerenderable):
        drawn = [name for name in do if dataset.can_draw(name)]
        truth = {name: dataset.counterfactual(chosen, {name: do[name]}) for name in drawn}
    measured, masks = _measure(judge, batch["image"])
    return Subjects(batch, do, truth, measured, masks)


def answer(model: CounterfactualModel, people: Subjects) -> Answers:
    """Counterfactuals under every do(), the way back, and the null intervention."""
    image, values = people.batch["image"], model.parents.take(people.batch)
    there = {name: model.act(values, {name: target}) for name, target in people.do.items()}
    (*drawn, null), loc = predict(model, image, values, [*there.values(), values])
    images, returned = dict(zip(there, drawn, strict=True)), {}
    for name, cf_values in there.items():
        back = model.act(cf_values, {name: values[name]})
        (returned[name],), _ = predict(model, images[name], cf_values, [back])
    return Answers(images, returned, null, float((loc - image).abs().mean()))


def predict(
    model: CounterfactualModel, image: Tensor, values: Values, cf_values: list[Values], size: int = 32
) -> tuple[list[Tensor], Tensor]:
    """Images under every set of parents and factual means, (N, C, *S) each; one deterministic abduction for all.

    Args:
        model: The method.
        image: Factual images, (N, C, *S).
        values: Their parents in real units, (N,) each.
        cf_values: Counterfactual parents, question by question.
        size: Subjects at a time.
    """
    images: list[list[Tensor]] = [[] for _ in cf_values]
    means = []
    for start in range(0, len(image), size):
        few = slice(start, start + size)
        abduction = model.abduct(image[few], {k: v[few] for k, v in values.items()}, temperature=0.0)
        means.append(abduction.pixels.loc)
        for place, asked in enumerate(cf_values):
            found = model.answer(image[few], abduction, {k: v[few] for k, v in asked.items()})
            images[place].append(found.image)
    return [torch.cat(parts) for parts in images], torch.cat(means)


def score(given: Answers, people: Subjects, judge: SegmentationModel) -> dict[str, Any]:
    """All metrics of one method."""
    image, result = people.batch["image"], _empty_result()
    for name, target in people.do.items():
        measured, masks = _measure(judge, given.images[name], people.masks)
        found = metrics.effectiveness(measured[name], target, people.measured[name], people.batch[name])
        result["effectiveness"][name] = found._asdict()
        result["leakage"][name] = {
            other: metrics.leakage(measured[other], people.measured[other]) for other in people.do if other != name
        }
        channels = judge.description.channels_of(judge.description.parents[name].structure)
        near = metrics.dilate((people.masks | masks)[:, channels].any(1), _reach(image))
        result["locality"][name] = metrics.change_outside(image, given.images[name], near)
        back = given.returned.get(name, image)
        result["reversibility"][name] = float((back - image).abs().mean())
        if name in people.truth:
            truth = people.truth[name]
            near = _true_neighbourhood(people.batch, truth, channels)
            result["truth"][name] = metrics.truth_errors(given.images[name], truth["image"], near)
    result["composition"] = float((given.null - image).abs().mean())
    result["reconstruction"] = given.reconstruction
    return result


def floor(people: Subjects, judge: SegmentationModel) -> dict[str, float]:
    """The evaluator's own MAPE: on true counterfactuals where they exist, else on factual images."""
    found = {}
    for name, target in people.do.items():
        if name in people.truth:
            measured, wanted = _measure(judge, people.truth[name]["image"], people.masks)[0], target
        else:
            measured, wanted = people.measured, people.batch[name]
        found[name] = metrics.effectiveness(measured[name], wanted, people.measured[name], people.batch[name]).mape
    return found


def _empty_result() -> dict[str, Any]:
    kinds: dict[str, Any] = {kind: {} for kind in ("effectiveness", "leakage", "locality")}
    return {**kinds, "composition": math.nan, "reversibility": {}, "reconstruction": math.nan, "truth": {}}


def _measure(
    judge: SegmentationModel, image: Tensor, factual_masks: Tensor | None = None, size: int = 64
) -> tuple[Values, Tensor]:
    """Values (N,) each and hard masks (N, K, *S); regions lie in the factual masks, the same for every method."""
    soft = torch.cat([judge.probabilities(part) for part in torch.split(image, size)])
    return measure_masks(soft, image, judge.description, factual_masks), soft > 0.5


def _reach(image: Tensor) -> int:
    """Margin around a structure in pixels: 3 at 64, in proportion elsewhere."""
    return max(1, round(3 * image.shape[-1] / 64))


def _true_neighbourhood(batch: Batch, truth: Batch, channels: list[int]) -> Tensor:
    before, after = (some["mask"][:, channels].amax(1) > 0.5 for some in (batch, truth))
    return metrics.dilate(before | after, _reach(batch["image"]))


def _seconds(paths: list[str]) -> dict[str, float]:
    spent: dict[str, float] = {}
    for path in paths:
        spent |= checkpoints.seconds(path)
    return spent


def _images(answers: dict[str, Answers]) -> dict[str, dict[str, Tensor]]:
    return {name: given.images for name, given in answers.items()}


def table(results: dict[str, Any]) -> pd.DataFrame:
    """One row per method and intervened variable."""
    rows = []
    for method, result in {"identity": results["identity"], **results["methods"]}.items():
        for name, found in result["effectiveness"].items():
            row = {"method": method, "do": name, **found, "evaluator_floor": results["evaluator_floor"][name]}
            row |= {"leakage": max(result["leakage"][name].values(), default=0.0), "outside": result["locality"][name]}
            row |= {"reversibility": result["reversibility"][name], "composition": result["composition"]}
            row |= {"reconstruction": result["reconstruction"]}
            if name in result["truth"]:
                row |= {f"truth_{key}": value for key, value in result["truth"][name].items()}
                row["truth_ratio"] = row["truth_mae"] / results["identity"]["truth"][name]["mae"]
            rows.append(row)
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame) -> str:
    """The table for people: units in the header, few digits."""
    formats = {"mape": "{:.1f}", "mae": "{:.3g}", "slope": "{:.2f}", "evaluator_floor": "{:.1f}", "leakage": "{:.2f}"}
    formats |= {"truth_psnr": "{:.1f}", "truth_ssim": "{:.3f}", "truth_ratio": "{:.2f}"}
    titles = {"mape": "MAPE %", "evaluator_floor": "floor %", "leakage": "leakage %", "outside": "change outside"}
    lines = ["| " + " | ".join(titles.get(name, name.replace("_", " ")) for name in frame.columns) + " |"]
    lines.append("|" + "---|" * len(frame.columns))
    for record in frame.to_dict("records"):
        cells = [v if isinstance(v, str) else formats.get(str(k), "{:.4f}").format(v) for k, v in record.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def interventions(people: Subjects, description: DataDescription) -> pd.DataFrame:
    """The questions that were asked, so that another method can be asked the same."""
    frames = []
    for name, target in people.do.items():
        columns = {"subject": people.batch["index"].tolist(), "variable": name, "unit": description.parents[name].unit}
        frames.append(pd.DataFrame({**columns, "factual": people.batch[name].tolist(), "target": target.tolist()}))
    return pd.concat(frames)


def _write(out: Path, results: dict[str, Any], people: Subjects, figure: Any, description: DataDescription) -> None:
    out.mkdir(parents=True, exist_ok=True)
    frame = table(results)
    write_text(out / "metrics.json", json.dumps(results, indent=2) + "\n")
    write_text(out / "table.csv", frame.to_csv(index=False))
    write_text(out / "table.md", markdown(frame))
    write_text(out / "interventions.csv", interventions(people, description).to_csv(index=False))
    with staged(out / "figure.png") as path:
        figure.savefig(path, format="png", dpi=110)
    print(markdown(frame))
    print(f"{sum(results['seconds'].values()):.0f} s of training; figure and tables: {out}")
