"""What a user writes after "what if": ``left_lung_area=+20%`` becomes a target in real units.

| written | means | |
|---|---|---|
| ``12000``, ``==-5`` | that value, in the variable's unit | absolute |
| ``+500``, ``-500`` | the factual value and that much | a sign is always a change; ``==`` writes a negative value |
| ``+20%``, ``-20%`` | the factual value and that share of it | ``20%`` is refused: it could be a value in % |
| ``q0.9`` | the value that nine of ten training subjects do not exceed | absolute |
| ``9000..12000`` | the factual value, moved into this range by as little as possible | a soft target |
| ``race=asian``, ``sex=male``, ``sex=1`` | a category by name, a binary variable by name or number | no changes |
| ``0.8:1.2:9`` | nine factors from 0.8 to 1.2 of the factual value | sweeps only |
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segcft.core.formatting import meant, printed_unit
from segcft.variables.variables import Parents, Values, Variable

NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
MOST = 1000  # steps of a sweep
ABSURD = 10.0  # widths of the training range beyond it


@dataclass(frozen=True)
class Request:
    """One variable of one intervention.

    Attributes:
        text: As it was written, ``name=value``.
        name: Variable.
        kind: ``value`` sets it, ``change`` adds to the factual value, ``factor`` multiplies it, ``range`` bounds it.
        number: In the variable's unit; a factor has none; the lower bound of a range.
        upper: The upper bound of a range.
    """

    text: str
    name: str
    kind: Literal["value", "change", "factor", "range"]
    number: float
    upper: float = math.inf

    def target(self, factual: Tensor) -> Tensor:
        """What the variable is set to, (B,), from its factual values (B,)."""
        if self.kind == "factor":
            return factual * self.number
        if self.kind == "range":
            return factual.clamp(self.number, self.upper)
        return torch.full_like(factual, self.number) if self.kind == "value" else factual + self.number


def parse(text: str, parents: Parents) -> Request:
    """``name=value`` -> a request.

    Raises:
        ValueError: Quoting the request, if it is malformed, names an unknown variable or asks the impossible of it.
    """
    name, variable, value = _split(text, parents)
    if variable.kind != "continuous":
        return Request(text, name, "value", _level(text, value, variable))
    value = "".join(value.split()).replace("\N{MINUS SIGN}", "-")  # as numbers are printed
    if found := re.fullmatch(rf"q({NUMBER})", value):
        return Request(text, name, "value", _quantile(text, float(found[1]), variable))
    if found := re.fullmatch(rf"(-?{NUMBER})\.\.(-?{NUMBER})", value):
        _check_possible(text, name, variable, _finite(text, found[2]))
        return _bounds(text, name, _finite(text, found[1]), _finite(text, found[2]))
    found = re.fullmatch(rf"(=?)([+-]?)({NUMBER})(%?)", value)
    if not found:
        raise ValueError(f"{text!r}: write {name}=+20%, {name}=+5 (a change) or {name}=5 (a value); {_unit(variable)}")
    absolute, sign, digits, percent = found.groups()
    if percent and (absolute or not sign):
        raise ValueError(
            f"{text!r}: a share needs a sign ({name}=+{digits}%), a value none of its unit ({name}={digits})"
        )
    number = _finite(text, sign + digits)
    if percent:
        return _factor(text, name, 1 + number / 100)
    if sign and not absolute:
        return Request(text, name, "change", number)
    _check_possible(text, name, variable, number)
    return Request(text, name, "value", number)


def sweep(text: str, parents: Parents) -> list[Request]:
    """``name=from:to:count`` -> requests for equally spaced factors of the factual value.

    Raises:
        ValueError: As in ``parse``.
    """
    name, variable, value = _split(text, parents)
    found = re.fullmatch(rf"({NUMBER}):({NUMBER}):(\d+)", value)
    if not found or not 2 <= int(found[3]) <= MOST or variable.kind != "continuous":
        raise ValueError(f"{text!r}: write {name}=0.8:1.2:9, factors from:to:count of a continuous variable")
    low, high, count = _finite(text, found[1]), _finite(text, found[2]), int(found[3])
    factors = [low + (high - low) * step / (count - 1) for step in range(count)]
    return [_factor(f"{name}={factor:.4g}x", name, factor) for factor in factors]


def once(requests: Sequence[Request]) -> dict[str, Request]:
    """Requests of one intervention by their variables.

    Raises:
        ValueError: If a variable is asked for twice.
    """
    by_name: dict[str, Request] = {}
    for request in requests:
        if request.name in by_name:
            raise ValueError(f"{request.text!r} contradicts {by_name[request.name].text!r}: one request a variable")
        by_name[request.name] = request
    return by_name


def targets(do: Mapping[str, Request | str | float | Tensor], factual: Values, parents: Parents) -> dict[str, Tensor]:
    """An intervention in real units, (B,) each.

    Args:
        do: Variable -> request, its text without the name (``"+20%"``), a value, or values (B,) with NaN for "not
            this subject".
        factual: All factual parents, (B,) each.
        parents: Variables that are known.

    Raises:
        ValueError: As in ``parse`` and ``refuse_absurd``.
    """
    result = {}
    for name, asked in do.items():
        parents[name]
        if isinstance(asked, str):
            asked = parse(f"{name}={asked}", parents)
        if isinstance(asked, Request):
            result[name] = asked.target(factual[name])
        else:
            result[name] = torch.as_tensor(asked).to(factual[name]).expand(factual[name].shape)
        refuse_absurd(name, result[name], parents, factual[name])
    return result


def refuse_absurd(name: str, values: Tensor, parents: Parents, factual: Tensor | None = None) -> None:
    """Refuse values that no image could have: answers to them would look like answers and mean nothing.

    Args:
        name: Variable.
        values: Its values in real units, (B,); NaN for none.
        parents: Variables that are known.
        factual: Values that it starts from, (B,): a small change of an unusual value is not absurd.

    Raises:
        ValueError: If a value is infinite, a size is not above 0, or a value lies more than ``ABSURD`` widths of the
            training range beyond it and beyond the factual value.
    """
    variable = parents[name]
    variable.check_possible(name, values)
    room = ABSURD * (variable.high - variable.low) if variable.kind == "continuous" else 0.0
    wrong = values.isinf()
    if room > 0:
        start = values.new_tensor(variable.low) if factual is None else factual
        wrong = (
            wrong | (values < start.clamp(max=variable.low) - room) | (values > start.clamp(min=variable.high) + room)
        )
    if wrong.any():
        value = float(values[wrong][0])
        raise ValueError(f"{name} = {value:g} is absurd: in training it lay between {_range(variable)}")


def beyond(values: Values, parents: Parents) -> list[str]:
    """One sentence for every value that leaves the training range."""
    return [
        f"{name} = {parents[name].shown(float(value[0]))}, but in training it lay between {_range(parents[name])}"
        for name, value in values.items()
        if ((value < parents[name].low) | (value > parents[name].high)).any()
    ]


def _split(text: str, parents: Parents) -> tuple[str, Variable, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise ValueError(f"{text!r} is no request: write NAME=VALUE, such as {parents.names[0]}=+20%")
    try:
        return name.strip(), parents[name.strip()], value.strip()
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _level(text: str, value: str, variable: Variable) -> float:
    """The number of a category or of a binary value."""
    names = variable.categories or ("0", "1")
    known = [name.casefold() for name in names]
    if value.casefold() in known:
        return float(known.index(value.casefold()))
    if variable.kind == "binary" and value in ("0", "1"):
        return float(value)
    raise ValueError(f"{text!r}: one of {', '.join(names)} is needed{meant(value, names)}")


def _check_possible(text: str, name: str, variable: Variable, number: float) -> None:
    try:
        variable.check_possible(name, torch.tensor([number]))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _factor(text: str, name: str, factor: float) -> Request:
    if factor <= 0:
        raise ValueError(f"{text!r}: nothing would be left; more than -100% is needed")
    return Request(text, name, "factor", factor)


def _quantile(text: str, share: float, variable: Variable) -> float:
    try:
        return variable.quantile(share)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _bounds(text: str, name: str, low: float, high: float) -> Request:
    if low > high:
        raise ValueError(f"{text!r}: a range goes from the smaller to the larger value")
    return Request(text, name, "range", low, high)


def _finite(text: str, digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{text!r}: the number is too large")
    return number


def _range(variable: Variable) -> str:
    return f"{variable.shown(variable.low)} and {variable.shown(variable.high)}"


def _unit(variable: Variable) -> str:
    return f"its unit is {printed_unit(variable.unit)}" if variable.unit else "it has no unit"
