"""Who asks, as far as a server can tell: an address and, of several people behind one address, a random cookie."""

import re
import secrets
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from starlette.requests import HTTPConnection

from segcft.app.addresses import network

VISITOR = "segcft_visitor"  # name of the cookie


class User(NamedTuple):
    """Whose share of the server is counted together.

    Attributes:
        address: See ``network``.
        visitor: Value of the cookie that the page sets; empty without one.
    """

    address: str
    visitor: str = ""


def new_visitor() -> str:
    """A value of the cookie."""
    return secrets.token_urlsafe(12)


def user(request: HTTPConnection) -> User:
    """Who sent a request; a cookie that ``new_visitor`` cannot have made counts as none."""
    given = request.cookies.get(VISITOR, "")
    return User(network(request.scope.get("client")), given if re.fullmatch(r"[\w-]{16}", given, re.ASCII) else "")


def heaviest(held: Iterable[tuple[User, float]]) -> User:
    """Who has to give something back: of the address that holds most, the visitor who does.

    >>> few, many = User("192.0.2.1"), User("192.0.2.2", "a")
    >>> heaviest([(few, 2), (many, 1), (many._replace(visitor="b"), 2)]).visitor
    'b'
    """
    addresses, users = Counter[str](), Counter[User]()
    for each, weight in held:
        addresses[each.address] += weight  # type: ignore[assignment]
        users[each] += weight  # type: ignore[assignment]
    address = max(addresses, key=addresses.__getitem__)
    return max((each for each in users if each.address == address), key=users.__getitem__)
