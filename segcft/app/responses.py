"""What the page is told, as JSON: models, opened images, and answers with their pictures."""

import base64
import math
from typing import Any

from segcft.app import rendering
from segcft.app.downloads import kinds
from segcft.app.opened_image import Reply, Subject
from segcft.app.service import CounterfactualService
from segcft.core.formatting import printed_unit
from segcft.inference.answer_file import busiest, plane
from segcft.io.picture import DICOM, FILMS, NIFTI
from segcft.plots.panels import COLOURS, LIMIT


def describe(service: CounterfactualService, title: str, upload_limit: int) -> dict[str, Any]:
    """Variables, graph and cases."""
    model, graph, depth = service.model, service.graph, dict[str, int]()
    for name, causes in graph.items():
        depth[name] = 1 + max((depth[cause] for cause in causes), default=-1)
    variables = [
        {
            "name": name,
            "kind": variable.kind,
            "unit": printed_unit(variable.unit),
            "decimals": variable.decimals,
            "low": variable.low,
            "high": variable.high,
            "categories": list(variable.categories) or (["0", "1"] if variable.kind == "binary" else []),
            "measured": variable.measured_as,
            "causes": graph[name],
            "depth": depth[name],
        }
        for name, variable in model.parents.variables.items()
    ]
    colours = dict(zip(model.description.structures, COLOURS, strict=False))
    cases = [{"name": name, "picture": _address(thumbnail(service, name))} for name in service.cases]
    return {
        "title": title,
        "variables": variables,
        "colours": colours if model.segmentor is not None else {},
        "cases": cases,
        "needed": model.hidden,
        "kinds": [*FILMS, *DICOM, *NIFTI],
        "upload_limit": upload_limit,
        "limit": LIMIT,
        "frame": list(service.frame),
    }


def thumbnail(service: CounterfactualService, name: str) -> bytes:
    """A case, small, as PNG."""
    image = service.cases[name].image[0, 0].float().numpy()
    flat = plane(image, None if image.ndim == 2 else image.shape[-1] // 2)
    return rendering.small((flat + 1) * 127.5)


def introduce(subject: Subject) -> dict[str, Any]:
    """An opened image, unasked; its pictures come with the first question."""
    values = {name: _finite(value) for name, value in subject.opened.values.items()}
    return {
        "name": subject.name,
        "values": values,
        "given": sorted(subject.opened.given),
        "depth": subject.shown.geometry.shape[-1] if len(subject.shown.geometry.shape) == 3 else 1,
        "downloads": kinds(subject),
        "uploaded": subject.file is not None,
        "reasons": subject.opened.doubts,
        "shape": list(subject.picture.levels.shape),
    }


def show(reply: Reply, index: Any = None, seen: Any = False) -> dict[str, Any]:
    """Pictures and numbers of an answer; of a volume, one slice.

    Args:
        reply: The answer.
        index: Of the slice; the one that changes most unless it is one of the volume's.
        seen: The slice whose factual picture the page has already, None of an image; False if it has none.
    """
    subject, depth = reply.subject, reply.change.shape[-1]
    if not isinstance(index, int) or not 0 <= index < depth or reply.change.ndim == 2:
        index = busiest([reply.change])
    factual, changed = (plane(each, index) for each in (subject.levels, reply.change))
    told = {
        "image": _address(rendering.grey(subject, factual + changed)),
        "change": _address(rendering.change(subject, changed)),
        "size": [factual.shape[1], factual.shape[0]],
        "slice": index,
        "after": rendering.contours(subject, reply.answer.masks, index),
        "rows": [{key: _finite(value) for key, value in row.items()} | _texts(subject, row) for row in reply.rows],
        "reasons": reply.reasons,
        "refined": reply.question.refined,
    }
    if seen is False or seen != index:
        told["factual"] = _address(rendering.grey(subject, factual))
        told["before"] = rendering.contours(subject, subject.opened.masks, index)
    if reply.answer.posterior_deviation is not None:
        deep = subject.enlarge(reply.answer.posterior_deviation)
        limit = max(float(deep.max()), 0.02)
        told["deviation"] = _address(rendering.deviation(subject, plane(deep, index), limit))
        told["deviation_limit"] = limit / 2  # share of the window
    return told


def _texts(subject: Subject, row: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Values of a row for people, without their unit."""
    shown = subject.opened.model.parents[row["variable"]].shown
    values = {key: row[key] for key in ("factual", "target", "measured")}
    return {"texts": {key: "–" if value is None else shown(value, unit=False) for key, value in values.items()}}  # noqa: RUF001


def _finite(value: Any) -> Any:
    """Numbers as JSON knows them."""
    if isinstance(value, str | bool) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _address(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
