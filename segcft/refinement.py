"""What the segmentor that guided a model may still do when the model answers: ask again, and hold the rest still."""

import torch
from torch import Tensor

from segcft.judges import SegmentationModel
from segcft.outlines import located
from segcft.parents import Parents, Values
from segcft.regions import neighbourhood


def missing(
    cf_image: Tensor,
    image: Tensor,
    cf_values: dict[str, Tensor],
    pa: Tensor,
    parents: Parents,
    segmentor: SegmentationModel,
) -> Tensor:
    """What an answer lacks of what was to move, by the segmentor, in training deviations, (B, P).

    Added to what is asked, it brings the next answer closer. It is at most half of what was asked and one deviation:
    a small intervention is not drowned by the segmentor's own error, and none stays none.

    Args:
        cf_image: The answer, (B, C, *S).
        image: The factual image, (B, C, *S).
        cf_values: What was asked for in real units, (B,) each.
        pa: Encoded factual parents, (B, P).
        parents: That ``pa`` encodes.
        segmentor: Measures some of them.
    """
    wanted = parents.encode(cf_values)
    found = parents.encode(cf_values | segmentor.measure(cf_image, image))
    most = (0.5 * (wanted - pa).abs()).clamp(max=1)
    return torch.where(wanted == pa, 0.0, (wanted - found).clamp(-most, most))


def confine(
    cf_image: Tensor, image: Tensor, cf_values: Values, pa: Tensor, parents: Parents, segmentor: SegmentationModel
) -> Tensor:
    """The answer in the neighbourhood of what moves, before and after; the factual image elsewhere.

    That is a parent's structure and what it carries, or that part of them which its region holds.
    Where a parent moves that has no structure, such as age, all of the image may change. See ``missing``.
    """
    about = segmentor.description
    anatomy = segmentor.probabilities(image)
    masks = torch.maximum(anatomy, segmentor.probabilities(cf_image)) > 0.5
    allowed, variables = torch.zeros_like(masks[:, 0]), list(parents.variables.values())
    changes = torch.split(parents.encode(cf_values) != pa, [each.dim for each in variables], dim=1)
    for variable, changed in zip(variables, changes, strict=True):
        moved = changed.any(1).view(-1, *[1] * (image.dim() - 2))
        if variable.structure:
            moved = moved & located(masks, variable.moves, variable.region, anatomy, about)
        allowed = allowed | moved
    return image + neighbourhood(allowed, image) * (cf_image - image)
