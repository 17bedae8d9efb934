"""``segcft evaluate``."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from data_modules.common.data_module import DataModule
from data_modules.common.splits import Split
from segcft.causal.structural_causal_model import opened as opened_mechanism
from segcft.core import checkpoints, provenance
from segcft.core.atomic_files import write_text
from segcft.evaluation import detectability, native_resolution, result_tables
from segcft.evaluation.bootstrap import Estimate, estimate, resamples
from segcft.evaluation.protocol import (
    Answers,
    Cohort,
    EvaluatedMethod,
    Method,
    answer,
    gather,
    interventions,
    opened,
    perfect,
    refuse_exchanged,
    unchanged,
)
from segcft.evaluation.realism import features, frechet, kernel_distance
from segcft.evaluation.rows import rows
from segcft.evaluation.summary import NATIVE_COLUMNS, Estimates, health, off_target, summarise
from segcft.evaluation.traversal_file import FILE, Sweeps
from segcft.evaluation.traversals import sweep
from segcft.guidance.judges import SegmentationModel
from segcft.plots import figures

TRUTH = "true_counterfactual"  # as a method


@dataclass(frozen=True)
class NativeResults:
    """What was measured at the images' own size.

    Attributes:
        results: ``size``, ``metrics``, ``differences`` and how detectability was measured.
        frame: Of ``native_resolution.rows``.
        pictures: Of ``native_resolution.rows``.
    """

    results: dict[str, Any]
    frame: pd.DataFrame
    pictures: list[dict[str, Any]]


def evaluate(
    data: DataModule,
    evaluator: str | SegmentationModel,
    methods: dict[str, str | Method],
    out: str,
    experiment: str = "default",
    subjects: int = 128,
    split: Split = "test",
    seed: int = 0,
    strict: bool = False,
    mechanism: str | None = None,
    gap: float = 3.0,
    references: int = 256,
    sweeps: int = 3,
    ask: str | None = None,
    native: int | None = None,
    detect: int = 160,
) -> dict[str, Any]:
    """Measure effectiveness, leakage, locality, the axioms, realism and, where known, distance to the truth.

    Args:
        data: Data module; its split must offer the variables that the models were trained with.
        evaluator: A segmentor that guided none of the methods, or its checkpoint.
        methods: Name -> checkpoint of a counterfactual model, or all of a ``Method``; paired
            differences are taken to the last one.
        out: Folder for metrics.json, subjects.csv, table.csv, table.md, interventions.csv, figure.png, sweeps.npz.
        experiment: Name written into metrics.json.
        subjects: Number of subjects, the first ones of a seeded permutation.
        split: Split to look at; choices are made on val, never on test.
        seed: Of the subjects and their targets.
        strict: Refuse targets outside the training range instead of warning.
        mechanism: Checkpoint of ``TrainAttributes`` that replaces every model's own mechanism.
        gap: Warn where the evaluator's error exceeds that of a method's own guide by these points and the floor.
        references: Training images that answers should look like.
        sweeps: Subjects whose pictures are kept while every variable goes through its range, in sweeps.npz, for
            ``segcft report`` and ``segcft figure``; 0 keeps none.
        ask: What every subject is asked of every variable, ``-25%``, ``q0.1`` and so on; by default another's value.
        native: Pixels along the longest side at which the final images are measured as well, native.csv, native.md
            and native.png; the models read what they were trained on. Not at all unless given.
        detect: Steps that a small classifier is trained to tell answers from untouched films of that size, by
            ``references`` training subjects; 0 leaves it out.

    Raises:
        ValueError: If a checkpoint is missing, of the wrong kind, or does not fit the data, the evaluator outlines one
            structure as another, ``ask`` is malformed, or the data do not come at ``native`` pixels.
    """
    native_data = _resized(data, native, detect)
    asked = {name: Method(method) if isinstance(method, str) else method for name, method in methods.items()}
    refinement = {name: method.refinement for name, method in asked.items()}
    causal = opened_mechanism(mechanism)
    evaluated_methods = {name: opened(method, causal) for name, method in asked.items()}
    judge = (checkpoints.load(evaluator, SegmentationModel) if isinstance(evaluator, str) else evaluator).eval()
    judge.attach(data.description)
    with torch.inference_mode():
        dataset = data.dataset(split)
        cohort = gather(data, dataset, judge, subjects, seed, ask)
        refuse_exchanged(cohort, judge)
        _check_fit(evaluated_methods, cohort, strict)
        answers = {"identity": unchanged(cohort), **({TRUTH: perfect(cohort)} if cohort.truth else {})}
        answers |= {name: answer(evaluated, cohort) for name, evaluated in evaluated_methods.items()}
        frame = _frame(answers, cohort, judge, refinement)
        looks = _realism(answers, data, judge, references, seed)
        images = {name: answers[name].images for name in asked}
        figure = figures.comparison(cohort.batch, cohort.do, cohort.truth, images, judge)
        kept = sweep(evaluated_methods, cohort, dataset, judge, sweeps, TRUTH) if sweeps > 0 else None
    native_results = None
    if native_data is not None:
        native_results = _native_results(
            native_data, split, evaluated_methods, cohort, judge, refinement, references, detect, seed
        )
    results = {
        "experiment": experiment,
        "seed": seed,
        "split": split,
        "subjects": len(cohort.batch["image"]),
        "ask": ask,
        **_how(asked, evaluated_methods, evaluator, mechanism),
        "settings": _settings(data, evaluator, asked, mechanism, references),
        **conclusions(frame, looks, _floor(cohort, frame), gap, list(asked)),
        **({} if native_results is None else {"native": native_results.results}),
    }
    _write(Path(out), results, frame, cohort, figure, kept)
    _write_native(Path(out), native_results, refinement)
    return results


def _check_fit(evaluated_methods: Mapping[str, EvaluatedMethod], cohort: Cohort, strict: bool) -> None:
    """See that every model fits the data and what is asked."""
    for evaluated in evaluated_methods.values():
        evaluated.model.check_fit(cohort.description)
        evaluated.model.parents.check(cohort.do, strict)


def _how(
    asked: Mapping[str, Method],
    evaluated_methods: Mapping[str, EvaluatedMethod],
    evaluator: str | SegmentationModel,
    mechanism: str | None,
) -> dict[str, Any]:
    """How the methods were trained, and where they were compared."""
    given = (evaluator, *(method.checkpoint for method in asked.values()), mechanism)
    paths = [path for path in given if isinstance(path, str)]
    return {
        "seconds": {stage: spent for path in paths for stage, spent in checkpoints.seconds(path).items()},
        "refinement": {name: method.refinement for name, method in asked.items()},
        "guides": {name: type(c.guide).__name__ if c.guide else None for name, c in evaluated_methods.items()},
        "training": {name: checkpoints.seconds(method.checkpoint) for name, method in asked.items()},
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
    }


def _resized(data: DataModule, size: int | None, detect: int) -> DataModule | None:
    """The data at the images' own size; None if nobody asks."""
    if size is None:
        return None
    native_data = data.resized(size)
    if any(step > own for step, own in zip(native_data.spacing, data.spacing, strict=True)):
        raise ValueError(f"native is {size} pixels along the longest side, the models read more")
    if detect and len(native_data.spacing) != 2:
        raise ValueError("detectability is known of images alone, not of volumes: ask for detect=0")
    return native_data


