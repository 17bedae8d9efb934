"""Numbers that say whether a counterfactual is right: pure functions of images and measurements, a subject a number.

Axioms after Monteiro et al. (2023, arXiv:2303.01274); leakage and locality are what structure-specific means. Every
function keeps subjects apart, so that ``bootstrap`` can resample them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segcft.spatial.diffeomorphism import jacobian
from segcft.variables.regions import dilate

OWN = 2  # pixels around a border that belong to it


def percent(difference: Tensor, reference: Tensor) -> Tensor:
    """|difference| in percent of |reference|, (N,) each."""
    return 100 * difference.abs() / reference.abs().clamp(min=1e-12)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, *S) over the true positions of each subject, (B,); 0 where there are none."""
    flat, chosen = values.flatten(1), mask.flatten(1).float()
    return (flat * chosen).sum(1) / chosen.sum(1).clamp(min=1)


def change(image: Tensor, cf_image: Tensor) -> Tensor:
    """Minimality: mean |x* - x| over the whole image, (B, C, *S) -> (B,)."""
    return (cf_image - image).abs().flatten(1).mean(1)


def change_outside(image: Tensor, cf_image: Tensor, neighbourhood: Tensor) -> Tensor:
    """Locality: mean |x* - x| outside the neighbourhood (B, *S) of the structure, images (B, C, *S) -> (B,)."""
    return masked_mean((cf_image - image).abs().mean(1), ~neighbourhood)


