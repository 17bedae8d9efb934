"""What the page sends, checked; whatever is wrong is refused with a sentence."""

import base64
import json
import math
from typing import Any

from starlette.requests import Request

from segcft.app.opened_image import Question


class Refused(Exception):
    """What the page is told, with a status of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def question(given: dict[str, Any]) -> Question:
    """What was asked.

    Raises:
        Refused: If it is malformed.
    """
    do = given.get("do", [])
    if not isinstance(do, list) or not all(isinstance(each, str) for each in do):
        raise Refused(400, "do: a list of requests is needed")
    effect = given.get("effect", "total")
    if effect not in ("total", "direct"):
        raise Refused(400, f"effect {effect!r}: total or direct is needed")
    return Question(tuple(do), effect, bool(given.get("refined", True)), bool(given.get("particles", False)))


async def content(request: Request, limit: int, message: str) -> bytes:
    """Its bytes, which are no longer read once there are too many.

    Raises:
        Refused: With ``message``, if there are more than ``limit``.
    """
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit:
            raise Refused(413, message)
    return bytes(read)


async def body(request: Request) -> dict[str, Any]:
    """A question, as JSON.

    Raises:
        Refused: If it is none.
    """
    try:
        given = json.loads(await content(request, 2**16, "the question is too long"))
    except ValueError as error:
        raise Refused(400, "the question is no JSON") from error
    if not isinstance(given, dict):
        raise Refused(400, "the question is no JSON object")
    return given


def about(request: Request) -> dict[str, Any]:
    """What is known about an upload, from its header ``X-About``.

    Raises:
        Refused: If nothing is.
    """
    try:
        given = json.loads(base64.b64decode(request.headers.get("x-about", "")))
        if isinstance(given, dict) and isinstance(given.get("parents") or {}, dict):
            return given
    except ValueError:
        pass
    raise Refused(400, "X-About: what is known about the file is needed, as JSON in base64")


def numbers(given: dict[str, Any], name: str, count: int | None = None) -> list[float] | None:
    """A list of numbers, if there is one.

    Raises:
        Refused: If it is none, or of another length.
    """
    values = given.get(name)
    if not values:
        return None
    if not isinstance(values, list) or (count is not None and len(values) != count):
        raise Refused(400, f"{name}: a list of {count or 'some'} numbers is needed")
    return [number(each, name) for each in values]


def number(value: Any, name: str) -> float:
    """A finite one.

    Raises:
        Refused: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(400, f"{name} = {value!r} is not a number")
    return float(value)
