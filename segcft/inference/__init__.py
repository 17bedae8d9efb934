"""A trained model on files of a user: ``segcft counterfactual`` and ``segcft export``."""
