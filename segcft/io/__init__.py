"""Reading and writing image files and CSV tables, with NumPy only (no torch)."""
