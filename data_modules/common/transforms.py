"""Image transforms: conversion between grey levels and [-1, 1], and joint augmentation of image and masks."""

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
    """Map levels in the window to float32 in [-1, 1], same shape; levels outside are clipped."""
    low, high = window
    return image.float().sub(low).mul_(2 / (high - low)).sub_(1).clamp_(-1, 1)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of brightness and pose, without mirroring, which would put the heart on the wrong side.

    Every number is a maximum; values are drawn uniformly between minus and plus the maximum.

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
        """Augment one image and its masks with the same spatial transform.

        Args:
            image: (S, S).
            masks: (K, S, S) in {0, 1}.
            field: Mask of the radiograph within the frame, (S, S) in {0, 1}; the rest stays black.
            seed: Seed of all random values.

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
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it looks for updates online
        import albumentations as A  # lazily: slow to import, and only training needs it

        affine = A.Affine(
            rotate=(-self.rotate, self.rotate),
            scale=(1 - self.scale, 1 + self.scale),
            translate_percent=(-self.translate, self.translate),
            keep_ratio=True,
            interpolation=cv2.INTER_CUBIC,
            mask_interpolation=cv2.INTER_LINEAR,  # of 0 and 255, thresholded at half: smooth borders, unbiased areas
            p=1,
        )
        tone = A.RandomBrightnessContrast(self.brightness, self.contrast, p=1)
        gamma = A.RandomGamma((100 * (1 - self.gamma), 100 * (1 + self.gamma)), p=1)
        return A.Compose([tone, gamma, affine])
