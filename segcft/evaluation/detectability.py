"""Can a small classifier tell answers from untouched films? AUC between crops at the images' own size, .5 is perfect.

It is trained on some subjects and tested on others. Every crop is centred on the border of what it shows, as the
evaluator outlines it there, and every size that is asked for is another subject's: neither place nor size gives an
answer away. Two controls say what the number is worth: untouched films against untouched films, the mean of four random
halvings, must come out near .5, and untouched films that an unrelated small flow has resampled show what interpolation
alone gives away.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_modules.common.data_module import ImageDataset
from segcft.evaluation import metrics
from segcft.evaluation.bootstrap import Array, Estimate, estimate, resamples
from segcft.evaluation.native_resolution import Interventions, NativeImages, NativeRenderer
from segcft.spatial.diffeomorphism import warp_cubic
from segcft.spatial.geometry import Geometry
from segcft.variables.mask_measurements import located
from segcft.variables.variables import DataDescription

SIDE = 128  # pixels of a crop at most, and a quarter of the film
LEAST = 16
JITTER = 4  # pixels by which training shifts a crop
MARGIN = 12  # beyond the crop: room for the shift and for the blur
BLUR = 2.0  # pixels
UNRELATED = 1.5  # pixels, root mean square, of the flow that resamples untouched films
CELLS = 8  # of that flow's grid along each axis
BATCH = 32
WIDTHS = (24, 48, 80, 96)
UNTOUCHED, RESAMPLED = "untouched", "resampled"  # controls, as methods
HALVINGS = (
    4  # of the subjects into two random groups; their mean AUC is the control, for a single one is off by up to .1
)
Found = dict[str, dict[str, dict[str, Estimate]]]  # method -> do -> auc, auc_blurred


@dataclass(frozen=True)
class Crops:
    """Pieces of films around a border.

    Attributes:
        images: (N, C, L, L), with a margin around what the classifier sees.
        subjects: Index of the subject that is seen, (N,).
    """

    images: Tensor
    subjects: Tensor

    def where(self, chosen: Tensor) -> "Crops":
        """Some of them."""
        return Crops(self.images[chosen], self.subjects[chosen])

    def blurred(self) -> "Crops":
        """Without the grain."""
        return replace(self, images=metrics.gaussian(self.images, BLUR))


class Detector(nn.Module):
    """Four stages of strided convolutions, about 115,000 weights: crops (B, C, L, L) -> logits (B,).

    Args:
        channels: Of the images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, width in zip((channels, *WIDTHS), WIDTHS, strict=False):
            stages += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
        self.features = nn.Sequential(*stages)
        self.head = nn.Linear(2 * WIDTHS[-1], 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logit of being an answer."""
        features: Tensor = self.features(image)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        logits: Tensor = self.head(pooled)
        return logits[:, 0]


def detect(
    renderers: tuple[NativeRenderer, NativeRenderer],
    asked: tuple[Interventions, Interventions],
    about: DataDescription,
    steps: int,
    seed: int = 0,
) -> Found:
    """AUC of every method, question by question, and of both controls.

    Args:
        renderers: Of the subjects that the classifiers are trained on, and of those that they are tested on.
        asked: The subjects and their targets, which are other subjects' values.
        about: Of the data at this size.
        steps: That a classifier is trained.
        seed: Of all that is drawn.

    Raises:
        ValueError: If the images are volumes.
    """
    if about.spatial_dims != 2:
        raise ValueError("detectability is known of images alone, not of volumes: ask for detect=0")
    with torch.no_grad():
        trains, tests = (_gathered(*each, about, seed) for each in zip(renderers, asked, strict=True))
    found: Found = {}
    for name, per_method in trains.items():
        for method in [UNTOUCHED, *(each for each in per_method if each != UNTOUCHED)]:
            rounds = range(seed, seed + (HALVINGS if method == UNTOUCHED else 1))
            pairs = [[_pair(every[name], method, each) for every in (trains, tests)] for each in rounds]
            if all(len(crops.images) for pair in pairs[0] for crops in pair):
                parts = [compared(pair[0], pair[1], steps, each) for pair, each in zip(pairs, rounds, strict=True)]
                found.setdefault(method, {})[name] = {key: _mean([part[key] for part in parts]) for key in parts[0]}
    return found


def others(
    dataset: ImageDataset, names: list[str], about: DataDescription, subjects: int, seed: int, after: int = 0
) -> Interventions:
    """The first of a seeded permutation, each asked for the values of another.

    Args:
        dataset: Of the split.
        names: Variables that are asked for.
        about: Of the data.
        subjects: How many; fewer if the split has fewer.
        seed: Of the choice.
        after: How many of the permutation are passed over.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[after : after + subjects]
    values = about.parents.take({name: column[chosen] for name, column in dataset.attributes.items()})
    do = {name: values[name][torch.randperm(len(chosen), generator=generator)] for name in names}
    return Interventions(chosen, values, do)


def compared(train: tuple[Crops, Crops], test: tuple[Crops, Crops], steps: int, seed: int = 0) -> dict[str, Estimate]:
    """AUC of a classifier that has seen the crops as they are, and of another that sees them blurred.

    Args:
        train: Untouched crops and answers to learn from.
        test: The same of other subjects.
        steps: Of training.
        seed: Of weights, order and shifts.
    """
    blurred = [tuple(crops.blurred() for crops in pair) for pair in (train, test)]
    return {
        "auc": _trained_and_tested(train, test, steps, seed),
        "auc_blurred": _trained_and_tested(blurred[0], blurred[1], steps, seed),
    }


def auc(untouched: Tensor, answers: Tensor, subjects: tuple[Tensor, Tensor]) -> Estimate:
    """Share of pairs in which the answer scores higher, ties count half; its interval resamples subjects.

    Args:
        untouched: Scores, (N,).
        answers: Scores, (M,).
        subjects: Index of the subject in each, (N,) and (M,).
    """
    above = (answers[:, None] > untouched).double() + 0.5 * (answers[:, None] == untouched).double()
    weights: Array = resamples([torch.cat(subjects).cpu().numpy()])
    first, second = weights[:, : len(untouched)], weights[:, len(untouched) :]
    total = first.sum(1) * second.sum(1)
    pairs = (second @ above.cpu().numpy() * first).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return estimate(np.where(total > 0, pairs / total, np.nan))


def crop(image: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pieces of images (B, C, H, W) around the lateral border of a mask (B, H, W), and who of them has one, (B,) bool.

    Lateral is away from the middle of the image, at the height of the mask's centre. A piece that would leave the
    image is moved inside.
    """
    there, pieces = mask.flatten(1).any(1), []
    side = min(side, *image.shape[2:])
    for shown, inside in zip(image[there], mask[there], strict=True):
        row, column = lateral(inside)
        top, left = (
            min(max(place - side // 2, 0), n - side) for place, n in zip((row, column), inside.shape, strict=True)
        )
        pieces.append(shown[:, top : top + side, left : left + side])
    return torch.stack(pieces) if pieces else image.new_zeros(0, image.shape[1], side, side), there


def lateral(mask: Tensor) -> tuple[int, int]:
    """Row and column of a mask's (H, W) border away from the image's middle, at the height of its centre."""
    rows, columns = (places.double() for places in mask.nonzero(as_tuple=True))
    filled = mask.any(1).nonzero()[:, 0]
    row = int(filled[(filled - rows.mean()).abs().argmin()])
    across = mask[row].nonzero()[:, 0]
    return row, int(across.max() if columns.mean() >= (mask.shape[1] - 1) / 2 else across.min())


def resampled(native: NativeImages, seed: int) -> Tensor:
    """The images, moved by a small smooth flow that has nothing to do with them, (B, C, *N)."""
    shape, dims = native.canvas.image.shape, native.canvas.image.dim() - 2
    moved = []
    for index, image in zip(native.asked.index.tolist(), native.canvas.image, strict=True):
        generator = torch.Generator().manual_seed(1_000_003 * seed + index)
        coarse = torch.randn(1, dims, *[CELLS] * dims, generator=generator).to(image)
        flow = Geometry.of(shape[2:], [CELLS] * dims).enlarge(coarse)
        moved.append(warp_cubic(image[None], flow * (UNRELATED / flow.square().mean().sqrt())))
    low, high = (float(end) for end in torch.aminmax(native.canvas.image))
    return torch.cat(moved).clamp(low, high)


def _gathered(
    renderer: NativeRenderer, asked: Interventions, about: DataDescription, seed: int
) -> dict[str, dict[str, Crops]]:
    """Question -> method -> crops."""
    parts: dict[str, dict[str, list[Crops]]] = {name: {} for name in asked.do}
    for native in renderer.batches(asked):
        for name, method, image in _shown(renderer, native, seed):
            variable, outlines = about.parents[name], renderer.outlines(image)
            mask = located(outlines, variable.structure, variable.region, outlines, about)
            pieces, there = crop(image, mask, _side(image) + 2 * MARGIN)
            parts[name].setdefault(method, []).append(Crops(pieces, native.asked.index[there]))
    return {name: {method: _joined(every) for method, every in found.items()} for name, found in parts.items()}


def _shown(renderer: NativeRenderer, native: NativeImages, seed: int) -> Iterator[tuple[str, str, Tensor]]:
    moved = resampled(native, seed)
    for name in native.asked.do:
        yield name, UNTOUCHED, native.canvas.image
        yield name, RESAMPLED, moved
    for name, method, rendered in renderer.answers(native):
        yield name, method, rendered.image


def _side(image: Tensor) -> int:
    return max(LEAST, min(SIDE, min(image.shape[2:]) // 4))


def _joined(every: list[Crops]) -> Crops:
    return Crops(torch.cat([crops.images for crops in every]), torch.cat([crops.subjects for crops in every]))


def _pair(every: Mapping[str, Crops], method: str, seed: int) -> tuple[Crops, Crops]:
    """Untouched films and answers; in the control, a random half of the subjects takes the place of the answers."""
    untouched = every[UNTOUCHED]
    if method != UNTOUCHED:
        return untouched, every[method]
    count = len(untouched.subjects)
    half = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) < count // 2
    return untouched.where(half), untouched.where(~half)


def _mean(parts: list[Estimate]) -> Estimate:
    """Mean value and mean ends of the intervals."""
    return Estimate(*np.mean(parts, 0).tolist())


def _trained_and_tested(train: tuple[Crops, ...], test: tuple[Crops, ...], steps: int, seed: int) -> Estimate:
    side = train[0].images.shape[-1] - 2 * MARGIN
    detector = _trained(train, side, steps, seed)
    with torch.no_grad():
        untouched, answers = (_scores(detector, crops.images, side) for crops in test)
    return auc(untouched, answers, (test[0].subjects, test[1].subjects))


def _trained(pair: tuple[Crops, ...], side: int, steps: int, seed: int) -> Detector:
    """Half of every batch is untouched."""
    images, generator = [crops.images for crops in pair], torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(images[0].shape[1]).to(images[0].device)
    optimiser = torch.optim.AdamW(detector.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(steps, 2))
    wanted = torch.cat([torch.zeros(BATCH // 2), torch.ones(BATCH // 2)]).to(images[0].device)
    for _ in range(steps):
        batch = torch.cat([_drawn(kind, side, generator) for kind in images])
        loss = F.binary_cross_entropy_with_logits(detector(batch), wanted)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return detector.eval()


def _drawn(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Some crops, each shifted in its own way."""
    chosen = torch.randint(len(images), (BATCH // 2,), generator=generator).tolist()
    shifts = torch.randint(-JITTER, JITTER + 1, (BATCH // 2, 2), generator=generator).tolist()
    return torch.stack([_window(images[place], side, shift) for place, shift in zip(chosen, shifts, strict=True)])


def _window(images: Tensor, side: int, shift: tuple[int, int] | list[int]) -> Tensor:
    """The middle of (..., L, L), shifted."""
    top, left = (MARGIN + by for by in shift)
    return images[..., top : top + side, left : left + side]


def _scores(detector: Detector, images: Tensor, side: int) -> Tensor:
    """Mean logit of the middle and four shifts, (N,)."""
    shifts = [(0, 0), *((y, x) for y in (-JITTER, JITTER) for x in (-JITTER, JITTER))]
    parts = [
        torch.stack([detector(_window(part, side, shift)) for shift in shifts]).mean(0)
        for part in torch.split(images, BATCH)
    ]
    return torch.cat(parts)
