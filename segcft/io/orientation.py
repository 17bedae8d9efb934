"""Display orientation of stored pixels: EXIF orientation, DICOM image and patient orientation.

Display orientation is that of viewers: photographs upright; medical images with the patient's left on the right and the
head (in axial slices the front) at the top. ``Turn.store`` is the exact inverse of ``Turn.show``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXIF = 274  # EXIF tag of the orientation
HORIZONTAL, VERTICAL = {"R": True, "L": False, "A": True, "P": False}, {"H": True, "F": False, "A": True, "P": False}
AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "H": 2, "F": 2}  # body axis of each direction
LPS = (("L", "R"), ("P", "A"), ("H", "F"))  # positive and negative direction of each DICOM axis


@dataclass(frozen=True)
class Turn:
    """The map from stored to displayed pixels: transposition, then reversal of axes.

    Attributes:
        transposed: Whether rows and columns are exchanged.
        rows: Whether the order of rows is reversed.
        columns: Whether the order of columns is reversed.
    """

    transposed: bool = False
    rows: bool = False
    columns: bool = False

    def show(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Convert stored pixels (H, W, ...) to display orientation."""
        turned = stored.swapaxes(0, 1) if self.transposed else stored
        return turned[:: -1 if self.rows else 1, :: -1 if self.columns else 1]

    def store(self, shown: NDArray[Any]) -> NDArray[Any]:
        """Convert displayed pixels (H, W, ...) to stored orientation."""
        turned = shown[:: -1 if self.rows else 1, :: -1 if self.columns else 1]
        return turned.swapaxes(0, 1) if self.transposed else turned


UPRIGHT = Turn()
OF_EXIF = {  # EXIF 2.32, tag 274
    1: UPRIGHT,
    2: Turn(columns=True),
    3: Turn(rows=True, columns=True),
    4: Turn(rows=True),
    5: Turn(transposed=True),
    6: Turn(transposed=True, columns=True),
    7: Turn(transposed=True, rows=True, columns=True),
    8: Turn(transposed=True, rows=True),
}


def of_exif(image: Any) -> Turn:
    """Orientation of a Pillow image; upright if the tag is missing or invalid."""
    return OF_EXIF.get(image.getexif().get(EXIF, 1), UPRIGHT)


def of_dicom(data: Any) -> Turn | None:
    """Orientation of a pydicom data set, by ImageOrientationPatient or PatientOrientation; None if it has neither.

    Raises:
        ValueError: If a tag is invalid, or the two contradict each other.
    """
    directions = [float(number) for number in data.get("ImageOrientationPatient") or []]
    codes = data.get("PatientOrientation")
    given = [codes] if isinstance(codes, str) else list(codes or [])
    by_codes = of_codes(given) if any(given) else None
    by_directions = of_directions(directions) if directions else None
    if by_codes and by_directions and by_codes != by_directions:
        raise ValueError(f"PatientOrientation {'/'.join(given)} contradicts ImageOrientationPatient {directions}")
    return by_directions or by_codes


def of_directions(directions: Sequence[float]) -> Turn:
    """Orientation by the two unit vectors of increasing columns and rows in LPS (DICOM PS3.3, C.7.6.2.1.1).

    Raises:
        ValueError: If they are not two perpendicular unit vectors.
    """
    vectors = np.asarray(directions, float)
    if len(vectors) != 6 or not np.allclose(vectors.reshape(2, 3) @ vectors.reshape(2, 3).T, np.eye(2), atol=0.01):
        raise ValueError(f"ImageOrientationPatient {list(directions)} are not two perpendicular unit vectors")
    across, down = vectors.reshape(2, 3)
    first = _nearest(across)
    return of_codes([first, _nearest(np.where(np.arange(3) == AXIS[first], 0, down))])


def of_codes(codes: Sequence[str]) -> Turn:
    """Orientation by the directions of increasing columns and rows, such as ``["L", "F"]`` (DICOM PS3.3, C.7.6.1.1.1).

    Raises:
        ValueError: If they are not two directions of different axes.
    """
    letters = [code[:1] for code in codes]
    axes = [AXIS.get(letter) for letter in letters]
    if len(axes) != 2 or None in axes or axes[0] == axes[1]:
        raise ValueError(f"PatientOrientation {'/'.join(codes)} are not two directions such as L and F")
    transposed = axes not in ([0, 1], [0, 2], [1, 2])
    across, down = reversed(letters) if transposed else letters
    return Turn(transposed, rows=VERTICAL[down], columns=HORIZONTAL[across])


def _nearest(direction: NDArray[Any]) -> str:
    """Letter of the body direction closest to a vector (x, y, z) in LPS."""
    axis = int(np.abs(direction).argmax())
    return LPS[axis][int(direction[axis] < 0)]
