"""Connections of the server: limited in number, and closed when the other side keeps them waiting."""

import asyncio
import resource

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from segcft.app.addresses import network
from segcft.app.users import User, heaviest

MOST = 512  # connections, and at most half of the files that the process may open
HEADERS = 10.0  # seconds until a request's headers have come
ANSWER = 30.0  # seconds that the other side may stop reading an answer
REST = 1.0  # seconds until a connection is closed on which the rest of an answered request is still coming
CLOSED = 10  # silent connections at most that are closed in a tenth of a second
STOP = 10  # seconds for the last answers when the server stops


class Connection(H11Protocol):
    """A connection; whoever waits is told apart: the other side for an answer, or the server for a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close another one that keeps the server waiting if there are too many."""
        super().connection_made(transport)
        self.since, self.paused, self.user = self.loop.time(), float("inf"), User(network(self.client))
        if len(self.connections) > most():
            half_open = [each for each in self.connections if isinstance(each, Connection) and each.owes]
            loser = heaviest([(each.user, 1) for each in half_open])
            oldest = min((each for each in half_open if each.user == loser), key=lambda each: each.since)
            oldest.transport.abort()
            self.connections.discard(oldest)

    @property
    def owes(self) -> bool:
        """Whether the other side has to send the rest of a request, or the next one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def on_response_complete(self) -> None:
        """The next request is due; of this one, nothing is read any more."""
        self.since = self.loop.time()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self.flow.pause_reading()
            self.loop.call_later(REST, self.transport.abort)

    def pause_writing(self) -> None:
        """The other side reads more slowly than is written."""
        self.paused = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It reads."""
        self.paused = float("inf")
        super().resume_writing()

    def shutdown(self) -> None:
        """Wait for no request when the server stops, but for answers."""
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
            self.transport.abort()
        else:
            super().shutdown()

    @property
    def overdue(self) -> bool:
        """Whether the other side has been silent for too long; bodies have a limit of their own."""
        now, idle = self.loop.time(), self.cycle is None or self.cycle.response_complete
        return (idle and now - self.since > HEADERS) or now - self.paused > ANSWER


class Server(uvicorn.Server):
    """Closes connections that keep it waiting."""

    async def on_tick(self, counter: int) -> bool:
        """Called every tenth of a second; closes a few, for all at once would hold up answers."""
        late = [each for each in self.server_state.connections if isinstance(each, Connection) and each.overdue]
        for each in late[:CLOSED]:
            each.transport.abort()
        return await super().on_tick(counter)


def server(app: ASGIApp, local: bool) -> Server:
    """A server of HTTP/1.1 that writes nothing into its log about what strangers send.

    Args:
        app: See ``create``.
        local: Whether it is bound to this computer; only then no proxy can tell whose request it hands on.
    """
    return Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="asyncio",
            proxy_headers=not local,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP,
        )
    )


def most() -> int:
    """Connections that may be open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if files == resource.RLIM_INFINITY else min(MOST, files // 2)
