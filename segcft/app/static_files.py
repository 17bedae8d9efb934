"""Files of the page."""

from importlib.resources import files


def text(name: str) -> str:
    """A file of the page."""
    return files("segcft.app").joinpath(name).read_text(encoding="utf-8")
