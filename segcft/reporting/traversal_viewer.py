"""Sweeps to step through: a slider moves every method's film at once."""

from html import escape
from typing import Any

import numpy as np

from segcft.core.formatting import quantity, resolving
from segcft.evaluation.traversal_file import Sweeps
from segcft.plots.panels import COLOURS
from segcft.reporting.html import label, png
from segcft.reporting.load_results import TRUTH

LIMIT = 0.8  # of the image's range of 2: where the colours of a difference end
LEVELS = 127  # colours of a difference


def viewer(sweeps: Sweeps, methods: list[str]) -> str:
    """Films of every subject and variable, the sparse controls above them.

    Args:
        sweeps: What ``segcft evaluate`` kept.
        methods: In the order to show them; others are left out.
    """
    count = sweeps.targets.shape[1]
    blocks = [_block(sweeps, methods, v, n) for n in range(len(sweeps.subjects)) for v in range(len(sweeps.variables))]
    subjects = _buttons("subject", [f"subject {int(one)}" for one in sweeps.subjects])
    asked = _buttons("variable", [label(str(name)) for name in sweeps.variables])
    legend = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{label(str(name))}</span>'
        for name, colour in zip(sweeps.structures, COLOURS, strict=False)
    )
    return (
        f'<div class="viewer" data-steps="{count}"><div class="controls">{subjects}{asked}'
        f'<label class="slide">asked value <input type="range" min="0" max="{count - 1}" value="{count - 1}" '
        'aria-label="asked value"></label><button class="play" type="button">play</button>'
        '<label><input type="checkbox" class="outlined" checked> outlines</label></div>'
        f'{"".join(blocks)}<p class="legend">{legend}<span class="key scale">darker<i></i>brighter</span>'
        "outlines by the evaluator; below each image its change</p></div>"
    )


def _buttons(kind: str, names: list[str]) -> str:
    every = "".join(
        f'<button type="button" data-{kind}="{place}" aria-pressed="{"true" if not place else "false"}">{name}</button>'
        for place, name in enumerate(names)
    )
    return f'<span class="group">{every}</span>'


def _block(sweeps: Sweeps, methods: list[str], v: int, n: int) -> str:
    """One subject and variable: factual image, then every method's film and its change."""
    unit, factual = str(sweeps.units[v]), sweeps.factual[n]
    targets, last = sweeps.targets[v], sweeps.targets.shape[1] - 1
    digits = resolving(float(np.ptp(targets)))
    known = [str(name) for name in sweeps.methods]
    shown = [name for name in (TRUTH, *methods) if name in known]
    still = _film([factual], [sweeps.factual_outlines[n]])
    before = quantity(float(sweeps.values[v, n]), unit, digits)
    cells = [f'<figure class="cell">{still}<div class="blank"></div><figcaption>factual<small>{escape(before)}</small>'
             "</figcaption></figure>"]  # fmt: skip
    for name in shown:
        m = known.index(name)
        frames = sweeps.frames[m, v, n]
        texts = [quantity(float(value), unit, digits) for value in sweeps.measured[m, v, n]]
        cells.append(
            f'<figure class="cell">{_film(list(frames), list(sweeps.outlines[m, v, n]))}{_changes(frames, factual)}'
            f"<figcaption>{label(name)}{_told(texts, last)}</figcaption></figure>"
        )
    asked = [quantity(float(value), unit, digits) for value in targets]
    style = f"--step:{last};--count:{len(targets)}"
    hidden = "" if not v and not n else " hidden"
    return (
        f'<div class="block" data-subject="{n}" data-variable="{v}" style="{style}"{hidden}>'
        f"<p>do({label(str(sweeps.variables[v]))}) = {_told(asked, last, 'b')}, from {escape(before)}; below each name "
        f'what the evaluator measures</p><div class="cells">{"".join(cells)}</div></div>'
    )


def _told(texts: list[str], last: int, tag: str = "small") -> str:
    return f'<{tag} data-texts="{escape("|".join(texts))}">{escape(texts[last])}</{tag}>'


def _film(frames: list[Any], outlines: list[Any]) -> str:
    """Frames side by side, of which a window shows one, under their outlines."""
    high, wide = frames[0].shape
    paths = "".join(
        f'<path d="{_contours([o[k] for o in outlines], wide)}" style="stroke:{colour}"/>'
        for k, colour in zip(range(len(outlines[0])), COLOURS, strict=False)
    )
    many = ' class="film"' if len(frames) > 1 else ""
    return (
        f'<div class="window" style="aspect-ratio:{wide}/{high}"><div{many} style="width:{100 * len(frames)}%">'
        f'<img src="{png(np.concatenate(frames, axis=1))}" alt="">'
        f'<svg viewBox="0 0 {wide * len(frames)} {high}" preserveAspectRatio="none">{paths}</svg></div></div>'
    )


def _changes(frames: Any, factual: Any) -> str:
    """Signed differences in colours, side by side."""
    change = (frames.astype(np.float64) - factual.astype(np.float64)) / 127.5
    places = np.rint((np.clip(change / LIMIT, -1, 1) + 1) / 2 * (LEVELS - 1)).astype(np.uint8)
    high, wide = factual.shape
    return (
        f'<div class="window" style="aspect-ratio:{wide}/{high}"><div class="film" style="width:{100 * len(frames)}%">'
        f'<img src="{png(np.concatenate(list(places), axis=1), _palette())}" alt=""></div></div>'
    )


def _palette() -> bytes:
    """Blue over white to red, as in the figures."""
    from matplotlib import colormaps  # lazily: slow to import

    colours = np.rint(255 * colormaps["RdBu_r"](np.linspace(0, 1, LEVELS))[:, :3]).astype(np.uint8)
    return bytes(colours.tobytes())


def _contours(masks: list[Any], wide: int) -> str:
    """Half-way contours of probabilities 0 to 255 (H, W) each, as a path over all frames."""
    from contourpy import contour_generator  # lazily: comes with matplotlib

    found = []
    for place, mask in enumerate(masks):
        for line in contour_generator(z=mask.astype(np.float64)).lines(127.5):
            points = np.asarray(line) + np.array([0.5 + wide * place, 0.5])
            found.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points))
    return "".join(found)
