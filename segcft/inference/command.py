"""``segcft counterfactual``: what would these files look like, had something been so?

Flow: options -> plan (model, questions, files, parents; every wrong request stops here) -> file by file: read, frame,
answer, write -> one table of numbers, and what failed.
"""

import sys
import warnings
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import pandas as pd
import torch

from segcft.core.atomic_files import write_text
from segcft.core.devices import device
from segcft.core.formatting import meant
from segcft.core.parsing import PlainParser
from segcft.counterfactual.model import CounterfactualModel
from segcft.inference.answer_file import Plan, Row, answer_file
from segcft.inference.file_geometry import Framing
from segcft.io.csv_tables import bad_cell, header, read_table, refuse
from segcft.io.readers import is_dicom, is_picture, read_picture
from segcft.io.writers import mask_path
from segcft.variables.requests import once, parse, sweep


def counterfactual(arguments: list[str]) -> int:
    """Run the command; 0, or 1 if a file could not be answered.

    Raises:
        ValueError: If a request, a parent, a table or the checkpoint is wrong: nothing was written then.
    """
    options = parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom\.")  # they quote tags, which may name patients
        return _answer(plan(options))


def _answer(job: Plan) -> int:
    """Answer every file, write the tables and report; 1 if a file failed."""
    rows: list[Row] = []
    failures: dict[Path, str] = {}
    for file in _progress(job.files):
        try:
            rows += answer_file(job, file)
        except (ValueError, OSError, MemoryError) as error:
            failures[file] = str(error)
    out = Path(job.options.out)
    if rows:
        write_text(out / "answers.csv", pd.DataFrame(rows).to_csv(index=False))
        if job.options.manifest:
            write_text(out / "manifest.csv", manifest(job, rows).to_csv(index=False))
    _report(job, rows, failures)
    return 1 if failures else 0


def plan(options: Namespace) -> Plan:
    """See that everything asked for makes sense.

    Raises:
        ValueError: If it does not.
    """
    place = device(options.device)
    model = CounterfactualModel.load(options.checkpoint).to(place)
    fixed = once([parse(text, model.parents) for text in options.do])
    steps = sweep(options.sweep, model.parents) if options.sweep else []
    if not fixed and not steps:
        raise ValueError(f"nothing is asked: give --do or --sweep; this model knows {', '.join(model.parents.names)}")
    questions = [once([*fixed.values(), step]) for step in steps] or [fixed]
    for request in fixed.values():
        if request.kind == "value":
            model.parents.check({request.name: torch.tensor([request.number])}, options.strict)
    if options.manifest and model.segmentor is None:
        raise ValueError(f"--manifest: {options.checkpoint} holds no segmentor to draw the masks")
    if (options.corrections or options.confined) and model.segmentor is None:
        raise ValueError(f"--corrections, --confined: {options.checkpoint} holds no segmentor to refine answers by")
    if options.samples < 1:
        raise ValueError(f"--samples {options.samples}: at least one is needed")
    if options.window and not options.window[0] < options.window[1]:
        raise ValueError(f"--window {options.window[0]:g} {options.window[1]:g}: black must lie below white")
    files = find_files(Path(options.image), Path(options.out), options.keep_identity)
    parents = _parents(options, model, list(files))
    return Plan(model, questions, files, parents, options, tuple(options.window) if options.window else None)


