"""Size of the compressed pixels of a DICOM, from their own header: decoders allocate by it, whatever the tags say."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)  # SOF of JPEG, JPEG-LS
JPEG_2000, JP2 = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
PADDING = 1024  # bytes after a segment of run lengths; the standard has one, some writers more


def check_codestream(data: Any) -> None:
    """Check that the compressed pixels of a DICOM data set have the size that its tags state.

    Raises:
        ValueError: If they have another, or none can be found.
    """
    if not data.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    frame, stated = next(generate_frames(data.PixelData, number_of_frames=1)), (data.Rows, data.Columns)
    if data.file_meta.TransferSyntaxUID == RLELossless:
        _check_runs(frame, data.Rows * data.Columns)
        return
    found = _jpeg_2000(frame) or _jpeg(frame)
    if found is None:
        raise ValueError("the header of its compressed pixels is damaged")
    if found != (*stated, data.SamplesPerPixel):
        shape = " x ".join(map(str, found))
        raise ValueError(f"its compressed pixels are {shape}, its tags say {stated[0]} x {stated[1]} pixels")


def _jpeg_2000(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components (ISO 15444-1, A.5.1); None of another format."""
    stream = next((content for kind, content in _boxes(frame) if kind == b"jp2c"), b"") if frame[:8] == JP2 else frame
    if stream[:4] != JPEG_2000 or len(stream) < 42:
        return None
    right, bottom, left, top = (int.from_bytes(stream[at : at + 4]) for at in (8, 12, 16, 20))
    return bottom - top, right - left, int.from_bytes(stream[40:42])


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the boxes of a JP2 file."""
    while len(content) >= 8:
        length = int.from_bytes(content[:4]) or len(content)
        if length < 8:
            return
        yield content[4:8], content[8:length]
        content = content[length:]


def _jpeg(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components (ISO 10918-1, B.2.2; ISO 14495-1, C.2.2); None of another format."""
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 10 <= len(frame) and frame[place] == 0xFF:
        if frame[place + 1] == 0xFF:  # fill byte
            place += 1
        elif frame[place + 1] in FRAMES:
            rows, columns = (int.from_bytes(frame[at : at + 2]) for at in (place + 5, place + 7))
            return rows, columns, frame[place + 9]
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4])
    return None


def _check_runs(frame: bytes, pixels: int) -> None:
    """Check that no segment of an RLE frame (DICOM PS3.5, annex G) decodes to more than a byte a pixel and padding.

    Raises:
        ValueError: If one does.
    """
    header = [int.from_bytes(frame[at : at + 4], "little") for at in range(0, 64, 4)]
    starts = [*header[1 : 1 + header[0]], len(frame)]
    for start, end in pairwise(starts):
        if _decoded_length(frame, start, end, pixels + PADDING) > pixels + PADDING:
            raise ValueError(f"its run lengths are for more pixels than the {pixels} that its tags state")


def _decoded_length(frame: bytes, place: int, end: int, most: int) -> int:
    """Bytes that a segment decodes to; counting stops above ``most``."""
    length = 0
    while place < end and length <= most:
        code = frame[place]
        if code < 128:
            length, place = length + code + 1, place + code + 2
        else:
            length, place = length + (257 - code if code > 128 else 0), place + (2 if code > 128 else 1)
    return length
