"""Answers at the images' own size: what is measured is the final image, and not what the model sees of it.

The model and the evaluator read their frame as ever; its edits are drawn on the image, a few subjects at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from data_modules.common.data_module import ImageDataset, Rerenderable
from segcft.counterfactual.native_resolution import Canvas, Edit, carry
from segcft.evaluation import metrics
from segcft.evaluation.bootstrap import Array
from segcft.evaluation.protocol import Cohort, EvaluatedMethod, Values
from segcft.evaluation.summary import PAINTED, TEXT
from segcft.guidance.judges import SegmentationModel
from segcft.spatial.geometry import Geometry
from segcft.variables.mask_measurements import located
from segcft.variables.regions import dilate, reach
from segcft.variables.variables import DataDescription

SHARP = 512  # pixels along the longest side up to which a border is a pixel to either side of it
AT_ONCE = 2**20  # pixels that are held at a time, over all images of a batch
SMOOTH = 1.5  # pixels: the detector's grain is nobody's anatomy


@dataclass(frozen=True)
class Interventions:
    """Subjects of a split, and what they are asked.

    Attributes:
        index: Their places, (N,).
        values: Parents in real units, (N,) each.
        do: Variable -> targets in real units, (N,).
        truth: Variables of which true counterfactuals are drawn.
    """

    index: Tensor
    values: Values
    do: Values
    truth: frozenset[str] = frozenset()

    @classmethod
    def of(cls, cohort: Cohort) -> "Interventions":
        """Those of the other tables."""
        values = cohort.description.parents.take(cohort.batch)
        return cls(cohort.batch["index"], values, cohort.do, frozenset(cohort.truth))

    def to(self, device: torch.device) -> "Interventions":
        """The same on another device."""
        values, do = ({name: v.to(device) for name, v in every.items()} for every in (self.values, self.do))
        return Interventions(self.index.to(device), values, do, self.truth)

    def part(self, few: slice) -> "Interventions":
        """Some of them."""
        values, do = ({name: value[few] for name, value in every.items()} for every in (self.values, self.do))
        return Interventions(self.index[few], values, do, self.truth)


@dataclass(frozen=True)
class NativeImages:
    """Images of a few subjects at their own size.

    Attributes:
        asked: The subjects and their targets.
        canvas: Their images, (B, C, *N), and where the model's frame lies in them.
        masks: Their labels, (B, K, *N), bool.
    """

    asked: Interventions
    canvas: Canvas
    masks: Tensor


@dataclass(frozen=True)
class NativeCounterfactual:
    """Counterfactuals of a few subjects at the images' own size.

    Attributes:
        image: The counterfactual, (B, C, *N).
        masks: Structures in it, (B, K, *N), bool: the label that moved along, the truth's own, or the evaluator's.
        edit: What was done; None of a true counterfactual, which nobody edited.
        moved: What the flow makes of the image, without paint, (B, C, *N).
    """

    image: Tensor
    masks: Tensor
    edit: Edit | None
    moved: Tensor


class NativeRenderer:
    """Draws counterfactuals at the images' own size.

    Args:
        methods: Methods by name.
        dataset: Images of one split at that size.
        judge: The evaluator, which outlines what no flow has carried.
        frame: Shape S of what models and evaluator read.
        truth: Name of the true counterfactuals.
    """

    def __init__(
        self,
        methods: Mapping[str, EvaluatedMethod],
        dataset: ImageDataset,
        judge: SegmentationModel,
        frame: tuple[int, ...],
        truth: str = "true_counterfactual",
    ) -> None:
        self.methods, self.dataset, self.judge, self.frame, self.truth = (
            methods,
            dataset,
            judge,
            frame,
            truth,
        )

    @property
    def size(self) -> tuple[int, ...]:
        """Shape N of the images."""
        return tuple(self.dataset.read(torch.zeros(1, dtype=torch.long))["image"].shape[2:])

    def batches(self, asked: Interventions) -> Iterator[NativeImages]:
        """All of them, as many at a time as memory bears."""
        for start, count in self._parts(len(asked.index)):
            part = asked.part(slice(start, start + count))
            batch = self.dataset.read(part.index.cpu())
            image = batch["image"].to(part.index.device)
            canvas = Canvas(image, Geometry.of(image.shape[2:], self.frame))
            yield NativeImages(part, canvas, batch["mask"].to(image.device) > 0.5)

    def _parts(self, count: int) -> Iterator[tuple[int, int]]:
        one = self.dataset.read(torch.zeros(1, dtype=torch.long))["image"]
        size = max(1, AT_ONCE // one.numel())
        return ((start, min(size, count - start)) for start in range(0, count, size))

    def answers(self, native: NativeImages) -> Iterator[tuple[str, str, NativeCounterfactual]]:
        """Question, method and answer, one after the other: every method, and beside it its painted form."""
        for method, evaluated in self.methods.items():
            model, asked, canvas = evaluated.model, native.asked, native.canvas
            values = model.parents.take(asked.values)
            subject = model.open(canvas.image, values, canvas.geometry)
            for name, target in asked.do.items():
                rendered = self.render(native, evaluated.answer(subject, model.act(values, {name: target})).edit)
                yield name, method, rendered
                if rendered.edit is not None and rendered.edit.velocity is not None:
                    paint = Canvas(rendered.image, canvas.geometry).frame - canvas.frame
                    yield name, f"{method}{PAINTED}", self.render(native, Edit(paint), rendered.masks)

    def render(self, native: NativeImages, edit: Edit, masks: Tensor | None = None) -> NativeCounterfactual:
        """An edit, drawn; ``masks`` (B, K, *N) are those of the answer where they are known."""
        canvas = native.canvas
        carried = carry(edit, canvas.image, canvas.geometry)
        image = canvas.painted(carried, edit)
        moved = canvas.painted(carried, edit._replace(paint=torch.zeros_like(edit.paint)))
        if masks is None and edit.carries_masks:
            masks = Canvas(native.masks.float(), canvas.geometry).moved(edit) > 0.5
        return NativeCounterfactual(image, self.outlines(image) if masks is None else masks, edit, moved)

    def outlines(self, image: Tensor) -> Tensor:
        """The evaluator's masks of images (B, C, *N), enlarged, (B, K, *N), bool."""
        canvas = Canvas(image, Geometry.of(image.shape[2:], self.frame))
        return canvas.geometry.enlarge(self.judge.probabilities(canvas.frame)) > 0.5

    def unchanged(self, native: NativeImages) -> NativeCounterfactual:
        """Doing nothing."""
        small = torch.zeros_like(native.canvas.frame)
        still = small.new_zeros(len(small), small.dim() - 2, *small.shape[2:])
        return NativeCounterfactual(native.canvas.image, native.masks, Edit(small, still), native.canvas.image)

    def true(self, native: NativeImages, name: str) -> NativeCounterfactual | None:
        """The true counterfactual; None where there is none."""
        if name not in native.asked.truth or not isinstance(self.dataset, Rerenderable):
            return None
        drawn = self.dataset.counterfactual(native.asked.index.cpu(), {name: native.asked.do[name].cpu()})
        image = drawn["image"].to(native.masks.device)
        return NativeCounterfactual(image, drawn["mask"].to(image.device) > 0.5, None, native.canvas.image)


