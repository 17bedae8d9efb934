"""The format of an image file, by its first bytes; its name does not matter."""

from pathlib import Path
from typing import Literal

Format = Literal["raster", "dicom", "nifti", "nifti.gz"]
PNG, JPEG, GZIP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x1f\x8b"
SUFFIXES = {"raster": ".png", "dicom": ".dcm", "nifti": ".nii", "nifti.gz": ".nii.gz"}
HEADER = 544  # bytes of the longest header, that of NIfTI-2 and its extension flag


def format_of(path: Path) -> Format | None:
    """PNG and JPEG are ``raster``; None if it is none of the formats.

    Every gzip file counts as NIfTI until its content is read.
    """
    with path.open("rb") as file:
        head = file.read(HEADER)
    if head.startswith((PNG, JPEG)):
        return "raster"
    if head.startswith(GZIP):
        return "nifti.gz"
    if head[128:132] == b"DICM":  # archives often export DICOM files without a suffix
        return "dicom"
    return "nifti" if nifti_version(head) else None


def nifti_version(head: bytes) -> int:
    """1 or 2 of a single-file NIfTI's header; 0 of anything else."""
    return 1 if head[344:348] == b"n+1\0" else 2 if head[4:8] == b"n+2\0" else 0
