"""Data modules: one file per data set."""
