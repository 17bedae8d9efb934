"""``segcft figure``: a panel for a paper, from the pictures that an evaluation kept."""

import sys
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segcft.core.atomic_files import staged
from segcft.core.formatting import number, printed_unit, question
from segcft.evaluation.traversal_file import FILE, Sweeps
from segcft.plots.panels import COLOURS
from segcft.reporting.html import MINUS, plain
from segcft.reporting.load_results import TRUTH, read

LIMIT = 40  # % of the grey range: where the colours of a difference end
WIDEST = 10  # inches that a page may hold
CELL = 1.25  # inches
ENDINGS = (".pdf", ".svg", ".png")


class Row(NamedTuple):
    """Places of a subject, a variable and a step in the sweeps."""

    subject: int
    variable: int
    step: int


def figure(
    results: str,
    out: str = "figure.pdf",
    methods: list[str] | None = None,
    variables: list[str] | None = None,
    subjects: int = 1,
    steps: list[int] | None = None,
    dpi: int = 300,
) -> Path:
    """Rows of interventions; factual image, then counterfactual and change of every method, with what is measured.

    Args:
        results: Folder that ``segcft evaluate`` or ``segcft study`` wrote.
        out: File to write: .pdf, .svg or .png.
        methods: Columns, in this order; all unless given. The true counterfactual comes first where it is known.
        variables: Rows; all unless given.
        subjects: Number of subjects, of those that were kept.
        steps: Which of the seven asked values, from 0; the least and the greatest unless given, if they change
            anything.
        dpi: Of a PNG, and of the images inside the others.

    Raises:
        ValueError: If the folder holds no such pictures, or the file has another ending.
    """
    path = Path(out).expanduser()
    if path.suffix not in ENDINGS:
        raise ValueError(f"a figure ends in {', '.join(ENDINGS)}, not {out}")
    run = read(Path(results).expanduser())
    if run.sweeps is None:
        raise ValueError(f"{results} holds no {FILE}, the pictures of a figure: run segcft evaluate with --sweeps=3")
    columns = _columns(run.sweeps, methods or run.methods)
    drawn = draw(run.sweeps, columns, _rows(run.sweeps, variables, subjects, steps))
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(drawn, path, dpi)
    if (wide := drawn.get_figwidth()) > WIDEST:
        shown = ", ".join(columns)
        print(f"{path} is {2.54 * wide:.0f} cm wide: for a page choose among --methods {shown}", file=sys.stderr)
    return path


def _columns(sweeps: Sweeps, methods: list[str]) -> list[str]:
    known = [str(name) for name in sweeps.methods]
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise ValueError(f"no pictures of {', '.join(unknown)}; there are {', '.join(known)}")
    return [*([TRUTH] if TRUTH in known and TRUTH not in methods else []), *methods]


def _rows(sweeps: Sweeps, variables: list[str] | None, subjects: int, steps: list[int] | None) -> list[Row]:
    known, count = [str(name) for name in sweeps.variables], sweeps.targets.shape[1]
    unknown = [name for name in variables or [] if name not in known]
    if unknown:
        raise ValueError(f"no pictures of {', '.join(unknown)}; there are {', '.join(known)}")
    if not 1 <= subjects <= len(sweeps.subjects):
        raise ValueError(f"subjects = {subjects}: pictures of {len(sweeps.subjects)} were kept")
    if steps is not None and not (steps and all(0 <= step < count for step in steps)):
        raise ValueError(f"steps = {steps}: they go from 0 to {count - 1}")
    rows = []
    for subject, name in product(range(subjects), variables or known):
        place = known.index(name)
        rows += [Row(subject, place, step) for step in steps or _ends(sweeps, place, subject)]
    return rows


def _ends(sweeps: Sweeps, variable: int, subject: int) -> list[int]:
    """The least and the greatest step, without one that asks for next to nothing."""
    targets, value = sweeps.targets[variable], float(sweeps.values[variable, subject])
    return [step for step in (0, len(targets) - 1) if abs(targets[step] - value) >= 0.1 * abs(targets[-1] - targets[0])]