def rows(
    renderer: NativeRenderer, asked: Interventions, about: DataDescription, refinement: Mapping[str, str]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """One row a method, question and subject, and pictures of a few.

    Columns: ``method``, ``refinement``, ``do``, ``subject``, ``factual``, ``target``; ``old_edge`` and
    ``old_edge_before`` across the border that was left, in the answer and in the factual image; ``new_edge`` across
    the new border, ``new_edge_there`` that of the truth or of the factual image; ``detail``; ``energy``,
    ``energy_before`` and both where the answer ``changed`` something; ``folded`` in % and ``strain`` of the flow;
    ``painted`` and ``altered``, summed changes by paint, and by paint and flow; ``error``, ``error_near``, ``smooth``
    (blurred), ``smooth_near`` and ``edge_error`` to the truth, ``*_unchanged`` those of the factual image. NaN where
    unknown. The methods follow each other in the order of the other tables, each after its painted form.

    Args:
        renderer: Draws the counterfactuals.
        asked: Subjects and their targets.
        about: Of the data at this size.
        refinement: Of the methods, for the table.

    Returns:
        The rows, and ``{"do", "subject", "text", "tiles"}`` of median requests, tiles by name, (H, W) uint8.
    """
    parts, pictures, chosen = [], [], _medians(asked)
    for native in renderer.batches(asked):
        tiles: dict[str, dict[str, Tensor]] = {name: {"factual": native.canvas.image} for name in asked.do}
        truths = {name: renderer.true(native, name) for name in asked.do}
        for name, method, rendered in _everything(renderer, native, truths):
            columns = _measured(name, native, rendered, truths[name], about)
            frame = pd.DataFrame({key: value.double().tolist() for key, value in columns.items()})
            frame.insert(0, "subject", native.asked.index.tolist())
            frame.insert(0, "do", name)
            frame.insert(0, "refinement", refinement.get(method.removesuffix(PAINTED), ""))
            frame.insert(0, "method", method)
            parts.append(frame)
            if method != "identity":
                tiles[name][method] = rendered.image
        pictures += _pictures(native, tiles, chosen, about)
    frame, order = pd.concat(parts), ["identity", renderer.truth]
    order += [name + end for name in renderer.methods for end in (PAINTED, "")]
    frame["place"] = frame["method"].map(order.index)
    frame["question"] = frame["do"].map(list(asked.do).index)
    frame = frame.sort_values(["place", "question"], kind="stable").drop(columns=["place", "question"])
    return frame.reset_index(drop=True), sorted(pictures, key=lambda each: list(asked.do).index(each["do"]))


def _everything(
    renderer: NativeRenderer, native: NativeImages, truths: Mapping[str, NativeCounterfactual | None]
) -> Iterator[tuple[str, str, NativeCounterfactual]]:
    unchanged = renderer.unchanged(native)
    for name, truth in truths.items():
        yield name, "identity", unchanged
        if truth is not None:
            yield name, renderer.truth, truth
    yield from renderer.answers(native)


def moments(frame: pd.DataFrame) -> dict[str, Array]:
    """Columns of numbers, (N,) each."""
    return {str(key): frame[key].to_numpy(np.float64) for key in frame.columns if key not in TEXT}


def _measured(
    name: str,
    native: NativeImages,
    rendered: NativeCounterfactual,
    truth: NativeCounterfactual | None,
    about: DataDescription,
) -> dict[str, Tensor]:
    image, cf_image = native.canvas.image, rendered.image
    changed = (cf_image != image).any(1)
    return {
        "factual": native.asked.values[name],
        "target": native.asked.do[name],
        **_edges(name, native, rendered, truth, about),
        "detail": metrics.detail_correlation(image, cf_image),
        "energy": metrics.fine_energy(cf_image, torch.ones_like(changed)),
        "energy_before": metrics.fine_energy(image, torch.ones_like(changed)),
        "energy_changed": metrics.fine_energy(cf_image, changed),
        "energy_changed_before": metrics.fine_energy(image, changed),
        **_flow(native, rendered),
        **({} if truth is None else _truth(name, native, rendered, truth, about)),
    }


def _edges(
    name: str,
    native: NativeImages,
    rendered: NativeCounterfactual,
    truth: NativeCounterfactual | None,
    about: DataDescription,
) -> dict[str, Tensor]:
    """Sharpness of the old and of the new border, signed so that the ones they are compared with are positive."""
    image, scale = native.canvas.image, max(1.0, max(native.canvas.image.shape[2:]) / SHARP)

    def part(masks: Tensor) -> Tensor:
        return located(masks, about.parents[name].structure, about.parents[name].region, native.masks, about)

    before, after = part(native.masks), part(rendered.masks)
    wanted = after if truth is None else part(truth.masks)
    there = metrics.moved_border(image, before, wanted, scale)
    still = metrics.moved_border(rendered.image, before, wanted, scale)
    new = metrics.moved_border(rendered.image, after, before, scale)
    usual = there if truth is None else metrics.moved_border(truth.image, wanted, before, scale)
    unknown = new.isnan() | usual.isnan()
    return {
        "old_edge": still * there.sign(),
        "old_edge_before": there.abs(),
        "new_edge": torch.where(unknown, torch.nan, new * usual.sign()),
        "new_edge_there": torch.where(unknown, torch.nan, usual.abs()),
    }


def _flow(native: NativeImages, rendered: NativeCounterfactual) -> dict[str, Tensor]:
    """Of the flow in the image's pixels, and how the change divides into flow and paint."""
    if rendered.edit is None:
        return {}
    painted, moved = ((now - then).abs().flatten(1).sum(1) for now, then in _steps(native, rendered))
    shares = {"painted": 100 * painted, "altered": painted + moved}
    if rendered.edit.displacement is None:
        return shares
    geometry = native.canvas.geometry
    scale = painted.new_tensor(geometry.steps).view(-1, *[1] * len(geometry.steps))
    flow = metrics.flow_shape(geometry.enlarge(rendered.edit.displacement * scale))
    return {"folded": 100 * flow["folded"], "strain": flow["strain"], **shares}


def _steps(native: NativeImages, rendered: NativeCounterfactual) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (rendered.image, rendered.moved), (rendered.moved, native.canvas.image)


def _truth(
    name: str, native: NativeImages, rendered: NativeCounterfactual, truth: NativeCounterfactual, about: DataDescription
) -> dict[str, Tensor]:
    """Distances to the true counterfactual, this answer's and the unchanged image's."""
    image, variable = native.canvas.image, about.parents[name]
    was, wanted = (
        located(each, variable.structure, variable.region, native.masks, about) for each in (native.masks, truth.masks)
    )
    near, edge = (dilate(where, reach(image)) for where in (was | wanted, was ^ wanted))
    found: dict[str, Tensor] = {}
    for end, shown in (("", rendered.image), ("_unchanged", image)):
        for key, error in (("error", shown - truth.image), ("smooth", metrics.gaussian(shown - truth.image, SMOOTH))):
            found[f"{key}{end}"] = error.abs().flatten(1).mean(1)
            found[f"{key}_near{end}"] = metrics.masked_mean(error.abs().mean(1), near)
        found[f"edge_error{end}"] = metrics.edge_error(shown, truth.image, edge)
    return found


def _medians(asked: Interventions) -> dict[str, list[int]]:
    """Variable -> places of the subjects with the median request to shrink and to grow."""
    chosen = {}
    for name, target in asked.do.items():
        more = target - asked.values[name]
        ordered = [_ordered(more, kind) for kind in (more < 0, more > 0)]
        chosen[name] = [int(asked.index[places[len(places) // 2]]) for places in ordered if len(places)]
    return chosen


def _ordered(more: Tensor, kind: Tensor) -> Tensor:
    places = kind.nonzero()[:, 0]
    return places[more[places].argsort()]


def _pictures(
    native: NativeImages,
    tiles: Mapping[str, Mapping[str, Tensor]],
    chosen: Mapping[str, list[int]],
    about: DataDescription,
) -> list[dict[str, Any]]:
    found = []
    for name, images in tiles.items():
        for place, index in enumerate(native.asked.index.tolist()):
            if index not in chosen[name]:
                continue
            numbers = (float(native.asked.values[name][place]), float(native.asked.do[name][place]))
            before, target = (about.parents[name].shown(value) for value in numbers)
            text = f"{name}, subject {index}: factual {before}, asked {target}"
            planes = {label: _plane(image[place]) for label, image in images.items()}
            found.append({"do": name, "subject": index, "text": text, "tiles": planes})
    return found


def _plane(image: Tensor) -> npt.NDArray[np.uint8]:
    """(C, *N) in [-1, 1] -> (H, W); a volume shows its middle slice."""
    flat = image[0] if image.dim() == 3 else image[0, image.shape[1] // 2]
    levels: npt.NDArray[np.uint8] = ((flat.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    return levels
