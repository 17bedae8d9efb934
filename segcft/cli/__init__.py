"""Command line: ``segcft`` and its launcher."""
