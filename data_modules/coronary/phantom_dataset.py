"""Subjects of the coronary phantom: drawn from seeded noise, and drawn again under do()."""

import torch
from torch import Tensor

from data_modules.common.data_module import Batch
from data_modules.common.phantom import PhantomDataset, Values, scaled, take
from data_modules.common.splits import Split
from data_modules.common.transforms import to_signed
from data_modules.coronary.anatomy import EXOGENOUS, LENGTH, STRUCTURES, WIDTH, Noise, Vessel
from data_modules.coronary.causes import CoronaryCauses
from data_modules.coronary.ct_scan import covered, fractions, grainy, paint

WINDOW = (-200.0, 1000.0)  # HU that networks see as -1 and 1


class CoronaryPhantomDataset(PhantomDataset):
    """One split; item i of a (seed, split) is always the same subject, at every frame of its dimensions.

    Masks tell how much of a pixel a structure covers, in quarters: plaque is a few dozen pixels, and whole pixels
    would be off by an eighth of the deviation between subjects. At (96, 48) they are off by 3 % of it for calcified
    plaque, 2 % for non-calcified plaque and 0.7 % for the lumen.

    Args:
        split: Which split; splits share no noise.
        frame: Shape S: rows along the vessel (48 mm), then one or two axes across it (12 mm each).
        subjects: Number of subjects N.
        seed: Of the exogenous noise.
        narrowing: Strength of the arrows plaque -> lumen; 0 cuts them.

    Raises:
        ValueError: If the split is unknown, a side of the frame is below 12, ``subjects`` < 1, ``seed`` < 0, or
            ``narrowing`` < 0.
    """

    def __init__(
        self, split: Split, frame: tuple[int, ...], subjects: int, seed: int = 0, narrowing: float = 1.0
    ) -> None:
        check_frame(frame, narrowing)
        super().__init__(split, tuple(frame), subjects, seed)
        self.causes = CoronaryCauses(len(frame), narrowing)
        uniform = self.uniform(self.causes.draws + sum(count for _, _, count in EXOGENOUS.values()))
        self.attributes = self.causes.sample(uniform[:, : self.causes.draws])
        self._noise = scaled(uniform[:, self.causes.draws :], EXOGENOUS)

    def paint(self, index: int, s: Tensor, x: Tensor, y: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
        """One subject in 3-D at any points (P,) each, see ``ct_scan.paint``: noiseless HU and labels, (P,)."""
        which = torch.tensor([index])
        noise, vessel = self._vessel(which, take(self.attributes, which), s[None].double())
        hu, label = paint(noise, vessel, x[None, :, None, None], y[None, :, None, None], pixel)
        return hu.flatten(), label.flatten()

    def _vessel(self, indices: Tensor, values: Values, s: Tensor) -> tuple[Noise, Vessel]:
        noise = take(self._noise, indices)
        sizes = {name: self.causes.sizes(values, name) for name in STRUCTURES}
        return noise, Vessel.of(noise, sizes, s, len(self.frame))

    def draw(self, indices: Tensor, values: Values, shifts: Values) -> tuple[Tensor, Tensor]:
        """Subjects at given values -> images (B, *S) int16, HU, and what ``covered`` counts, (B, *S) uint8."""
        s, *across = (
            (torch.arange(side, dtype=torch.float64) + 0.5) * (field / side) - origin
            for side, field, origin in zip(self.frame, (LENGTH, WIDTH, WIDTH), (0, WIDTH / 2, WIDTH / 2), strict=False)
        )
        noise, vessel = self._vessel(indices, values, s.expand(len(indices), -1))
        x, y = across[0][None, None], None
        if len(self.frame) == 3:
            x, y = x[..., None], across[1][None, None, None]
        pixel = tuple(WIDTH / side for side in self.frame[1:])
        hu, _ = paint(noise, vessel, x, y, max(pixel))
        return grainy(noise, hu, self.grain(indices)), covered(vessel, x, y, pixel)

    def to_batch(self, indices: Tensor, levels: Tensor, labels: Tensor, values: Values) -> Batch:
        """See ``PhantomDataset.to_batch``."""
        return {
            "image": to_signed(levels[:, None], WINDOW),  # (B, 1, *S)
            "mask": fractions(labels),  # (B, K, *S)
            "index": indices,
            **values,
        }

    def intervened(self, observed: Values, do: Values) -> Values:
        """Sex, age and plaque move what they cause, unless that is intervened on as well.

        One on a whole vessel scales its thirds alike, but for those that are intervened on.

        Raises:
            ValueError: If sizes are asked for that are not positive, do not add up, or make no vessel.
        """
        return self.causes.counterfactual(observed, do)


def check_frame(frame: tuple[int, ...], narrowing: float) -> None:
    """Refuse what cannot be drawn.

    Raises:
        ValueError: If a frame is too small or has other than two or three sides, or ``narrowing`` is negative.
    """
    if len(frame) not in (2, 3) or min(frame) < 12:
        raise ValueError(f"a frame has two or three sides of at least 12 pixels, got {tuple(frame)}")
    if narrowing < 0:
        raise ValueError(f"narrowing must not be negative, got {narrowing:g}")
