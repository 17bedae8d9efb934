"""Between a file's grid of grey levels and the model's frame of [-1, 1]."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcft.counterfactual.arrays import laid
from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.native_resolution import Canvas
from segcft.io.picture import Picture, Window
from segcft.spatial.geometry import Geometry


@dataclass(frozen=True)
class Framing:
    """How one picture lies in the model's frame, as ``data_modules.folder`` draws its training data.

    Attributes:
        geometry: Of picture and frame.
        window: Levels that are -1 and 1.
    """

    geometry: Geometry
    window: Window

    @classmethod
    def of(
        cls,
        picture: Picture,
        model: CounterfactualModel,
        window: Window | None,
        spacing: Sequence[float] | None,
        given: Container[str] | None = None,
    ) -> "Framing":
        """Resampled to the model's spacing where its sizes are in mm, else padded to a square (cube) and resized.

        Args:
            picture: What was read.
            model: Knows frame, spacing and units.
            window: As the picture was read with; 0 to 255 where that was None.
            spacing: Edge lengths of a pixel in mm where the file does not say.
            given: Variables whose factual values are known, see ``laid``.

        Raises:
            ValueError: If the picture has other axes than the frame, or no known spacing.
        """
        if model.description.channels != 1:
            raise ValueError(f"a file holds one channel, the model reads {model.description.channels}")
        return cls(laid(model, picture.levels.shape, picture.spacing or spacing, given), window or (0.0, 255.0))

    def canvas(self, levels: NDArray[Any]) -> Canvas:
        """Grey levels (*N) as an image (1, 1, *N) that can be edited."""
        low, high = self.window
        scaled = (levels.astype(np.float32) - low) * np.float32(2 / (high - low)) - 1
        return Canvas(torch.from_numpy(scaled)[None, None], self.geometry)

    def levels(self, difference: Tensor) -> NDArray[np.float32]:
        """A difference of images (1, 1, *N) in grey levels, (*N)."""
        grey: NDArray[np.float32] = difference[0, 0].float().cpu().numpy()
        return grey * np.float32((self.window[1] - self.window[0]) / 2)

    def enlarge(self, values: Tensor) -> NDArray[np.float32]:
        """(1, 1, *S) -> (*N), smoothly."""
        large: NDArray[np.float32] = self.geometry.enlarge(values.float())[0, 0].cpu().numpy()
        return large
