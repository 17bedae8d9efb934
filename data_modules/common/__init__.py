"""Base classes of all data sets: data module, sources, loaders, splits and transforms."""
