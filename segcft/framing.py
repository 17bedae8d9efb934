"""Between a file's grid of grey levels and the model's frame of [-1, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.frames import resample, spread
from data_modules.readers import Picture, Window
from segcft.counterfactual import CounterfactualModel

LEAST = 4 / 255  # two 8-bit levels of [-1, 1]: fainter changes are haze, and leave the file's pixels alone

ROUNDS = 2  # of back-projection; more of them ring


@dataclass(frozen=True)
class Framing:
    """How one picture lies in the model's frame, as ``data_modules.folder`` draws its training data.

    Attributes:
        shape: Of the picture, (*S).
        frame: Of the model, one side an axis.
        steps: Length of the frame's pixel along each axis, in the picture's pixels.
        window: Levels that are -1 and 1.
    """

    shape: tuple[int, ...]
    frame: tuple[int, ...]
    steps: list[float]
    window: Window

    @classmethod
    def of(
        cls, picture: Picture, model: CounterfactualModel, window: Window | None, spacing: Sequence[float] | None
    ) -> "Framing":
        """Resampled to the model's spacing where its sizes are in mm, else padded to a square (cube) and resized.

        Args:
            picture: What was read.
            model: Knows frame, spacing and units.
            window: As the picture was read with; 0 to 255 where that was None.
            spacing: Edge lengths of a pixel in mm where the file does not say.

        Raises:
            ValueError: If the picture has other axes than the frame, or no known spacing.
        """
        about, shape = model.description, picture.levels.shape
        frame = model.hvae.stages[0].size(about.spatial_dims)
        if len(shape) != len(frame) or about.channels != 1:
            raise ValueError(f"an image of shape {shape} does not fit a model of {about.channels} x {frame}")
        units = [about.parents[name].unit for name in about.parents.structural]
        if not any(unit.startswith("mm") for unit in units):
            return cls(shape, frame, [max(shape) / side for side in frame], window or (0.0, 255.0))
        known = picture.spacing or spacing
        if known is None:
            raise ValueError("the file does not say its spacing, and the model measures in mm: give --spacing")
        if len(known) != len(frame):
            raise ValueError(f"spacing {list(known)}: {len(frame)} edge lengths are needed")
        steps = [new / old for new, old in zip(about.spacing, known, strict=True)]
        return cls(shape, frame, steps, window or (0.0, 255.0))

    def image(self, levels: NDArray[Any]) -> Tensor:
        """Grey levels (*S) as the model reads them, (1, 1, *frame) in [-1, 1]."""
        low, high = self.window
        drawn = resample(levels.astype(np.float32) - low, self.frame, self.steps)
        return torch.from_numpy((2 * drawn / (high - low) - 1).clip(-1, 1))[None, None]

    def levels(self, change: Tensor) -> NDArray[np.float32]:
        """A change (1, 1, *frame) in the picture's grid and grey levels, (*S); 0 where it is nothing.

        Interpolation smooths, and a smoothed change falls short of what was asked: what is lost on the way there and
        back is added again (iterative back-projection; Irani and Peleg, 1991).
        """
        wanted: NDArray[np.float32] = change[0, 0].float().cpu().numpy()
        inside = self._drawn(np.ones(self.shape, np.float32))
        found = spread(wanted, self.shape, self.steps)
        for _ in range(ROUNDS):
            lost: NDArray[np.float32] = inside * (wanted - self._drawn(found))
            found += spread(lost, self.shape, self.steps)
        return np.where(np.abs(found) < LEAST, 0, found * (self.window[1] - self.window[0]) / 2)

    def _drawn(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return resample(values, self.frame, self.steps)

    def spread(self, values: Tensor) -> NDArray[np.float32]:
        """(1, 1, *frame) -> (*S), linearly."""
        result: NDArray[Any] = spread(values[0, 0].float().cpu().numpy(), self.shape, self.steps)
        return result
