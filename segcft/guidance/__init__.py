"""Guidance of fine-tuning: judges (segmentor, regressor) that measure counterfactuals, and the losses."""

from segcft.guidance.external_segmentor import ExternalSegmentor
from segcft.guidance.guidance import (
    CoTrainedGuidance,
    EnsembleGuidance,
    NoGuidance,
    RegressorGuidance,
    SegmentorGuidance,
)
from segcft.guidance.imported_networks import ImportedNetwork
from segcft.guidance.losses import ElboConstraint

__all__ = [
    "CoTrainedGuidance",
    "ElboConstraint",
    "EnsembleGuidance",
    "ExternalSegmentor",
    "ImportedNetwork",
    "NoGuidance",
    "RegressorGuidance",
    "SegmentorGuidance",
]
