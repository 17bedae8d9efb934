"""Manifests of coronary CT angiography with one row per vessel: reading, and creation for ImageCAS and ASOCA."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data_modules.common.splits import SPLITS, hashed_splits, normalised, refuse_shared
from data_modules.coronary.files import CENTRELINE_SUFFIXES
from segcft.io.csv_tables import header, numbers, read_columns, refuse, refuse_outside

FILES = ["image", "label", "centerline"]
SEXES = {"f": 0.0, "female": 0.0, "0": 0.0, "m": 1.0, "male": 1.0, "1": 1.0}


def read_manifest(
    path: Path, attributes: Sequence[str] = (), seed: int = 0, allow_outside: bool = False
) -> pd.DataFrame:
    """Read a manifest: columns ``image``, ``label``, ``centerline`` (paths relative to it), ``patient_id``, ``vessel``.

    An optional ``split`` is train, val, test or blank; patients whose rows are all blank are assigned 80/10/10 by a
    hash of (seed, patient). Optional ``age`` and ``sex`` (F or M, female or male, 0 or 1) may be blank.

    Args:
        path: The CSV.
        attributes: Further numeric columns, which may be blank.
        seed: Seed of the split.
        allow_outside: Accept files outside the manifest's folder.

    Returns:
        One row per vessel, indexed by the row in the file: ``id``, ``patient``, ``vessel``, ``split``, the paths
        ``image``, ``label``, ``centerline``, ``origin`` (for messages), and the attributes as numbers.

    Raises:
        ValueError: If a cell is invalid, naming file, row, field and value.
    """
    known = header(path)
    optional = [name for name in ("split", "age", "sex") if name in known]
    columns = list(dict.fromkeys([*FILES, "patient_id", "vessel", *optional, *attributes]))
    frame = pd.concat([pd.DataFrame(columns=columns), *read_columns(path, columns)])
    if frame.empty:
        raise ValueError(f"{path}: no rows")
    for name in (*FILES, "patient_id", "vessel"):
        refuse(frame, name, path, frame[name].isna().to_numpy(), "this cell is blank")
    table = pd.DataFrame(index=frame.index)
    table["id"] = frame["patient_id"] + "_" + frame["vessel"]
    refuse(frame, "vessel", path, table["id"].duplicated().to_numpy(), "this vessel of this patient occurs twice")
    table["patient"], table["vessel"] = frame["patient_id"], frame["vessel"]
    table["split"] = _splits(frame, path, seed)
    for name in FILES:
        if not allow_outside:
            refuse_outside(frame, name, path, path.parent)
        paths = [path.parent / cell for cell in frame[name]]
        missing = {here for here in set(paths) if not here.is_file()}
        refuse(frame, name, path, np.array([here in missing for here in paths]), "no such file")
        table[name] = [str(here) for here in paths]
    table["origin"] = f"{path}, row " + frame.index.astype(str) + ", image = '" + frame["image"] + "'"
    refuse_shared(table)
    for name in [*optional, *attributes]:
        if name != "split":
            table[name] = _sexes(frame, path) if name == "sex" else numbers(frame, name, path, blank=True)
    return table


def imagecas_manifest(folder: Path, centrelines: Path, out: Path) -> Path:
    """Write a manifest of ImageCAS (Zeng et al., 2023, arXiv:2211.01607): ``<id>.img.nii.gz``, ``<id>.label.nii.gz``.

    ImageCAS has no centrelines, which are needed to straighten vessels: trace them first. Its labels contain the artery
    only (1), not its plaques.

    Args:
        folder: Folder of the images, at any depth.
        centrelines: Folder with ``<id>_<vessel>.csv`` or ``<id>/<vessel>.csv``, or ``.swc``, ``.txt``, ``.vtp``.
        out: The CSV to write.

    Returns:
        ``out``.

    Raises:
        ValueError: If there is no image, an image has no label map, or no centreline is found.
    """
    images = sorted(folder.rglob("*.img.nii.gz"))
    cases = [(image.name.removesuffix(".img.nii.gz"), image) for image in images]
    rows = [
        {"image": image, "label": image.with_name(f"{case}.label.nii.gz"), "centerline": line, "patient_id": case,
         "vessel": vessel}
        for case, image in cases
        for vessel, line in _vessels(centrelines, case)
    ]  # fmt: skip
    return _write(rows, out, f"{len(images)} images under {folder}, centrelines under {centrelines}")


def asoca_manifest(folder: Path, out: Path, centrelines: str = "Centerlines") -> Path:
    """Write a manifest of ASOCA (Gharleghi et al., 2022): ``{Diseased,Normal}/{CTCA,Annotations}/<id>.nrrd``.

    The column ``diseased`` is 1 or 0. Its labels contain the lumen only (1). Cases without centrelines are skipped.

    Args:
        folder: Folder with ``Diseased`` and ``Normal``.
        out: The CSV to write.
        centrelines: Folder next to ``CTCA`` with ``<id>_<vessel>.vtp`` or ``<id>/<vessel>.vtp``, or ``.csv``,
            ``.swc``, ``.txt``; one vessel a file.

    Returns:
        ``out``.

    Raises:
        ValueError: As ``imagecas_manifest``.
    """
    images = sorted(folder.glob("Diseased/CTCA/*.nrrd")) + sorted(folder.glob("Normal/CTCA/*.nrrd"))
    rows = [
        {"image": image, "label": group / "Annotations" / image.name, "centerline": line,
         "patient_id": image.stem if image.stem.startswith(group.name) else f"{group.name}_{image.stem}",
         "vessel": vessel, "diseased": int(group.name == "Diseased")}
        for image in images
        for group in [image.parents[1]]
        for vessel, line in _vessels(group / centrelines, image.stem)
    ]  # fmt: skip
    return _write(rows, out, f"{len(images)} images under {folder}, centrelines in its folders {centrelines}")


def _vessels(folder: Path, case: str) -> Iterator[tuple[str, Path]]:
    """Names of a case's vessels and their files."""
    for path in sorted([*folder.glob(f"{case}[_-]*"), *folder.glob(f"{case}/*"), *folder.glob(f"{case}.*")]):
        if path.suffix in CENTRELINE_SUFFIXES:
            name = path.stem if path.parent != folder else path.stem.removeprefix(case)
            yield re.sub(r"^[_-]+", "", name) or "vessel", path


