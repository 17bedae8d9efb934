"""Findings of CheXpert's labeller, as used in CheXpert and MIMIC-CXR."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segcft.io.csv_tables import numbers, refuse

FINDINGS = {
    name.lower().replace(" ", "_"): name
    for name in (
        "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
        "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
        "Support Devices",
    )
}  # fmt: skip


def findings(frame: pd.DataFrame, column: str, path: Path) -> NDArray[np.float64]:
    """One column of CheXpert labels as 0, 1 or NaN (uncertain or blank), (N,).

    Raises:
        ValueError: If a cell is anything else.
    """
    values = numbers(frame, column, path, blank=True)
    refuse(frame, column, path, ~np.isin(values, [-1, 0, 1]) & ~np.isnan(values), "1, 0, -1 or blank")
    return np.where(values == -1, np.nan, values)
