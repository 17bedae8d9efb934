"""Image files and tables, read and written; no torch in here."""