def _write(rows: list[dict[str, object]], out: Path, searched: str) -> Path:
    if not rows:
        raise ValueError(f"{searched}: no vessel with a centreline was found")
    for row in rows:
        if not Path(str(row["label"])).is_file():
            raise ValueError(f"{row['image']}: its label map {row['label']} does not exist")
    table = pd.DataFrame(rows)
    for name in FILES:
        table[name] = [os.path.relpath(path, out.parent) for path in table[name]]
    table.insert(5, "split", "")
    table.to_csv(out, index=False)
    return out


def _splits(frame: pd.DataFrame, path: Path, seed: int) -> list[str]:
    given = frame["split"] if "split" in frame else pd.Series(np.nan, frame.index, dtype=object)
    known = given.notna().to_numpy()
    if known.any():
        refuse(frame, "split", path, known & ~given.isin(SPLITS).to_numpy(), f"{', '.join(SPLITS)} or blank")
    people = frame["patient_id"].map(normalised)
    chosen = dict(zip(people[known], given[known], strict=True))
    hashed = hashed_splits(frame["patient_id"], seed)
    cells = zip(known, given, people, hashed, strict=True)
    return [split if said else chosen.get(patient, other) for said, split, patient, other in cells]


def _sexes(frame: pd.DataFrame, path: Path) -> "pd.Series[float]":
    sexes = frame["sex"].str.strip().str.lower().map(SEXES)
    refuse(frame, "sex", path, (sexes.isna() & frame["sex"].notna()).to_numpy(), "F, M or blank")
    return sexes
