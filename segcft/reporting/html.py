"""Names and pictures as safe HTML."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from segcft.reporting.load_results import TRUTH, UNCHANGED

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
REFERENCES = {UNCHANGED: "unchanged image", TRUTH: "true counterfactual"}


def label(name: str) -> str:
    """A method's or variable's name for people, escaped.

    >>> label("seg_cft"), label("identity"), label("<b>")
    ('seg cft', 'unchanged image', '&lt;b&gt;')
    """
    return escape(plain(name))


def plain(name: str) -> str:
    """The same for pictures, as it is."""
    return REFERENCES.get(name, name.replace("_", " "))


def sentence(text: str) -> str:
    """Escaped text whose names between backquotes are bold."""
    parts = text.split("`")
    return "".join(f"<b>{label(part)}</b>" if place % 2 else escape(part) for place, part in enumerate(parts))


def embedded(path: Path) -> str:
    """A PNG file as an address that needs no file."""
    return _address(path.read_bytes())


def png(pixels: Any, palette: bytes | None = None) -> str:
    """Grey levels, or indices of a palette, (H, W) uint8, as an address."""
    from PIL import Image  # lazily, as matplotlib elsewhere

    image = Image.fromarray(np.ascontiguousarray(pixels))
    if palette is not None:
        image = image.convert("L")
        image.putpalette(palette)
    kept = io.BytesIO()
    image.save(kept, format="PNG", optimize=True)
    return _address(kept.getvalue())


def _address(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