def _native_results(
    native_data: DataModule,
    split: Split,
    evaluated_methods: Mapping[str, EvaluatedMethod],
    cohort: Cohort,
    judge: SegmentationModel,
    refinement: Mapping[str, str],
    references: int,
    detect: int,
    seed: int,
) -> NativeResults:
    """The final images of all methods, measured; the classifier learns from training subjects alone."""
    image, about = cohort.batch["image"], native_data.description
    frame = tuple(image.shape[2:])
    renderer = native_resolution.NativeRenderer(evaluated_methods, native_data.dataset(split), judge, frame, TRUTH)
    with torch.no_grad():
        table, pictures = native_resolution.rows(
            renderer, native_resolution.Interventions.of(cohort), about, refinement
        )
    summary = summarise(table, columns=NATIVE_COLUMNS, prepare=native_resolution.moments)
    if detect:
        train_renderer = native_resolution.NativeRenderer(
            evaluated_methods, native_data.dataset("train"), judge, frame, TRUTH
        )
        names, after = list(cohort.do), len(image) if split == "train" else 0
        learns = detectability.others(train_renderer.dataset, names, about, references, seed, after).to(image.device)
        tests = detectability.others(renderer.dataset, names, about, len(image), seed).to(image.device)
        found = detectability.detect((train_renderer, renderer), (learns, tests), about, detect, seed)
        for method, questions in found.items():
            for do, values in questions.items():
                summary["metrics"].setdefault(method, {}).setdefault(do, {}).update(values)
    return NativeResults(
        {"size": max(renderer.size), "detect": detect, "references": references, **summary}, table, pictures
    )


