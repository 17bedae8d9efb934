"""An answer to keep: PNG, NIfTI, DICOM of a DICOM, and a table."""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from PIL import Image

from segcft.app.opened_image import Levels, Reply, Subject
from segcft.inference.answer_file import busiest, note, plane
from segcft.io.picture import NIFTI
from segcft.io.writers import suffix


def kinds(subject: Subject) -> list[str]:
    """What an answer about this subject can be downloaded as."""
    dicom = subject.file is not None and suffix(subject.file) == ".dcm"
    return ["png", "nifti", *(["dicom"] if dicom else []), "csv"]


def download(reply: Reply, kind: str) -> tuple[str, bytes]:
    """Name and content of a file.

    An upload, asked for in its own kind, comes back on its own grid and depth, as of ``segcft counterfactual``.

    Raises:
        ValueError: If there is no such kind of this subject, or the file cannot hold the change.
    """
    makers: dict[str, Callable[[Reply], tuple[str, bytes]]] = {
        "png": _png, "nifti": _nifti, "dicom": _own, "csv": _csv
    }  # fmt: skip
    if kind not in kinds(reply.subject):
        raise ValueError(f"{kind!r} is none of {', '.join(kinds(reply.subject))}")
    end, content = makers[kind](reply)
    return f"counterfactual{end}", content  # a file's own name may name its patient


def _png(reply: Reply) -> tuple[str, bytes]:
    """An uploaded film as it was, changed; else 8 bits of the window, of a volume the slice that changes most."""
    if reply.subject.file is not None and suffix(reply.subject.file) == ".png":
        return _own(reply)
    from PIL.PngImagePlugin import PngInfo

    low, high = reply.subject.framing.window
    drawn = 255 * (plane(_changed(reply), _slice(reply)) - low) / (high - low)
    about = PngInfo()
    about.add_text("Description", _note(reply))
    with tempfile.SpooledTemporaryFile() as file:
        Image.fromarray(np.rint(drawn).clip(0, 255).astype(np.uint8)).save(file, format="PNG", pnginfo=about)
        file.seek(0)
        return ".png", file.read()


def _nifti(reply: Reply) -> tuple[str, bytes]:
    """The file itself, changed; of another kind, its grey levels as float32."""
    subject = reply.subject
    if subject.file is not None and suffix(subject.file) in NIFTI:
        return _own(reply)
    about = subject.opened.model.description
    levels, steps = _changed(reply), list(subject.picture.spacing or about.spacing)
    if levels.ndim == 2:  # as ``nifti.shown`` turns them, back
        levels, steps = levels.T[::-1, ::-1, None], [*steps[::-1], 1.0]
    image = nibabel.Nifti1Image(np.ascontiguousarray(levels), np.diag([*steps, 1.0]))
    image.header["descrip"] = _note(reply).encode()[:79]
    return ".nii.gz", gzip.compress(image.to_bytes(), mtime=0)


def _own(reply: Reply) -> tuple[str, bytes]:
    """A file of the kind that was uploaded."""
    subject = reply.subject
    assert subject.file is not None
    assert subject.decoders is not None
    change = subject.change(reply.answer)
    with tempfile.TemporaryDirectory(prefix="segcft-") as folder:
        target = Path(folder) / f"answer{suffix(subject.file)}"
        subject.decoders.write_changed(subject.file, change, target, subject.window, _note(reply))
        return suffix(subject.file), target.read_bytes()


def _note(reply: Reply) -> str:
    return note(reply.question.text, reply.subject.opened)


def _csv(reply: Reply) -> tuple[str, bytes]:
    return ".csv", pd.DataFrame(reply.rows).to_csv(index=False).encode()


def _changed(reply: Reply) -> Levels:
    """Grey levels on the picture's own grid, (*S); those of 8 bits stay within them."""
    change = reply.subject.change(reply.answer)
    levels = np.asarray(reply.subject.picture.levels + change, np.float32)
    return levels if reply.subject.window is not None else levels.clip(0, 255)


def _slice(reply: Reply) -> int | None:
    """The busiest slice on the picture's own grid."""
    shown = busiest([reply.change])
    if shown is None:
        return None
    return int((shown + 0.5) * reply.subject.picture.levels.shape[-1] / reply.change.shape[-1])
