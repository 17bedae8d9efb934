"""The file of an evaluation's pictures: a few subjects while one variable at a time goes through its range."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segcft.core.atomic_files import staged

FILE = "sweeps.npz"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sweeps:
    """M methods, V variables, N subjects, T steps, K structures; a volume shows its middle slice.

    Attributes:
        methods: Names, ``true_counterfactual`` first where it is known.
        variables: Names, (V,).
        units: Of the variables.
        structures: Names, (K,).
        subjects: Their places in the split, (N,).
        targets: What was asked, (V, T).
        values: Factual labels, (V, N).
        measured: What the evaluator finds, (M, V, N, T).
        factual: Images, (N, H, W), 0 to 255 over the image's range of 2.
        factual_outlines: The evaluator's probabilities, (N, K, H, W), 0 to 255.
        frames: Counterfactual images, (M, V, N, T, H, W).
        outlines: Their probabilities, (M, V, N, T, K, H, W).
    """

    methods: Array
    variables: Array
    units: Array
    structures: Array
    subjects: Array
    targets: Array
    values: Array
    measured: Array
    factual: Array
    factual_outlines: Array
    frames: Array
    outlines: Array

    def write(self, path: Path) -> None:
        """Keep all of it in one NPZ, whole or not at all."""
        with staged(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, path: Path) -> "Sweeps":
        """Open what ``write`` wrote.

        Raises:
            ValueError: If the file is damaged or lacks a part.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls(**{field.name: content[field.name] for field in fields(cls)})
        except Exception as error:  # of zipfile, zlib, numpy
            raise ValueError(f"{path} holds no sweeps: {error}; run segcft evaluate again") from error
