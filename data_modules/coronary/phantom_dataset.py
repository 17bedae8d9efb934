"""Dataset of the coronary phantom: subjects drawn from seeded noise, with true counterfactuals."""

import torch
from torch import Tensor

from data_modules.common.data_module import Batch
from data_modules.common.phantom import PhantomDataset, Values, scaled, take
from data_modules.common.splits import Split
from data_modules.common.transforms import to_signed
from data_modules.coronary.anatomy import EXOGENOUS, LENGTH, STRUCTURES, WIDTH, Noise, Vessel
from data_modules.coronary.causes import CoronaryCauses
from data_modules.coronary.ct_scan import covered, fractions, grainy, paint

WINDOW = (-200.0, 1000.0)  # HU that are mapped to -1 and 1


class CoronaryPhantomDataset(PhantomDataset):
    """One split of the coronary phantom; item i of a (seed, split) is the same subject in every frame.

    Masks are fractional, in quarters of a pixel: plaque covers only a few dozen pixels, so binary masks would have an
    error of an eighth of the standard deviation between subjects. At (96, 48) the error is 3 % of it for calcified
    plaque, 2 % for non-calcified plaque and 0.7 % for the lumen.

    Args:
        split: Name of the split; splits use different noise.
        frame: Shape S: rows along the vessel (48 mm), then one or two axes across it (12 mm each).
        subjects: Number of subjects N.
        seed: Seed of the exogenous noise.
        narrowing: Strength of the causal effect plaque -> lumen; 0 for none.

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
        """Noiseless HU and labels of one subject at arbitrary 3-D points (P,) each, see ``ct_scan.paint``."""
        which = torch.tensor([index])
        noise, vessel = self._vessel(which, take(self.attributes, which), s[None].double())
        hu, label = paint(noise, vessel, x[None, :, None, None], y[None, :, None, None], pixel)
        return hu.flatten(), label.flatten()

    def _vessel(self, indices: Tensor, values: Values, s: Tensor) -> tuple[Noise, Vessel]:
        noise = take(self._noise, indices)
        sizes = {name: self.causes.sizes(values, name) for name in STRUCTURES}
        return noise, Vessel.of(noise, sizes, s, len(self.frame))

    def draw(self, indices: Tensor, values: Values, shifts: Values) -> tuple[Tensor, Tensor]:
        """Draw subjects with given values: images (B, *S) int16, HU, and the encoding of ``covered``, (B, *S) uint8."""
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
        """Sex, age and plaque affect the variables they cause, unless these are intervened on.

        An intervention on a whole vessel scales all of its thirds by the same factor, except those intervened on.

        Raises:
            ValueError: If requested sizes are not positive, do not add up, or give no valid vessel.
        """
        return self.causes.counterfactual(observed, do)


def check_frame(frame: tuple[int, ...], narrowing: float) -> None:
    """Check frame and narrowing.

    Raises:
        ValueError: If a frame is too small or has other than two or three sides, or ``narrowing`` is negative.
    """
    if len(frame) not in (2, 3) or min(frame) < 12:
        raise ValueError(f"a frame has two or three sides of at least 12 pixels, got {tuple(frame)}")
    if narrowing < 0:
        raise ValueError(f"narrowing must not be negative, got {narrowing:g}")
