"""``segcft prepare`` and ``segcft inspect``: a data set read once, and kept for fast reading."""
