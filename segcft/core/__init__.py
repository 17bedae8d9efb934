"""Shared basics: recipes, checkpoints, atomic file writes, distributed processes and random states."""
