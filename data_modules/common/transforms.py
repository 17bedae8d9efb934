"""Images as networks see them: move between uint8 and [-1, 1], augment image and mask as one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from segcft.io.resampling import Pixels


def to_signed(image: Tensor, window: Sequence[float] = (0, 255)) -> Tensor:
    """Levels -> float32 in [-1, 1] by the window that becomes -1 and 1, same shape; levels beyond it are clipped."""
    low, high = window
    return image.float().sub(low).mul_(2 / (high - low)).sub_(1).clamp_(-1, 1)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of brightness and pose; never a mirror image, which would move the heart to the wrong side.

    Every number is a largest strength; a value is drawn evenly up to it, in both directions.

    Attributes:
        rotate: Rotation, degrees.
        scale: Relative change of size.
        translate: Shift along each axis as a fraction of the image.
        brightness: Offset as a fraction of the full grey range.
        contrast: Relative change of gain.
        gamma: Relative change of the exponent.
    """

    rotate: float = 8.0
    scale: float = 0.1
    translate: float = 0.04
    brightness: float = 0.08
    contrast: float = 0.15
    gamma: float = 0.2

    def __post_init__(self) -> None:
        for field in fields(self):
            value, limit = getattr(self, field.name), 45 if field.name == "rotate" else 0.9
            if not 0 <= value <= limit:
                raise ValueError(f"augmentation: {field.name} = {value} must lie in [0, {limit}]")

    def __call__(self, image: Pixels, masks: Pixels, field: Pixels, seed: int) -> tuple[Pixels, Pixels]:
        """One image and its masks, moved together.

        Args:
            image: (S, S).
            masks: (K, S, S) in {0, 1}.
            field: Where the radiograph lies in the frame, (S, S) in {0, 1}; all else stays black.
            seed: Decides every draw.

        Returns:
            Image (S, S) and masks (K, S, S) in {0, 1}.
        """
        self._compose.set_random_seed(seed)
        layers = np.concatenate([masks, field[None]]).transpose(1, 2, 0) * np.uint8(255)  # (S, S, K + 1)
        drawn = self._compose(image=image, mask=np.ascontiguousarray(layers))
        moved = (drawn["mask"] >= 128).astype(np.uint8).transpose(2, 0, 1)
        return drawn["image"] * moved[-1], moved[:-1]

    @cached_property
    def _compose(self) -> Any:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
        import albumentations as A  # here, for it takes seconds to import and only training needs it

        affine = A.Affine(
            rotate=(-self.rotate, self.rotate),
            scale=(1 - self.scale, 1 + self.scale),
            translate_percent=(-self.translate, self.translate),
            keep_ratio=True,
            interpolation=cv2.INTER_CUBIC,
            mask_interpolation=cv2.INTER_LINEAR,  # of 0 and 255, cut at half: smooth borders, unbiased areas
            p=1,
        )
        tone = A.RandomBrightnessContrast(self.brightness, self.contrast, p=1)
        gamma = A.RandomGamma((100 * (1 - self.gamma), 100 * (1 + self.gamma)), p=1)
        return A.Compose([tone, gamma, affine])
