"""What the page sends, checked; whatever is wrong is refused with a sentence."""

import asyncio
import base64
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import ClientDisconnect, Request

from segcft.app.opened_image import Question
from segcft.app.users import User, heaviest, user

JSON_LIMIT = 2**16  # bytes of a question
DEPTH = 4  # levels of lists and objects in it
BRACKETS = 1000  # that open a list or an object in its text
DEEP = f"it is nested more than {DEPTH} levels deep, or holds more than {BRACKETS} lists"
REQUESTS, LENGTH = 64, 200  # of one question, characters of one of them
GRACE, SLOWEST = 10.0, 50_000  # a body may take these seconds, and one more for so many bytes
BODIES = 128  # that are received at the same time


class Refused(Exception):
    """What the page is told, with a status of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Bodies:
    """Bodies that are being received.

    Args:
        most: How many. One more ends the oldest one of the user who sends most of them.
    """

    def __init__(self, most: int = BODIES) -> None:
        self.most = most
        self._open: list[tuple[User, asyncio.Timeout]] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._open)

    @contextmanager
    def counted(self, user: User, clock: asyncio.Timeout) -> Iterator[None]:
        """Receive one within; ``clock`` ends it."""
        own = (user, clock)
        self._open.append(own)
        if len(self._open) > self.most:
            going = [(each, timer) for each, timer in self._open if not timer.expired()]
            loser = heaviest([(each, 1) for each, _ in going])
            next(timer for each, timer in going if each == loser).reschedule(0)
        try:
            yield
        finally:
            self._open = [each for each in self._open if each is not own]


bodies = Bodies()


def question(given: dict[str, Any]) -> Question:
    """What was asked.

    Raises:
        Refused: If it is malformed.
    """
    do = given.get("do", [])
    if not isinstance(do, list) or not all(isinstance(each, str) for each in do):
        raise Refused(400, "do: a list of requests is needed")
    if len(do) > REQUESTS or any(len(each) > LENGTH for each in do):
        raise Refused(400, f"do: at most {REQUESTS} requests of {LENGTH} characters are answered")
    effect = given.get("effect", "total")
    if effect not in ("total", "direct"):
        raise Refused(400, f"effect {_short(effect)}: total or direct is needed")
    return Question(tuple(do), effect, bool(given.get("refined", True)), bool(given.get("particles", False)))


async def receive(request: Request, limit: int, message: str, write: Callable[[bytes], Any]) -> int:
    """Hand the bytes of a body on as they come, until there are too many or they come too slowly.

    Args:
        request: Whose body it is.
        limit: Bytes.
        message: What is said if there are more.
        write: Called with every piece.

    Returns:
        How many bytes there were.

    Raises:
        Refused: If there are more than ``limit``, they are slower than ``SLOWEST``, too many bodies are received at the
            same time, or the connection was closed.
    """
    if _announced(request) > limit:
        raise Refused(413, message)
    size, began = 0, asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(GRACE) as clock:
            with bodies.counted(user(request), clock):
                async for piece in request.stream():
                    size += len(piece)
                    if size > limit:
                        raise Refused(413, message)
                    write(piece)
                    clock.reschedule(began + GRACE + size / SLOWEST)
    except TimeoutError as error:
        raise Refused(408, "the request came too slowly, or too many came at the same time") from error
    except ClientDisconnect as error:
        raise Refused(400, "the connection was closed before the request was complete") from error
    return size


async def body(request: Request) -> dict[str, Any]:
    """A question, as JSON.

    Raises:
        Refused: If it is none.
    """
    read = bytearray()
    await receive(request, JSON_LIMIT, "the question is too long", read.extend)
    try:
        given = parsed(bytes(read))
    except ValueError as error:
        raise Refused(400, f"the question is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise Refused(400, "the question is no JSON object")
    return given


def parsed(text: bytes) -> Any:
    """A value of JSON of a few levels, with finite numbers and text that can be written.

    Raises:
        ValueError: If it is none.
    """
    if text.count(b"[") + text.count(b"{") > BRACKETS:
        raise ValueError(DEEP)
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise ValueError(DEEP) from error
    except ValueError as error:
        raise ValueError("it is malformed, or holds a number or a character that JSON does not know") from error
    if _depth(value, DEPTH) > DEPTH:
        raise ValueError(DEEP)
    return value


def about(request: Request) -> dict[str, Any]:
    """What is known about an upload, from its header ``X-About``.

    Raises:
        Refused: If nothing is.
    """
    try:
        given = parsed(base64.b64decode(request.headers.get("x-about", "")))
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
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond floating point
        pass
    raise Refused(400, f"{name} = {_short(value)} is not a number that can be used")


def _announced(request: Request) -> int:
    """Length of the body that is to come, 0 if it is unknown."""
    given = request.headers.get("content-length", "")
    return int(given) if given.isdecimal() and len(given) < 20 else 0


def _depth(value: Any, most: int) -> int:
    """Levels of lists and objects; not counted beyond ``most`` + 1."""
    if not isinstance(value, dict | list) or most < 0:
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(each, most - 1) for each in inner), default=0)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