def truth_errors(cf_image: Tensor, truth: Tensor, neighbourhood: Tensor) -> dict[str, Tensor]:
    """Distance to the true counterfactual, (B,) each: whole image, neighbourhood (B, *S), PSNR in dB, SSIM.

    Args:
        cf_image: Answers, (B, C, *S) in [-1, 1].
        truth: True counterfactuals, of the same shape.
        neighbourhood: Where the truth changed.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim  # lazily: slow to import

    error = cf_image - truth
    similarity = ssim(cf_image, truth, data_range=2.0, reduction="none")
    return {
        "mae": error.abs().flatten(1).mean(1),
        "mae_neighbourhood": masked_mean(error.abs().mean(1), neighbourhood),
        "psnr": 10 * torch.log10(4 / error.square().flatten(1).mean(1).clamp(min=1e-10)),
        "ssim": torch.as_tensor(similarity).reshape(len(cf_image), -1).mean(1),
    }


def mask_difference(mask: Tensor, other: Tensor) -> Tensor:
    """Positions that only one of two boolean masks (B, *S) holds, (B,)."""
    return (mask ^ other).flatten(1).float().sum(1)


def old_border(image: Tensor, mask: Tensor, cf_mask: Tensor) -> Tensor:
    """How sharp that part of a structure's former border is which the counterfactual's structure has left, (B,).

    The derivative of ``image`` along the inward normal of ``mask`` (the gradient of the mask, blurred), on the
    border minus beside it, outside ``cf_mask`` grown by two pixels, which belong to its own border. Texture and
    ribs cross a border either way and average out, what brightens steadily is as steep beside the border; an edge
    remains. Of the factual image this is the edge that was there, of a counterfactual what is left of it: their
    ratio is 1 where the old outline still shows through as a veil or ghost, and 0 where it is gone.

    Args:
        image: (B, C, *S).
        mask: Structure in the factual image, (B, *S), bool.
        cf_mask: Structure in the counterfactual, (B, *S), bool.

    Returns:
        In image units a pixel; NaN where the structure has left no border.
    """
    return _steepness(image, mask, ~dilate(cf_mask, OWN), 1.0)


def moved_border(image: Tensor, mask: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
    """How sharp an image is across that part of a structure's border which is not the other mask's, (B,).

    As ``old_border``, of images of any size, and of borders on either side of the other one. With the factual mask and
    the counterfactual's it is about the border that was left, with both exchanged about the new one.

    Args:
        image: (B, C, *S).
        mask: Structure whose border it is, (B, *S), bool.
        other: The same structure elsewhere, (B, *S), bool.
        scale: How many times wider than ``old_border``'s the bands beside the border are, and all other distances; the
            band of the border itself stays a pixel to either side.

    Returns:
        In image units a pixel of this image; NaN where both borders are one.
    """
    pixels = max(1, round(OWN * scale))
    return _steepness(image, mask, ~(dilate(other, pixels) & dilate(~other, pixels)), scale)


def _steepness(image: Tensor, mask: Tensor, left: Tensor, scale: float) -> Tensor:
    """Derivative along the inward normal of ``mask`` on its border minus beside it, where ``left``, (B,)."""
    width, axes = 2 * round(3 * scale) + 1, tuple(range(1, mask.dim()))
    normal = torch.stack(torch.gradient(_means(mask, width), dim=axes))  # (axes, B, *S), towards the inside
    length = normal.square().sum(0).sqrt()
    slope = (normal * torch.stack(torch.gradient(image.mean(1), dim=axes))).sum(0) / length.clamp(min=1e-6)

    def within(pixels: float) -> Tensor:
        whole = max(1, round(pixels))
        return dilate(mask, whole) & dilate(~mask, whole)

    left = left & (length > 1e-3 * 7 / width)
    border, beside = within(1) & left, within(4 * scale) & ~within(2 * scale) & left
    there = (border.flatten(1).sum(1) > 1) & (beside.flatten(1).sum(1) > 1)
    return torch.where(there, masked_mean(slope, border) - masked_mean(slope, beside), torch.nan)


def _means(mask: Tensor, width: int) -> Tensor:
    """``regions.blur``, an axis at a time: the same, and fast at any width."""
    values, dims = mask[:, None].float(), mask.dim() - 1
    for axis in range(dims):
        only = [axis == other for other in range(dims)]
        kernel, padding = ([width if here else 1 for here in only], [width // 2 if here else 0 for here in only])
        pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[dims]
        values = pool(values, kernel, 1, padding, count_include_pad=False)
    return values[:, 0]


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Images (B, C, *S), smoothed by a Gaussian of ``sigma`` pixels; the edge's value beyond it."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = (-0.5 * (offsets / sigma).square()).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for axis in range(2, image.dim()):
        lines = image.movedim(axis, -1)
        flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate")
        image = F.conv1d(flat, kernel).view(lines.shape).movedim(-1, axis)
    return image


def edge_error(cf_image: Tensor, truth: Tensor, near: Tensor) -> Tensor:
    """Mean length of grad x* - grad truth over the true positions of ``near`` (B, *S), in image units a pixel, (B,)."""
    difference = (cf_image - truth).mean(1)
    slopes = torch.gradient(difference, dim=tuple(range(1, difference.dim())))
    return masked_mean(torch.stack(slopes).square().sum(0).sqrt(), near)


def detail_correlation(image: Tensor, cf_image: Tensor) -> Tensor:
    """Correlation of both images' fine detail where they differ, (B,): 1 if the old detail stayed in its place.

    Fine is what a Gaussian of two pixels removes, and images (B, C, *S) differ where what it leaves does by 0.1 image
    units. NaN where that is hardly anywhere, less than 32 pixels.
    """
    coarse, cf_coarse = (gaussian(shown, 2.0) for shown in (image, cf_image))
    there = ((cf_coarse - coarse).abs() > 0.1).flatten(1).double()
    count = there.sum(1, keepdim=True)
    fine, cf_fine = ((shown - smooth).flatten(1) for shown, smooth in ((image, coarse), (cf_image, cf_coarse)))

    def centred(values: Tensor) -> Tensor:
        return (values - (values * there).sum(1, keepdim=True) / count.clamp(min=1)) * there

    one, other = centred(fine), centred(cf_fine)
    found = (one * other).sum(1) / (one.square().sum(1) * other.square().sum(1)).sqrt().clamp(min=1e-12)
    return torch.where(count[:, 0] >= 32, found, torch.nan).float()


def fine_energy(image: Tensor, where: Tensor) -> Tensor:
    """Sum of the squared Laplacian of images (B, C, *S) over the true positions of ``where`` (B, *S), (B,)."""
    laplacian = torch.zeros_like(image)
    for axis in range(2, image.dim()):
        inner = image.narrow(axis, 1, image.shape[axis] - 2)
        inner = image.narrow(axis, 2, image.shape[axis] - 2) + image.narrow(axis, 0, image.shape[axis] - 2) - 2 * inner
        padding = [0, 0] * (image.dim() - 1 - axis) + [1, 1]
        laplacian = laplacian + F.pad(inner, padding)
    return (laplacian.square().sum(1) * where).flatten(1).sum(1)


def flow_shape(displacement: Tensor) -> dict[str, Tensor]:
    """What a flow (B, D, *S) in pixels does to where it moves something, by more than 0.001, (B,) each.

    Returns:
        ``folded``: share of these pixels at which the determinant of d phi / dx is not positive; ``strain``: mean of
        |d u / dx| there, with u the displacement and the root of the squares of all derivatives. 0 if nothing moves.
    """
    moving, matrix = displacement.abs().amax(1) > 1e-3, jacobian(displacement)
    stretch = matrix - torch.eye(matrix.shape[-1], device=matrix.device)
    return {
        "folded": masked_mean((_determinant(matrix) <= 0).float(), moving),
        "strain": masked_mean(stretch.square().sum((-2, -1)).sqrt(), moving),
    }


def _determinant(matrix: Tensor) -> Tensor:
    """Of 2 x 2 matrices without LAPACK, which takes them one by one."""
    if matrix.shape[-1] != 2:
        return torch.as_tensor(torch.linalg.det(matrix))
    return matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
