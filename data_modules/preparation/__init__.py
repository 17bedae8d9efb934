"""``segcft prepare`` and ``segcft inspect``: a data set read once, and kept for fast reading."""

from data_modules.preparation.prepared import Prepared

__all__ = ["Prepared"]
