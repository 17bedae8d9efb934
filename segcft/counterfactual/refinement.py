"""What the segmentor that guided a model may still do when the model answers: ask again, and hold the rest still."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from segcft.counterfactual.native_resolution import Canvas, Edit
from segcft.guidance.judges import SegmentationModel
from segcft.variables.mask_measurements import located, measure_masks
from segcft.variables.regions import neighbourhood, surroundings, vicinity
from segcft.variables.variables import Parents


@dataclass(frozen=True)
class Refinement:
    """One question about images whose factual masks are known; the segmentor outlines as few answers as can be.

    Attributes:
        segmentor: Measures some of the parents.
        canvas: The factual images, (B, C, *N): what the model sees of an answer that is drawn there is measured.
        anatomy: The segmentor's masks of the factual images, (B, K, *S).
        parents: Variables.
        pa: Encoded factual parents, (B, P).
        cf_values: What is asked for in real units, (B,) each.
    """

    segmentor: SegmentationModel
    canvas: Canvas
    anatomy: Tensor
    parents: Parents
    pa: Tensor
    cf_values: dict[str, Tensor]

    def edit(self, draw: Callable[[Tensor], Edit], turns: int, confined: bool) -> Edit:
        """The answer, corrected and confined.

        A flow that paints nothing is confined by the factual masks that move along. What is painted is confined by the
        segmentor's masks of the first answer, which is measured before that and no more: the first correction is kept.

        Args:
            draw: Encoded counterfactual parents (B, P) -> the answer.
            turns: Corrections; 0 for none.
            confined: See ``confine``.
        """
        first = draw(self.wanted)
        judged = self._judged(first) if confined and not first.only_moves else None

        def held(edit: Edit) -> Edit:
            if not confined:
                return edit
            return self.confine(edit, edit.carry(self.anatomy) if judged is None else judged[0])

        best = held(first)
        if not turns:
            return best
        _, left = judged or self._judged(best)
        least = left.abs().sum(1) if judged is None else torch.full_like(left[:, 0], torch.inf)
        return self._corrected(lambda pa: held(draw(pa)), best, left, least, turns)

    def _corrected(self, draw: Callable[[Tensor], Edit], best: Edit, left: Tensor, least: Tensor, turns: int) -> Edit:
        """Ask again for what an answer lacks; of every image the best answer by the segmentor is kept.

        A correction is at most half of what was asked and one deviation: a small intervention is not drowned by the
        segmentor's own error, and none stays none. One that made it worse is undone, and half of it tried next.

        Args:
            draw: See ``edit``.
            best: The first answer.
            left: What it lacks of every parent, (B, P).
            least: What it lacks in all, (B,).
            turns: Corrections.
        """
        asked, share = self.wanted, torch.ones_like(left[:, :1])
        most = (0.5 * (self.wanted - self.pa).abs()).clamp(max=1)
        for _ in range(turns):
            tried = asked + share * left.clamp(-most, most)
            edit = draw(tried)
            _, lacks = self._judged(edit)
            better = lacks.abs().sum(1) < least
            least = torch.where(better, lacks.abs().sum(1), least)
            asked, left = (torch.where(better[:, None], *pair) for pair in ((tried, asked), (lacks, left)))
            share = torch.where(better[:, None], 1.0, share / 2)
            best = edit.where(better, best)
        return best

    @cached_property
    def wanted(self) -> Tensor:
        """What is asked for, encoded, (B, P)."""
        return self.parents.encode(self.cf_values)

    def _judged(self, edit: Edit) -> tuple[Tensor, Tensor]:
        """Masks of an answer, (B, K, *S), and what it lacks of what was to move, in training deviations, (B, P)."""
        image = self.canvas.seen(edit)
        masks = self.segmentor.probabilities(image)
        measured = measure_masks(masks, image, self.segmentor.description, self.anatomy)
        found = self.parents.encode(self.cf_values | measured)
        return masks, torch.where(self.wanted == self.pa, 0.0, self.wanted - found)

    def confine(self, edit: Edit, cf_masks: Tensor) -> Edit:
        """The edit in the neighbourhood of what moves, before and after (B, K, *S); nothing elsewhere.

        That is a parent's structure and what it carries, or that part of them which its region holds. What is painted
        ends there. A flow, which must not tear, comes to rest further out and around side markers; other structures may
        move along, for they make room and keep their size.
        Where a parent moves that has no structure, such as age, all of the image may change.
        """
        masks, image = torch.maximum(self.anatomy, cf_masks) > 0.5, self.canvas.frame
        allowed, variables = torch.zeros_like(masks[:, 0]), list(self.parents.variables.values())
        changes = torch.split(self.wanted != self.pa, [each.dim for each in variables], dim=1)
        for variable, changed in zip(variables, changes, strict=True):
            moved = changed.any(1).view(-1, *[1] * (image.dim() - 2))
            if variable.structure:
                where = located(masks, variable.moves, variable.region, self.anatomy, self.segmentor.description)
                moved = moved & where
            allowed = allowed | moved
        structures = allowed | masks.any(1)  # those that are to keep their size give way
        painted, moved = neighbourhood(allowed, image), surroundings(structures, image)
        letters = self.canvas.letters[:, 0] & (painted[:, 0] == 0)
        return edit.within(painted, moved * (1 - vicinity(letters, image)))
