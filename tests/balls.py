"""A data set for tests: two discs (2-D) or balls (3-D) of known size in a frame, re-drawn at will."""

import torch
from torch import Tensor

from data_modules.common.data_module import Batch, DataModule, ImageDataset, Rerenderable
from data_modules.common.splits import Split
from segcft.variables.variables import Variable

SPLITS = ("train", "val", "test")


class BallDataset(ImageDataset, Rerenderable):
    def __init__(self, split: Split, size: int, subjects: int, spatial_dims: int) -> None:
        self.size, self.spatial_dims = size, spatial_dims
        generator = torch.Generator().manual_seed(SPLITS.index(split))
        radius = size * (0.14 + 0.08 * torch.rand(subjects, 2, generator=generator))
        unit = 3.14159 if spatial_dims == 2 else 4.18879
        self.attributes = {
            "left_size": unit * radius[:, 0] ** spatial_dims,
            "right_size": unit * radius[:, 1] ** spatial_dims,
            "age": 20 + 60 * torch.rand(subjects, generator=generator),
        }
        self.noise = 0.05 * torch.randn(subjects, 1, *[size] * spatial_dims, generator=generator)
        self.unit = unit

    def __len__(self) -> int:
        return len(self.noise)

    def read(self, indices: Tensor) -> Batch:
        return self.counterfactual(indices, {})

    def counterfactual(self, indices: Tensor, do: dict[str, Tensor]) -> Batch:
        values = {name: value[indices] for name, value in self.attributes.items()}
        values |= {name: torch.where(new.isnan(), values[name], new) for name, new in do.items()}
        masks = []
        for name, centre in (("left_size", 0.7), ("right_size", 0.3)):
            radius = (values[name] / self.unit) ** (1 / self.spatial_dims)  # (B,)
            axes = [
                torch.arange(self.size) + 0.5 - self.size * (0.5 if i else centre) for i in range(self.spatial_dims)
            ]
            distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
            masks.append(distance[None] < radius.view(-1, *[1] * self.spatial_dims))
        mask = torch.stack(masks, dim=1).float()  # (B, 2, *S)
        image = (1.2 * mask.amax(1, keepdim=True) - 0.6 + self.noise[indices]).clamp(-1, 1)
        return {"image": image, "mask": mask, "index": indices, **values}


class Balls(DataModule):
    structures = ["left", "right"]  # noqa: RUF012

    def __init__(
        self,
        variables: dict[str, Variable] | None = None,
        size: int = 16,
        subjects: int = 48,
        spatial_dims: int = 2,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        unit = "mm^2" if spatial_dims == 2 else "mm^3"
        default = {f"{side}_size": Variable(unit=unit, structure=side) for side in self.structures}
        super().__init__(variables or {**default, "age": Variable(unit="years")}, batch_size, num_workers)
        self.size, self.subjects, self.spacing = size, subjects, [1.0] * spatial_dims
        self.frame = (size,) * spatial_dims

    def make_dataset(self, split: Split) -> BallDataset:
        return BallDataset(split, self.size, self.subjects, len(self.spacing))
