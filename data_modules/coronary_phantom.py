"""Coronary phantom: synthetic straightened CT of arteries from a known causal model with true counterfactuals.

Causal model, in each third of the vessel: sex, age -> calcified and non-calcified plaque -> lumen (log-linear, each
with its own noise); sizes and exogenous noise -> image and masks. The size of a whole vessel is the sum over its
thirds.
"""

from data_modules.common.phantom import Phantom, check_subjects
from data_modules.common.splits import Split
from data_modules.coronary.anatomy import LENGTH, STRUCTURES, WIDTH
from data_modules.coronary.causes import CoronaryCauses
from data_modules.coronary.phantom_dataset import CoronaryPhantomDataset, check_frame
from segcft.variables.variables import Variable


class CoronaryPhantom(Phantom):
    """Data module of the coronary phantom: 48 mm of a vessel, 12 mm across, HU of -200 to 1000 mapped to -1 to 1.

    Args:
        variables: Parents of the image; by default sex, age and the sizes of the whole vessel. Sizes of thirds
            (``proximal_lumen_area``, ``mid_...``, ``distal_...``) are offered as well.
        frame: Rows along the vessel, then pixels across it along one axis (2-D) or two (3-D, for instance 48 x 32 x
            32); (96, 48) by default. Use a number of rows divisible by three, so that thirds have whole rows.
        subjects: Split -> number of subjects; by default 3000 train, 256 val and 256 test. They are kept in memory,
            three bytes per pixel.
        seed: Seed of the exogenous noise.
        narrowing: Strength of the causal effect plaque -> lumen; with 0 no structure's size affects another's.
        batch_size: Images per step and process.
        num_workers: Loader processes; images are kept in memory, so 0 is fastest.

    Raises:
        ValueError: If a side of the frame is below 12, a split is unknown or holds no subject, or ``seed`` or
            ``narrowing`` is negative.
    """

    structures = STRUCTURES

    def __init__(
        self,
        variables: dict[str, Variable] | None = None,
        frame: tuple[int, ...] = (96, 48),
        subjects: dict[str, int] | None = None,
        seed: int = 0,
        narrowing: float = 1.0,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(variables or _whole(len(frame)), batch_size, num_workers)
        self.frame, self.seed, self.narrowing = tuple(frame), seed, narrowing
        self.subjects = {"train": 3000, "val": 256, "test": 256} | (subjects or {})
        check_frame(self.frame, narrowing)
        check_subjects(self.subjects, seed)
        self.spacing = [field / side for field, side in zip((LENGTH, WIDTH, WIDTH), frame, strict=False)]

    def make_dataset(self, split: Split) -> CoronaryPhantomDataset:
        """Draw the noise of one split; its images are drawn when first read."""
        return CoronaryPhantomDataset(split, self.frame, self.subjects[split], self.seed, self.narrowing)


def _whole(spatial_dims: int) -> dict[str, Variable]:
    """Sex, age and the sizes of the whole vessel."""
    offered = CoronaryCauses(spatial_dims).variables()
    return {name: variable for name, variable in offered.items() if variable.structure or name in ("sex", "age")}
