"""``segcft export``: one folder to hand on, with all that answers need and a card that says what it is.

``model.ckpt`` (image model, mechanism of the parents, segmentor, evaluator: recipes and weights, no training state),
``config.json`` (the same recipes to read), ``MODEL_CARD.md``, and ``MANIFEST.json`` with the SHA-256 of each.
"""

import json
from argparse import ArgumentParser
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from segcft.core import checkpoints, manifests
from segcft.core.atomic_files import digest, staged_folder
from segcft.core.formatting import number, printed_unit, quantity
from segcft.core.parsing import PlainParser
from segcft.counterfactual.model import CounterfactualModel
from segcft.guidance.imported_networks import ScriptedNetwork
from segcft.guidance.judges import SegmentationModel, Segmentor
from segcft.variables.variables import Variable

FORMAT = 1
INTENDED_USE = "Research on counterfactual images: what a subject's image would show, had a variable been so."


@dataclass(frozen=True)
class Bundle:
    """What is exported.

    Attributes:
        name: Title of the model card.
        intended_use: What for, in the author's words.
        model: Image model with its mechanism; its segmentor is not set.
        segmentor: The one that guided it, if any.
        evaluator: One that guided nothing and judges the answers, if any.
        seconds: Training seconds by stage; the last stage wrote the checkpoint.
    """

    name: str
    intended_use: str
    model: CounterfactualModel
    segmentor: SegmentationModel | None
    evaluator: SegmentationModel | None
    seconds: dict[str, float]

    @property
    def parts(self) -> dict[str, Any]:
        """What ``CounterfactualModel.load`` needs."""
        parts = {"model": self.model, "segmentor": self.segmentor, checkpoints.EVALUATOR: self.evaluator}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def resolution(self) -> tuple[int, ...]:
        """Of the images, per axis."""
        return self.model.hvae.stages[0].size(self.model.description.spatial_dims)

    @property
    def graph(self) -> dict[str, list[str]]:
        """Variable -> its causes."""
        graph = self.model.mechanism.graph
        return {name: list(graph.get(name, [])) for name in self.model.parents.names}

    @property
    def stage(self) -> str:
        """The stage that wrote the checkpoint; empty if it does not say."""
        return next(reversed(self.seconds), "")


