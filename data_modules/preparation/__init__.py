"""``segcft prepare`` and ``segcft inspect``: caches of preprocessed data sets for fast reading."""
