"""Formatting of numbers, units and names for output that people read."""

import textwrap
from collections.abc import Iterable
from decimal import Decimal
from difflib import get_close_matches

NO_BREAK = "\N{NO-BREAK SPACE}"  # between groups of three digits, and before a unit


def number(value: float) -> str:
    """Format with three significant digits (all digits before the decimal point), without an exponent.

    >>> number(17712.4).replace(NO_BREAK, " "), number(0.21349), number(-3.0), number(0.00001234)
    ('17 712', '0.213', '-3', '0.0000123')
    """
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", NO_BREAK)
    text = f"{value:.3g}"
    return f"{Decimal(text):f}" if "e" in text else text


def printed_unit(text: str) -> str:
    """A unit with superscript exponents.

    >>> printed_unit("mm^2")
    'mm²'
    """
    return text.replace("^2", "²").replace("^3", "³")


def quantity(value: float, units: str) -> str:
    """A number and its unit.

    >>> quantity(19885.2, "mm^2").replace(NO_BREAK, " ")
    '19 885 mm²'
    """
    return f"{number(value)}{NO_BREAK}{printed_unit(units)}" if units else number(value)


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