def find_files(image: Path, out: Path, named: bool = False) -> dict[Path, Path]:
    """The file, or every image below the folder but what lies in ``out``, each with a folder of its own there.

    Files without an image (DICOMDIR, reports, presentation states, other formats) are left out, and counted on
    standard error.

    Args:
        image: The file or folder.
        out: Folder of the answers.
        named: Name the folders after the files, which may name patients, instead of numbering them as ``numbered``.

    Raises:
        ValueError: If there is none.
    """
    if image.is_file():
        return {image: out / image.name} if named else numbered([image], out)
    written = out.resolve()
    found = [path for path in sorted(image.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    found = [path for path in found if written not in path.resolve().parents]
    files = [path for path in found if is_picture(path)]
    _say_skipped(set(found) - set(files))
    if not files:
        raise ValueError(f"{image}: no image here" if image.is_dir() else f"no image at {image}")
    return {path: out / path.relative_to(image) for path in files} if named else numbered(files, out)


def _say_skipped(files: set[Path]) -> None:
    dicoms = {path for path in files if is_dicom(path)}
    if dicoms:
        print(f"skipped: {len(dicoms)} DICOM files without an image (DICOMDIR, reports and the like)", file=sys.stderr)
    if others := files - dicoms:
        kinds = ", ".join(sorted({path.suffix.lower() or "no suffix" for path in others}))
        print(f"skipped: {len(others)} files of other formats ({kinds})", file=sys.stderr)


def numbered(files: list[Path], out: Path) -> dict[Path, Path]:
    """A numbered folder in ``out`` for each file: the one of its last answers, or one that does not exist yet."""
    known: dict[Path, str] = {}
    if (out / "answers.csv").is_file():
        table = read_table(out / "answers.csv", ["image", "counterfactual"])
        for image, answer in zip(table["image"].astype(str), table["counterfactual"].astype(str), strict=True):
            if Path(answer).parts[0].isdigit():
                known[Path(image).resolve()] = Path(answer).parts[0]
    taken = [int(folder.name) for folder in out.glob("*") if folder.name.isdigit()]
    free = count(max(taken, default=0) + 1)
    return {path: out / (known.get(path.resolve()) or f"{next(free):04d}") for path in files}


def manifest(job: Plan, rows: list[Row]) -> pd.DataFrame:
    """Counterfactuals as a data set of ``data_modules.folder``; those of one image are one patient's.

    Areas are left out: that data set measures them in the masks.
    """
    model = job.model
    assert model.segmentor is not None  # the plan has seen to it
    columns: dict[str, Row] = {}
    for row in rows:
        path = Path(row["counterfactual"])
        entry = columns.setdefault(row["counterfactual"], {"image": path.as_posix(), "patient": path.parent.as_posix()})
        for name in model.segmentor.description.structures:
            entry[f"mask_{name}"] = mask_path(path, name).as_posix()
        if row["variable"] not in model.parents.structural:
            sex = row["variable"] == "sex" and row["target"] in (0, 1)
            entry[row["variable"]] = "FM"[int(row["target"])] if sex else row["target"]
    return pd.DataFrame(columns.values())


def _parents(options: Namespace, model: CounterfactualModel, files: list[Path]) -> dict[Path, dict[str, float]]:
    """What the user says about each file; one file's own row overrules ``--parent``."""
    common = {}
    for name, request in once([parse(text, model.parents) for text in options.parent]).items():
        if request.kind != "value":
            raise ValueError(f"--parent {request.text!r}: a factual value has no sign or %")
        common[name] = request.number
    table = _table(Path(options.parents), model, {file.resolve() for file in files}) if options.parents else {}
    found = {file: {**common, **table.get(file.resolve(), {})} for file in files}
    _refuse_lacking(options, model, found)
    return found


def _refuse_lacking(options: Namespace, model: CounterfactualModel, parents: dict[Path, dict[str, float]]) -> None:
    """See that the values that nothing can measure are known of some file.

    Raises:
        ValueError: Naming all that lack, and what else the first file lacks, such as its spacing.
    """
    hidden = [name for name in model.hidden if not any(name in values for values in parents.values())]
    if not hidden:
        return
    lacking = [f"factual {', '.join(hidden)} cannot be measured: give --parent {hidden[0]}=... or --parents"]
    try:
        picture = read_picture(file := next(iter(parents)), tuple(options.window) if options.window else None)
        Framing.of(picture, model, None, options.spacing)
    except ValueError as error:
        lacking.append(f"{file}: {error}".replace(f"{file}: {file}", str(file)))
    raise ValueError("; ".join(lacking))


def _table(path: Path, model: CounterfactualModel, files: set[Path]) -> dict[Path, dict[str, float]]:
    """Rows of ``--parents``: column ``image``, relative to the table, and variables; blank is unknown.

    Raises:
        ValueError: Naming row, field and value, if a row's image is none of the files or occurs twice, a column is no
            variable, or a cell is no value of its variable.
    """
    foreign = [name for name in header(path) if name != "image" and name not in model.parents.names]
    if foreign:
        near = meant(foreign[0], model.parents.names)
        raise ValueError(f"{path}: column {foreign[0]!r} is no variable of this model{near}")
    frame = read_table(path, ["image"], model.parents.names)
    named = frame["image"].map(lambda cell: (path.parent / str(cell)).resolve())
    refuse(frame, "image", path, ~named.isin(files).to_numpy(), "this is none of the files that are asked about")
    refuse(frame, "image", path, named.duplicated().to_numpy(), "this image occurs twice")
    result = {}
    for number, record in zip(frame.index, frame.to_dict("records"), strict=True):
        cells = {str(name): cell for name, cell in record.items() if name != "image" and isinstance(cell, str)}
        values = {}
        for name, cell in cells.items():
            try:
                values[name] = parse(f"{name}=={cell}" if _continuous(model, name) else f"{name}={cell}", model.parents)
            except ValueError as error:
                raise bad_cell(path, int(number), name, cell, str(error)) from error
        result[named[number]] = {n: value.number for n, value in values.items()}
    return result


def _continuous(model: CounterfactualModel, name: str) -> bool:
    return model.parents[name].kind == "continuous"


def _progress(files: Iterable[Path]) -> Iterable[Path]:
    from rich.console import Console  # lazily: slow to import
    from rich.progress import track

    console = Console(stderr=True)
    return track(list(files), "counterfactual", console=console, disable=not console.is_terminal)


def _report(job: Plan, rows: list[Row], failures: dict[Path, str]) -> None:
    answered = len(job.files) - len(failures)
    doubtful = len({row["counterfactual"] for row in rows if row["warning"]})
    print(f"{answered} of {len(job.files)} files answered: {job.options.out}")
    if doubtful:
        print(
            f"{doubtful} answers are doubtful, leave the training range or miss their target: see answers.csv",
            file=sys.stderr,
        )
    for file, reason in failures.items():
        print(f"failed: {file}: {reason}", file=sys.stderr)


def parser() -> ArgumentParser:
    """Options of the command."""
    made = PlainParser("counterfactual", "Counterfactuals of image files.")
    add = made.add_argument
    add(
        "--checkpoint",
        required=True,
        help="or bundle; of pretraining or fine-tuning; Seg-CFT's holds the segmentor that measures",
    )
    add("--image", required=True, help="PNG, JPEG, DICOM or NIfTI, or a folder of such")
    add(
        "--out",
        required=True,
        help="folder; every image gets a numbered one there; answers.csv says which, and what was measured",
    )
    ask = "NAME=+20%% (of the factual value), NAME=+5 (a change), NAME=5 (a value; ==-5 if negative); repeat: jointly"
    add("--do", action="append", default=[], metavar="NAME=VALUE", help=ask)
    add("--sweep", metavar="NAME=FROM:TO:COUNT", help="factors of the factual value, 0.8:1.2:9; strip and animation")
    add("--effect", choices=("total", "direct"), default="total", help="direct: descendants keep their factual values")
    add("--samples", type=int, default=1, help="particles of the posterior: their mean, and deviation in the panel")
    add("--temperature", type=float, help="of the latents; default 1, or 0 of a single sample")
    again = "times to measure an answer by the segmentor and ask again for what is missing; default 2, or 0 without one"
    add("--corrections", type=int, help=again)
    beyond = (
        "leave the image beyond the structures that move as it is, by the segmentor's masks; default with a segmentor"
    )
    add("--confined", action=BooleanOptionalAction, help=beyond)
    add("--parent", action="append", default=[], metavar="NAME=VALUE", help="factual value, for every file")
    add("--parents", metavar="CSV", help="factual values: column image, relative to the table, and variables")
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="levels as in training; needed above 8 bits")
    add("--spacing", type=float, nargs="+", metavar="MM", help="of a pixel, for files that do not say it")
    add("--strict", action="store_true", help="refuse targets outside the training range instead of warning")
    add("--manifest", action="store_true", help="also masks by the segmentor and manifest.csv, to train on the answers")
    add(
        "--keep-identity",
        action="store_true",
        help="keep DICOM tags, NIfTI and PNG text and the names of files, which may name patients",
    )
    add("--device", default="cpu", help="cpu, cuda or mps")
    return made
