"""Grids and deformations: resizing, the model's frame in an image, flows."""
