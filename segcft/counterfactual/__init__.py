"""Abduction, action, prediction: from an image and a question to the edit that answers it, at any resolution."""

from segcft.counterfactual.model import CounterfactualModel
from segcft.counterfactual.prediction import Deformed, Gated, Sliding, Standard, Transported, Warped

__all__ = ["CounterfactualModel", "Deformed", "Gated", "Sliding", "Standard", "Transported", "Warped"]
