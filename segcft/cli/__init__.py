"""Command line: ``segcft`` and ``lightning run``."""
