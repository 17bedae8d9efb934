"""Figures of tensors, and panels of one answer."""
