"""segcft: structure-specific counterfactual medical images."""
