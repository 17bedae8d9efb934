"""Image grids and deformations: resizing, the position of the model's frame in an image, and flows."""