def export(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ValueError: If checkpoint, evaluator, metrics or target are wrong: nothing was written then.
    """
    options = _parser().parse_args(arguments)
    out = Path(options.out)
    model = checkpoints.load(options.checkpoint, CounterfactualModel)
    segmentor = checkpoints.search(options.checkpoint, SegmentationModel)
    seconds = checkpoints.seconds(options.checkpoint)
    evaluator = checkpoints.search(options.checkpoint, SegmentationModel, evaluator=True)
    if options.evaluator:
        evaluator = independent(checkpoints.load(options.evaluator, SegmentationModel), segmentor, model)
    bundle = Bundle(options.name or out.resolve().name, options.intended_use, model, segmentor, evaluator, seconds)
    table = performance(bundle, Path(options.metrics), options.method) if options.metrics else ""
    write(bundle, table, out)
    print(f"{out}: SHA-256 of {manifests.MANIFEST} {digest(out / manifests.MANIFEST)}")
    return 0


def independent(
    evaluator: SegmentationModel, segmentor: SegmentationModel | None, model: CounterfactualModel
) -> SegmentationModel:
    """An evaluator, after checking that it can judge this model's answers.

    Raises:
        ValueError: If it has other structures or dimensions, cannot read images of this size, or is the segmentor.
    """
    evaluator.attach(model.description)
    theirs, ours = evaluator.description, model.description
    if (theirs.structures, theirs.spatial_dims) != (ours.structures, ours.spatial_dims):
        raise ValueError(f"--evaluator outlines {theirs.structures} in {theirs.spatial_dims}-D, not {ours.structures}")
    if isinstance(evaluator, Segmentor):
        evaluator.check_sides(model.frame)
    weights, guided = evaluator.state_dict(), {} if segmentor is None else segmentor.state_dict()
    if weights.keys() == guided.keys() and all(torch.equal(weights[name], guided[name]) for name in weights):
        raise ValueError("--evaluator is the segmentor that guided the training: its judgement is not independent")
    return evaluator


def write(bundle: Bundle, table: str, out: Path) -> None:
    """Write the folder whole or not at all.

    Args:
        bundle: What is exported.
        table: Section of the model card on performance; empty if it was not evaluated.
        out: Where nothing, or an empty folder, lies.

    Raises:
        ValueError: If something lies there or it cannot be written.
    """
    try:
        with staged_folder(out) as folder:
            torch.save(pruned(bundle), folder / checkpoints.BUNDLED)
            (folder / "config.json").write_text(json.dumps(config(bundle), indent=2) + "\n", encoding="utf-8")
            (folder / "MODEL_CARD.md").write_text(card(bundle, table), encoding="utf-8")
            manifests.write(folder)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error}") from error


def pruned(bundle: Bundle) -> dict[str, Any]:
    """A checkpoint with the parts' recipes and weights alone."""
    state = {f"{name}.{key}": value for name, part in bundle.parts.items() for key, value in part.state_dict().items()}
    about = json.dumps(checkpoints.describe(bundle.parts, bundle.seconds))
    return {"state_dict": state, "segcft": json.loads(about)}  # shared objects would be pickled once


def config(bundle: Bundle) -> dict[str, Any]:
    """What the checkpoint holds, to be read by people and programs; loading does not read it."""
    about = bundle.model.description
    return {
        "format": FORMAT,
        "segcft": version("segcft"),
        "name": bundle.name,
        "variables": {name: asdict(variable) for name, variable in about.parents.variables.items()},
        "graph": bundle.graph,
        "structures": about.structures,
        "spacing": about.spacing,
        "channels": about.channels,
        "resolution": list(bundle.resolution),
        "seconds": bundle.seconds,
        "parts": {name: part.recipe for name, part in bundle.parts.items()},
    }


def card(bundle: Bundle, table: str) -> str:
    """The model card, in Markdown."""
    spent = ", ".join(f"{stage} {number(seconds)} s" for stage, seconds in bundle.seconds.items())
    sections = {
        "Intended use": bundle.intended_use,
        "Data": _data(bundle),
        "Causal graph": _arrows(bundle) or "No arrows: no variable moves another.",
        "Performance": table or "Not evaluated: exported without `--metrics`.",
        "Training": f"Seconds by stage: {spent or 'not recorded'}.",
        "Limits": _limits(bundle),
    }
    made = f"A deep structural causal model of images, made with segcft {version('segcft')}."
    return (
        "\n\n".join([f"# {bundle.name}", made, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"
    )


def performance(bundle: Bundle, path: Path, method: str | None) -> str:
    """The model card's table of one method in the ``metrics.json`` of ``segcft evaluate``.

    Args:
        bundle: What is exported.
        path: Of ``metrics.json``.
        method: Its name there; by default the only one, or the one that is spelt like the checkpoint's stage.

    Raises:
        ValueError: If the file cannot be read, has no such method, or is about other variables or another run.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        method = _method(results["methods"], bundle.stage, method)
        _check_run(results, bundle)
        return _table(results, results["methods"][method], method, bundle)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"--metrics {path}: {reason}") from error


def _method(methods: dict[str, Any], stage: str, method: str | None) -> str:
    """Which of the methods was exported."""
    alike = [name for name in methods if name.replace("_", "").lower() == stage]
    chosen = method or next(iter(methods if len(methods) == 1 else alike), None)
    if chosen not in methods:
        raise ValueError(f"say with --method which of {', '.join(methods)} this checkpoint is")
    return chosen


def _check_run(results: dict[str, Any], bundle: Bundle) -> None:
    """The seconds a stage took are as good as a fingerprint of its run."""
    ours, theirs = bundle.seconds.get(bundle.stage), results["seconds"].get(bundle.stage)
    if ours != theirs:
        raise ValueError(f"of another run: its stage {bundle.stage!r} took {theirs} s, the checkpoint's {ours} s")


def _table(results: dict[str, Any], found: dict[str, Any], method: str, bundle: Bundle) -> str:
    rows = []
    for name, effect in found["effectiveness"].items():
        unchanged = results["identity"]["effectiveness"][name]["mape"]
        known = effect["mape"] is not None  # null of a variable that is no size
        mape = f"{effect['mape']:.1f} | {unchanged:.1f}" if known else "- | -"
        mape += f" | {results['evaluator_floor'][name]:.1f}"
        error = quantity(effect["mae"], bundle.model.parents[name].unit)
        leakage = max(found["leakage"][name].values(), default=0.0)
        rows.append(f"| {name} | {mape} | {error} | {effect['slope']:.2f} | {leakage:.1f} |")
    head = ["| do | MAPE % | of the unchanged image | floor | mean error | slope | leakage % |", "|" + "---|" * 7]
    where = f"{results['subjects']} subjects of split `{results['split']}`, seed {results['seed']}"
    return (
        f"Method `{method}` of experiment `{results['experiment']}`: {where}, judged by that experiment's evaluator.\n"
        "MAPE: distance from the target; floor: the evaluator's own; slope: share of the requested change, 1 is best;\n"
        "leakage: change of the other structure that changed most.\n\n" + "\n".join([*head, *rows])
    )


def _data(bundle: Bundle) -> str:
    about, size = bundle.model.description, " x ".join(map(str, bundle.resolution))
    spacing = " x ".join(number(step) for step in about.spacing)
    rows = [
        f"| {name} | {variable.kind} | {printed_unit(variable.unit) or '-'} | {_range(variable)} | "
        f"{variable.measured_as or '-'} |"
        for name, variable in about.parents.variables.items()
    ]
    return "\n".join(
        [
            f"Images of {size}, channels: {about.channels}; spacing {spacing} (mm, where sizes are in mm).",
            f"Structures: {', '.join(about.structures) or 'none'}.\n",
            "| variable | kind | unit | training range | measured in |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _range(variable: Variable) -> str:
    ends = (variable.shown(end, unit=False) for end in (variable.low, variable.high))
    return ", ".join(variable.categories) or " to ".join(ends)


def _arrows(bundle: Bundle) -> str:
    return "\n".join(f"- {', '.join(causes)} -> {name}" for name, causes in bundle.graph.items() if causes)


def _limits(bundle: Bundle) -> str:
    size = " x ".join(map(str, bundle.resolution))
    scripted = (
        any(isinstance(part, ScriptedNetwork) for part in bundle.segmentor.modules()) if bundle.segmentor else False
    )
    return "\n".join(
        [
            "- Not for diagnosis, treatment or any other clinical decision; not a medical device.",
            "- The images are synthetic: what the model expects, not what was or will be seen in a patient.",
            "- Valid only within the training ranges above, and for images like those it was trained on.",
            f"- It draws {size}: whatever is finer does not move.",
            "- The causal graph, be it without arrows, is an assumption; data alone do not prove it.",
            "- It holds no segmentor: factual values must all be given."
            if bundle.segmentor is None
            else "- Its segmentor guided the training: what that measures is no independent judgement.",
            *(["- Its evaluator guided nothing; it has seen images of the same kind."] if bundle.evaluator else []),
            *(["- Its segmentor is a TorchScript program, which runs where the bundle is opened."] if scripted else []),
        ]
    )


def _parser() -> ArgumentParser:
    parser = PlainParser("export", "Pack a trained model into one folder to hand on.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="of pretraining or fine-tuning; Seg-CFT's holds the segmentor, too")
    add("--out", required=True, help="the folder to be made; it must not exist, or be empty")
    add("--evaluator", metavar="CHECKPOINT", help="a segmentor that guided nothing: it judges the bundle's answers")
    add("--metrics", metavar="JSON", help="metrics.json of segcft evaluate, for the model card")
    add("--method", help="the checkpoint's name there; by default the only one, or the one spelt like its stage")
    add("--name", help="title of the model card; by default the folder's name")
    add("--intended-use", default=INTENDED_USE, metavar="TEXT", help="what for, on the model card")
    return parser
