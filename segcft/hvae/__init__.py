"""The image mechanism: a hierarchical variational autoencoder (HVAE)."""

from segcft.hvae.causal_gen import ParityHVAE
from segcft.hvae.hvae import HVAE
from segcft.hvae.likelihoods import Gaussian
from segcft.hvae.stages import Stage

__all__ = ["HVAE", "Gaussian", "ParityHVAE", "Stage"]
