"""What every data set shares: the data module, sources, loaders, splits, transforms."""
