"""The image mechanism: a hierarchical variational autoencoder (HVAE)."""

from segcft.hvae.causal_gen import ParityHVAE
from segcft.hvae.hvae import HVAE, Stage
from segcft.hvae.likelihoods import Gaussian

__all__ = ["HVAE", "Gaussian", "ParityHVAE", "Stage"]
