"""Opened images: each has a name that cannot be guessed, and is forgotten after a while."""

import secrets
import tempfile
import time
from dataclasses import dataclass, field

from segcft.app.opened_image import Subject
from segcft.app.requests import Refused


@dataclass
class Session:
    """One opened image of one visitor; its folder, if it was uploaded, goes with it."""

    subject: Subject
    folder: "tempfile.TemporaryDirectory[str] | None" = None
    used: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        """Forget the upload."""
        if self.folder is not None:
            self.folder.cleanup()


class Sessions:
    """Those that are open.

    Args:
        most: How many; one more closes the one that was not used for longest.
        idle: Seconds after which one is closed.
    """

    def __init__(self, most: int = 32, idle: float = 3600.0) -> None:
        self.most, self.idle = most, idle
        self._open: dict[str, Session] = {}

    def add(self, session: Session) -> str:
        """A name for it, that nobody can guess."""
        self.tidy()
        while len(self._open) >= self.most:
            self.close(min(self._open, key=lambda name: self._open[name].used))
        name = secrets.token_urlsafe(24)
        self._open[name] = session
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
        if session := self._open.pop(name, None):
            session.close()

    def tidy(self, everyone: bool = False) -> None:
        """Close those that were idle for too long, or all."""
        late = time.monotonic() - self.idle
        for name in [name for name, session in self._open.items() if everyone or session.used < late]:
            self.close(name)
