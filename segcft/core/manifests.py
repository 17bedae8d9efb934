"""Manifests: a folder's list of its files with size and SHA-256, verified before any of them is opened."""

import json
from pathlib import Path
from typing import Any

from segcft.core.atomic_files import digest

MANIFEST = "MANIFEST.json"
FORMAT = 1


def write(folder: Path) -> None:
    """List every file of a flat folder in ``MANIFEST.json``."""
    files = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n", encoding="utf-8")


def verified(folder: Path, name: str) -> Path:
    """Path of the file ``name``, after checking that the folder matches its manifest exactly.

    Raises:
        ValueError: If the manifest cannot be read or names something outside the folder; if a file is missing, extra or
            changed; or if ``name`` is not listed.
    """
    listed = _listed(folder)
    outside = [each for each in listed if each in ("", ".", "..", MANIFEST) or set(each) & set("/\\:\0")]
    if outside:
        raise ValueError(f"{folder / MANIFEST} names {outside[0]!r}, which is not a file of this folder")
    found = {path.name for path in folder.iterdir()} - {MANIFEST}
    for each in sorted({*listed, *found, name}):
        reason = _wrong(folder / each, listed.get(each))
        if reason:
            raise ValueError(f"{folder / each} {reason}: the bundle is damaged or was changed")
    return folder / name


def _wrong(path: Path, listed: Any) -> str:
    """The reason why a file does not match its entry; empty if it matches."""
    if listed is None:
        return f"is not listed in {MANIFEST}"
    if path.is_symlink() or not path.is_file():
        return "is no plain file" if path.exists() else "is missing"
    return "" if _facts(path) == listed else f"does not have the size and SHA-256 that {MANIFEST} lists"


def _listed(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} is a folder without {MANIFEST}: give a checkpoint, or what `segcft export` wrote")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"it has format {manifest['format']}, this segcft reads format {FORMAT}")
        files: dict[str, Any] = dict(manifest["files"].items())
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return files


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": digest(path)}