def draw(sweeps: Sweeps, columns: list[str], rows: list[Row]) -> Any:
    """The panel as a matplotlib figure, drawn without a display."""
    from matplotlib.figure import Figure  # lazily: slow to import

    high, wide = sweeps.factual.shape[1:]
    tall = CELL * min(high / wide, 1.8) + 0.2
    size = (CELL * (1 + 2 * len(columns)) + 1.1, tall * len(rows) + 0.75)
    panel = Figure(figsize=size, layout="constrained")
    panel.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0.005, hspace=0.005)  # type: ignore[union-attr, call-arg]
    axes = panel.subplots(len(rows), 1 + 2 * len(columns), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_linewidth(0.4)
    for line, row in zip(axes, rows, strict=True):
        shown = _draw_row(line, sweeps, columns, row)
    axes[0, 0].set_title("factual", fontsize=8)
    for place, name in enumerate(columns):
        axes[0, 1 + 2 * place].set_title(plain(name), fontsize=8)
        axes[0, 2 + 2 * place].set_title("change", fontsize=8, color="#666666")
    bar = panel.colorbar(shown, ax=axes[:, -1], shrink=min(1.0, 2.2 / (tall * len(rows))), aspect=18, pad=0.02)
    bar.set_label("change, % of the grey range", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    _legend(panel, sweeps)
    return panel


def _draw_row(line: Any, sweeps: Sweeps, columns: list[str], row: Row) -> Any:
    """One intervention; returns what the colour bar belongs to."""
    known, unit = [str(name) for name in sweeps.methods], printed_unit(str(sweeps.units[row.variable]))
    target, before = (
        float(sweeps.targets[row.variable, row.step]),
        float(sweeps.values[row.variable, row.subject]),
    )
    factual = sweeps.factual[row.subject]
    _image(line[0], factual, sweeps.factual_outlines[row.subject])
    line[0].set_ylabel(question(str(sweeps.variables[row.variable]), before, target, unit), fontsize=7)
    line[0].set_xlabel(f"subject {int(sweeps.subjects[row.subject])}", fontsize=6.5, labelpad=2, color="#666666")
    for place, name in enumerate(columns):
        at = (known.index(name), row.variable, row.subject, row.step)
        image, change = line[1 + 2 * place], line[2 + 2 * place]
        _image(image, sweeps.frames[at], sweeps.outlines[at])
        difference = (sweeps.frames[at].astype(np.float64) - factual) / 2.55
        shown = change.imshow(difference, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, interpolation="nearest")
        image.set_xlabel(_told(float(sweeps.measured[at]), target), fontsize=6.5, labelpad=2)
    return shown


def _told(measured: float, target: float) -> str:
    """What the evaluator measures, and how far it is from what was asked."""
    if not target:
        return f"measured {number(measured)}"
    away = f"{100 * (measured - target) / abs(target):+.1f}".replace("-", MINUS)
    return f"measured {number(measured)} ({away} %)"


def _image(axis: Any, pixels: Any, outlines: Any) -> None:
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for outline, colour in zip(outlines, COLOURS, strict=False):
        if outline.max() > 127 > outline.min():
            axis.contour(outline, levels=[127.5], colors=[colour], linewidths=0.6)


def _legend(panel: Any, sweeps: Sweeps) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, linewidth=1.2) for colour, _ in zip(COLOURS, sweeps.structures, strict=False)]
    names = [plain(str(name)) for name in sweeps.structures]
    note = "Outlines and measurements by the evaluator. All but the factual images are synthetic."
    legend = {"title": note, "title_fontsize": 7, "fontsize": 7, "ncols": len(lines), "frameon": False}
    panel.legend(lines, names, loc="outside lower center", **legend)


def _save(panel: Any, path: Path, dpi: int) -> None:
    """Whole or not at all; without a date, so that equal results give equal files."""
    from matplotlib import rc_context

    dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "segcft"}), staged(path) as temporary:
        panel.savefig(temporary, format=path.suffix[1:], dpi=dpi, metadata=dates[path.suffix])
