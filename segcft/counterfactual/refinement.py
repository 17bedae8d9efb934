"""What the segmentor that guided a model may still do when the model answers: ask again, and hold the rest still."""

from collections.abc import Callable

import torch
from torch import Tensor

from segcft.counterfactual.edits import Edit
from segcft.counterfactual.prediction import Drawn
from segcft.guidance.judges import SegmentationModel
from segcft.spatial.resize import spread
from segcft.variables.mask_measurements import located
from segcft.variables.regions import neighbourhood, surroundings, vicinity
from segcft.variables.variables import Parents, Values


def correct(
    draw: Callable[[Tensor], Drawn],
    image: Tensor,
    cf_values: dict[str, Tensor],
    pa: Tensor,
    parents: Parents,
    segmentor: SegmentationModel,
    turns: int,
) -> Drawn:
    """Measure the answer, and ask again for what it lacks; of every image the best answer by the segmentor is kept.

    A correction is at most half of what was asked and one deviation: a small intervention is not drowned by the
    segmentor's own error, and none stays none. One that made it worse is undone, and half of it tried next.

    Args:
        draw: Encoded counterfactual parents (B, P) -> the answer.
        image: The factual image, (B, C, *S).
        cf_values: What was asked for in real units, (B,) each.
        pa: Encoded factual parents, (B, P).
        parents: That ``pa`` encodes.
        segmentor: Measures some of them.
        turns: Corrections; 0 for none.
    """
    asked = wanted = parents.encode(cf_values)
    most = (0.5 * (wanted - pa).abs()).clamp(max=1)

    def lacking(cf_image: Tensor) -> Tensor:
        """Of what was to move, in training deviations, (B, P)."""
        found = parents.encode(cf_values | segmentor.measure(cf_image, image))
        return torch.where(wanted == pa, 0.0, wanted - found)

    best = draw(asked)
    if not turns:
        return best
    left, share = lacking(best.image), torch.ones_like(wanted[:, :1])
    for _ in range(turns):
        tried = asked + share * left.clamp(-most, most)
        drawn = draw(tried)
        lacks = lacking(drawn.image)
        better = (lacks.abs().sum(1) < left.abs().sum(1))[:, None]
        asked, left = torch.where(better, tried, asked), torch.where(better, lacks, left)
        share = torch.where(better, 1.0, share / 2)
        found = torch.where(spread(better, image), drawn.image, best.image)
        best = best._replace(image=found, edit=drawn.edit.where(better[:, 0], best.edit))
    return best


def confine(
    drawn: Drawn,
    image: Tensor,
    cf_values: Values,
    pa: Tensor,
    parents: Parents,
    segmentor: SegmentationModel,
    letters: Tensor | None = None,
) -> Edit:
    """The edit in the neighbourhood of what moves, before and after; nothing elsewhere.

    That is a parent's structure and what it carries, or that part of them which its region holds. What is painted ends
    there. A flow, which must not tear, comes to rest further out and around ``letters`` (B, 1, *S), bool; other
    structures may move along, for they make room and keep their size.
    Where a parent moves that has no structure, such as age, all of the image may change. See ``correct``.
    """
    about = segmentor.description
    anatomy = segmentor.probabilities(image)
    masks = torch.maximum(anatomy, segmentor.probabilities(drawn.image)) > 0.5
    allowed, variables = torch.zeros_like(masks[:, 0]), list(parents.variables.values())
    changes = torch.split(parents.encode(cf_values) != pa, [each.dim for each in variables], dim=1)
    for variable, changed in zip(variables, changes, strict=True):
        moved = changed.any(1).view(-1, *[1] * (image.dim() - 2))
        if variable.structure:
            moved = moved & located(masks, variable.moves, variable.region, anatomy, about)
        allowed = allowed | moved
    structures = allowed | masks.any(1)  # those that are to keep their size give way
    painted, moved = neighbourhood(allowed, image), surroundings(structures, image)
    if letters is not None:
        moved = moved * (1 - vicinity(letters[:, 0] & (painted[:, 0] == 0), image))
    return drawn.edit.within(painted, moved)
