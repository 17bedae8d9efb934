"""Opened images: each has a name that cannot be guessed, and is forgotten after a while."""

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from segcft.app.opened_image import Subject
from segcft.app.requests import Refused
from segcft.app.users import User, heaviest

ROOM = 2**31  # bytes of all opened images together
LEAST = 2**22  # bytes that count for an opened image besides its pixels
NOBODY = User("")


@dataclass
class Session:
    """One opened image of one visitor; its folder, if it was uploaded, goes with it.

    Attributes:
        subject: The image.
        folder: Of the upload.
        user: Who opened it.
        used: When it was asked about for the last time, s.
    """

    subject: Subject
    folder: "tempfile.TemporaryDirectory[str] | None" = None
    user: User = NOBODY
    used: float = field(default_factory=time.monotonic)
    _in_use: int = 0
    _closed: bool = False

    @property
    def size(self) -> int:
        """Bytes that it takes, roughly: levels and image in float32, and the file."""
        file = self.subject.file
        return LEAST + 8 * self.subject.picture.levels.size + (0 if file is None else file.stat().st_size)

    @contextmanager
    def kept(self) -> Iterator[Subject]:
        """Its file stays for as long as an answer needs it, even if the image is closed meanwhile."""
        self._in_use += 1
        try:
            yield self.subject
        finally:
            self._in_use -= 1
            self._remove_unused()

    def close(self) -> None:
        """Forget the upload."""
        self._closed = True
        self._remove_unused()

    def _remove_unused(self) -> None:
        if self._closed and not self._in_use and self.folder is not None:
            self.folder.cleanup()


class Sessions:
    """Those that are open.

    Args:
        room: Bytes of all together. If one more needs some, the user who holds most loses the image that was not used
            for longest.
        idle: Seconds after which one is closed.
    """

    def __init__(self, room: int = ROOM, idle: float = 3600.0) -> None:
        self.room, self.idle = room, idle
        self._open: dict[str, Session] = {}
        self._sizes: dict[str, int] = {}

    def add(self, session: Session) -> str:
        """A name for it, that nobody can guess.

        Raises:
            Refused: If it needs so much that it would take the room of users who hold less.
        """
        self.tidy()
        name, size = secrets.token_urlsafe(24), session.size
        while sum(self._sizes.values()) + size > self.room:
            held = [(self._open[each].user, self._sizes[each]) for each in self._open]
            loser = heaviest([*held, (session.user, size)])
            names = [each for each in self._open if self._open[each].user == loser]
            if not names:
                raise Refused(503, "there is no room for an image of this size now: try again later, or a smaller one")
            self.close(min(names, key=lambda each: self._open[each].used))
        self._open[name], self._sizes[name] = session, size
        return name

    def get(self, name: str) -> Session:
        """One that is open.

        Raises:
            Refused: If it is not.
        """
        self.tidy()
        if name not in self._open:
            raise Refused(410, "this image was closed after a while: open it again")
        session = self._open[name]
        session.used = time.monotonic()
        return session

    def close(self, name: str) -> None:
        """One that may be open."""
        self._sizes.pop(name, None)
        if session := self._open.pop(name, None):
            session.close()

    def tidy(self, everyone: bool = False) -> None:
        """Close those that were idle for too long, or all."""
        late = time.monotonic() - self.idle
        for name in [name for name, session in self._open.items() if everyone or session.used < late]:
            self.close(name)
