"""Small files that would take much memory, or start another program, if they were believed."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from tests.dicoms import write_dicom

BYTES = 2**29  # that a file of about half a MB stands for
NOTHING = b"\x81\0"  # 128 zeros as a run


def repeated(first: bytes, count: int, bits: int) -> bytes:
    """``first`` and zeros, ``count`` bytes, compressed; ``bits`` as of zlib."""
    packer = zlib.compressobj(9, zlib.DEFLATED, bits)
    parts, zeros = [packer.compress(first)], bytes(2**24)
    for _ in range(count // len(zeros)):
        parts.append(packer.compress(zeros))
    return b"".join([*parts, packer.compress(b"\1"), packer.flush()])


def compressed(path: Path, syntax: str, frame: bytes, side: int = 2, bits: int = 8) -> None:
    """A DICOM whose tags state ``side`` x ``side`` pixels."""
    data = pydicom.dcmread(write_dicom(path, np.arange(4, dtype=np.uint16).reshape(2, 2)))
    data.file_meta.TransferSyntaxUID = syntax
    data.Rows = data.Columns = side
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit = bits - 1
    data.PixelData = encapsulate([frame])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.save_as(path, enforce_file_format=True)


def encoded(kind: str, side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, format=kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    return file.getvalue()


def runs(*segments: bytes) -> bytes:
    """A frame of run lengths (DICOM PS3.5, annex G)."""
    starts = np.cumsum([64, *map(len, segments)])[:-1].tolist()
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def deflated(path: Path) -> None:
    data = pydicom.dcmread(write_dicom(path, np.arange(4, dtype=np.uint16).reshape(2, 2)))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    start = 144 + struct.unpack("<I", content[140:144])[0]
    element = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, BYTES)
    path.write_bytes(content[:start] + repeated(element, BYTES, -15))


def items(path: Path) -> None:
    content = write_dicom(path, np.arange(4, dtype=np.uint16).reshape(2, 2)).read_bytes()
    start = 144 + struct.unpack("<I", content[140:144])[0]
    begin, end = struct.pack("<HH2sHI", 8, 0x1111, b"SQ", 0, 2**32 - 1), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(content[:start] + begin + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 300_000 + end + content[start:])


def volume(path: Path, shape: tuple[int, ...], kind: type, start: int = 352, first: bytes = b"") -> None:
    """A gzipped NIfTI of zeros; ``first`` follows the header's flag of extensions."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", start
    path.write_bytes(repeated(header.binaryblock + bytes([bool(first), 0, 0, 0]) + first, BYTES, 31))


def picture(path: Path, kind: str, side: int) -> None:
    Image.new("L", (side, side)).save(path, format=kind)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {  # name -> how it is drawn, what is said of it
    "deflated.dcm": (deflated, "deflate"),
    "runs.dcm": (lambda path: compressed(path, RLELossless, runs(NOTHING * 2**20)), "run lengths"),
    "pixels.dcm": (lambda path: compressed(path, RLELossless, runs(NOTHING), 30_000), "too many"),
    "j2k.dcm": (
        lambda path: compressed(path, JPEG2000Lossless, encoded("JPEG2000", 6000)),
        "6000 x 6000 x 1, its",
    ),
    "jpeg.dcm": (lambda path: compressed(path, JPEGBaseline8Bit, encoded("JPEG", 9000)), "9000 x 9000 x 1, its"),
    "items.dcm": (items, "more than 100000 items"),
    "complex.nii.gz": (lambda path: volume(path, (256, 256, 512), np.complex128), "complex128 numbers"),
    "float.nii.gz": (lambda path: volume(path, (512, 512, 1000), np.float64), "its voxels take 2097152000 bytes"),
    "voxels.nii.gz": (lambda path: volume(path, (2000, 2000, 2000), np.uint8), "one image or volume of at most"),
    "extension.nii.gz": (
        lambda path: volume(path, (2, 2, 2), np.uint8, 352 + BYTES - 32, struct.pack("<ii", BYTES - 32, 4)),
        "at most 16777216 may precede them",
    ),
    "short.nii": (lambda path: path.write_bytes(short()), "cut short"),
    "large.png": (lambda path: picture(path, "PNG", 9000), "9000 x 9000 pixels are too many"),
    "postscript.png": (lambda path: path.write_bytes(POSTSCRIPT), "content is not PNG, JPEG, DICOM or NIfTI"),
    "tiff.png": (lambda path: picture(path, "TIFF", 8), "content is not PNG, JPEG, DICOM or NIfTI"),
    "bmp.jpg": (lambda path: picture(path, "BMP", 8), "content is not PNG, JPEG, DICOM or NIfTI"),
}
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n"


def short() -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((512, 512, 512))
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + bytes(100)
