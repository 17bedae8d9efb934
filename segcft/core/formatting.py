"""Formatting of numbers, units and names for output that people read."""

import math
import textwrap
from collections.abc import Iterable
from difflib import get_close_matches

NO_BREAK = "\N{NO-BREAK SPACE}"  # between groups of three digits, and before a unit


def number(value: float, decimals: int | None = None) -> str:
    """Format with three significant digits (all digits before the decimal point), without an exponent.

    Args:
        value: The number.
        decimals: Digits after the decimal point at most, instead of three significant ones.

    >>> number(17712.4).replace(NO_BREAK, " "), number(0.21349), number(-3.0), number(0.00001234)
    ('17 712', '0.213', '-3', '0.0000123')
    >>> number(121.637, 1), number(120.0, 1), number(-0.01, 1), number(float("nan"))
    ('121.6', '120', '0', '-')
    """
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    digits = resolving(value) if decimals is None else decimals
    text = f"{value:,.{digits}f}".replace(",", NO_BREAK)
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def resolving(span: float) -> int:
    """Decimals that show a hundredth of ``span`` or less, at most 12.

    >>> resolving(20_000), resolving(90), resolving(6.3), resolving(0.3)
    (0, 1, 2, 3)
    """
    return min(12, max(0, 2 - math.floor(math.log10(abs(span))))) if span else 0


def printed_unit(text: str) -> str:
    """A unit with superscript exponents.

    >>> printed_unit("mm^2")
    'mm²'
    """
    return text.replace("^2", "²").replace("^3", "³")


def quantity(value: float, units: str, decimals: int | None = None) -> str:
    """A number, as ``number`` formats it, and its unit.

    >>> quantity(19885.2, "mm^2").replace(NO_BREAK, " ")
    '19 885 mm²'
    """
    text = number(value, decimals)
    return f"{text}{NO_BREAK}{printed_unit(units)}" if units else text


def question(name: str, before: float, target: float, units: str) -> str:
    """Label of a row of images: intervention, factual value and target, wrapped to 26 characters.

    >>> print(question("proximal_calcified_plaque_area", 3.21, 2.02, "mm^2").replace(NO_BREAK, " "))
    do(proximal calcified
    plaque area)
    3.21 to 2.02 mm²
    """
    asked = textwrap.fill(f"do({name.replace('_', ' ')})", 26)
    return f"{asked}\n{number(before)} to {quantity(target, units)}"


def meant(word: str, known: Iterable[str]) -> str:
    """``"; did you mean NAME?"``, or empty if no known name is similar.

    >>> meant("reprot", ["report", "prepare"])
    '; did you mean report?'
    """
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def one_line(error: BaseException, longest: int = 500) -> str:
    """An error's message in one line; libraries quote files and arrays over many."""
    return shortened(" ".join(str(error).split()), longest)


def shortened(text: str, longest: int) -> str:
    """A text without its middle where it is too long.

    >>> shortened("abcdefghij", 6)
    'abc ... hij'
    """
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
