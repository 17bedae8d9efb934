"""Errors of the server in its log, which nobody can fill by causing the same one again and again."""

import sys
import time
import traceback

PAUSE = 60.0  # seconds


class ErrorLog:
    """Writes every error once a minute: those of one type, raised in one line, are the same."""

    def __init__(self) -> None:
        self._written: dict[tuple[str, str, int], float] = {}

    def write(self, error: Exception) -> None:
        """The traceback, to standard error."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        key = (type(error).__name__, last.filename, last.lineno or 0)
        now = time.monotonic()
        if now - self._written.get(key, -PAUSE) >= PAUSE:
            self._written[key] = now
            traceback.print_exception(error, file=sys.stderr)