def _settings(
    data: DataModule,
    evaluator: str | SegmentationModel,
    methods: dict[str, Method],
    mechanism: str | None,
    references: int,
) -> dict[str, Any]:
    """What was compared, in words."""
    return {
        "data": f"{type(data).__module__}.{type(data).__qualname__}",
        "variables": {n: asdict(v) | {"quantiles": None} for n, v in data.description.parents.variables.items()},
        "structures": data.description.structures,
        "spacing": data.description.spacing,
        "evaluator": evaluator if isinstance(evaluator, str) else type(evaluator).__name__,
        "methods": {name: asdict(method) for name, method in methods.items()},
        "mechanism": mechanism,
        "references": references,
    }


def _frame(
    answers: dict[str, Answers], cohort: Cohort, judge: SegmentationModel, refinement: dict[str, str]
) -> pd.DataFrame:
    parts = []
    for name, given in answers.items():
        part = rows(given, cohort, judge)
        part.insert(0, "refinement", refinement.get(name, ""))
        part.insert(0, "method", name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _floor(cohort: Cohort, frame: pd.DataFrame) -> dict[str, float]:
    """The evaluator's own error in %: on true counterfactuals where they exist, else on factual images."""
    found = {}
    for name in cohort.do:
        known = name in cohort.truth
        part = frame[(frame["method"] == (TRUTH if known else "identity")) & (frame["do"] == name)]
        if known:
            found[name] = float(part["judged"].mean())
            continue
        error = (part["before"] - part["factual"]).abs()
        of_size = bool(part["error_percent"].notna().any())
        scale = part["factual"].abs().clip(lower=1e-12) if of_size else cohort.description.parents[name].std
        found[name] = float((100 * error / scale).mean())
    return found


def _realism(
    answers: dict[str, Answers], data: DataModule, judge: SegmentationModel, references: int, seed: int
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Distances of every method's answers to training images; the row of the unchanged images is the floor."""
    dataset = data.dataset("train")
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:references]
    real = features(judge, dataset.read(chosen)["image"])
    if len(real) < 2 or not real.shape[1]:
        return {}
    found: dict[str, dict[str, dict[str, Estimate]]] = {}
    for name, given in answers.items():
        found[name] = {}
        for do, image in given.images.items():
            seen = features(judge, image)
            weights = torch.from_numpy(resamples([range(len(seen))]))
            exact = Estimate(frechet(seen, real), math.nan, math.nan)  # its bootstrap is biased upwards: no interval
            found[name][do] = {"frechet": exact, "kernel": estimate(kernel_distance(seen, real, weights).numpy())}
    return found


def conclusions(
    frame: pd.DataFrame, looks: Estimates, floor: dict[str, float], gap: float, methods: list[str]
) -> dict[str, Any]:
    """Everything in metrics.json that follows from the rows.

    Args:
        frame: Rows of every method, ``identity`` first.
        looks: Realism: method -> do -> metric.
        floor: The evaluator's own error by variable, in %.
        gap: Points beyond the floor by which guide and evaluator may differ.
        methods: Names of the trained ones.
    """
    summary = summarise(frame)
    for method, found in looks.items():
        for do, values in found.items():
            summary["metrics"][method][do] |= values
    results = {name: _result(frame[frame["method"] == name], found) for name, found in summary["metrics"].items()}
    return {
        "evaluator_floor": floor,
        "identity": results["identity"],
        TRUTH: results.get(TRUTH),
        "methods": {name: results[name] for name in methods},
        "metrics": summary["metrics"],
        "differences": summary["differences"],
        "health": health(summary["metrics"], floor, gap),
    }


def _result(frame: pd.DataFrame, found: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
    """One method's numbers by kind, without intervals."""
    off = {do: off_target(frame[frame["do"] == do]) for do in found}
    known = [do for do, values in found.items() if math.isfinite(values["truth_mae"].value)]

    def by(kind: str) -> dict[str, dict[str, float]]:
        return {do: {other: values[kind] for other, values in moved.items()} for do, moved in off.items()}

    def only(names: dict[str, str], questions: Iterable[str] = tuple(found)) -> dict[str, dict[str, float]]:
        return {do: {key: found[do][name].value for key, name in names.items()} for do in questions}

    truth = {key: f"truth_{key}" for key in ("mae", "mae_neighbourhood", "psnr", "ssim")}
    first = next(iter(found.values()))
    return {
        "effectiveness": only({key: key for key in ("mape", "mae", "slope")}),
        "leakage": by("leakage"),
        "leakage_signed": by("signed"),
        "amplification": by("amplification"),
        "locality": {do: values["outside"].value for do, values in found.items()},
        "composition": first["composition"].value,
        "reversibility": {do: values["reversibility"].value for do, values in found.items()},
        "reconstruction": first["reconstruction"].value,
        "truth": only(truth, known),
    }


def _write(
    out: Path, results: dict[str, Any], frame: pd.DataFrame, cohort: Cohort, figure: Any, kept: Sweeps | None
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if kept is None:
        (out / FILE).unlink(missing_ok=True)  # of an earlier evaluation
    else:
        kept.write(out / FILE)
    metrics, refinement, floor, warnings = (
        *(results[key] for key in ("metrics", "refinement", "evaluator_floor")),
        results["health"]["warnings"],
    )
    text = result_tables.markdown(metrics, refinement, floor, warnings, results["differences"])
    result_tables.write_json(out / "metrics.json", results)
    write_text(out / "subjects.csv", frame.to_csv(index=False, float_format="%.6g"))
    write_text(out / "table.csv", result_tables.table(metrics, refinement, floor).to_csv(index=False))
    write_text(out / "table.md", text)
    write_text(out / "interventions.csv", interventions(cohort).to_csv(index=False))
    result_tables.write_figure(out / "figure.png", figure)
    print(text)
    for line in warnings:
        print(f"WARNING: {line}", file=sys.stderr)
    print(f"{sum(results['seconds'].values()):.0f} s of training; figure and tables: {out}")


def _write_native(out: Path, native_results: NativeResults | None, refinement: Mapping[str, str]) -> None:
    if native_results is None:
        for end in ("csv", "md", "png"):
            (out / f"native.{end}").unlink(missing_ok=True)  # of an earlier evaluation
        return
    results = native_results.results
    text = result_tables.native_markdown(results["size"], results["metrics"], results["differences"], refinement)
    write_text(out / "native.csv", native_results.frame.to_csv(index=False, float_format="%.6g"))
    write_text(out / "native.md", text)
    result_tables.write_mosaic(out / "native.png", native_results.pictures)
    print(text)
