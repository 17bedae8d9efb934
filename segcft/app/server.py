"""The app over HTTP: a page, and JSON for its sliders.

Every opened image is a session with a name that cannot be guessed; a question names its session and nothing is shared
between sessions. The model answers one question at a time, and its users in turns.
"""

import asyncio
import base64
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from segcft.app.access_control import Guard
from segcft.app.downloads import download
from segcft.app.error_log import ErrorLog
from segcft.app.fair_queue import FairQueue
from segcft.app.requests import Refused, about, body, number, numbers, question, receive
from segcft.app.responses import describe, introduce, show
from segcft.app.service import CounterfactualService
from segcft.app.sessions import Session, Sessions
from segcft.app.static_files import text
from segcft.app.users import user

SPOOL = 2**18  # bytes of an upload that are kept in memory, rather than on disk, until it is complete
UPLOAD = "upload"  # name of an upload in its folder
READERS = 2  # uploads that are read at once
TIDY = 30.0  # seconds between two looks for images that were idle for too long
STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
Result = TypeVar("Result")


class App:
    """Routes of the page.

    Args:
        service: That answers.
        title: Of the page.
        upload_limit: Bytes of an upload.
        sessions: Where they are kept.
    """

    def __init__(
        self, service: CounterfactualService, title: str, upload_limit: int, sessions: Sessions | None = None
    ) -> None:
        self.service, self.title, self.upload_limit = service, title, upload_limit
        self.sessions = sessions or Sessions()
        self._queue, self._readers, self._errors = FairQueue(), FairQueue(READERS), ErrorLog()

    def routes(self) -> list[Route]:
        """Of Starlette."""
        posts: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/open": self.open, "/upload": self.upload, "/ask": self.ask, "/download": self.download,
            "/close": self.close,
        }  # fmt: skip
        pages = [Route("/", _file("page.html", "text/html"))]
        pages += [Route(f"/{name}", _file(name, kind)) for name, kind in STATIC.items()]
        pages += [Route("/model", self._safely(self.model))]
        return pages + [Route(path, self._safely(handler), methods=["POST"]) for path, handler in posts.items()]

    async def model(self, request: Request) -> Response:
        """What may be asked, and of which cases."""
        return JSONResponse(await self._queued(request, lambda: describe(self.service, self.title, self.upload_limit)))

    async def open(self, request: Request) -> Response:
        """A case."""
        name = str((await body(request)).get("case", ""))
        subject = await self._queued(request, lambda: self.service.open_case(name))
        return await self._begun(request, Session(subject, user=user(request)))

    async def upload(self, request: Request) -> Response:
        """A file, as the body; its name and what is known about it in the header ``X-About``, as JSON in base64."""
        told = about(request)
        name = Path(str(told.get("name", ""))).name[-255:]  # no file system has longer ones
        window, spacing = numbers(told, "window", 2), numbers(told, "spacing")
        given = {variable: number(value, variable) for variable, value in dict(told.get("parents") or {}).items()}
        levels = None if window is None else (window[0], window[1])
        with tempfile.SpooledTemporaryFile(SPOOL) as received:
            await self._received(request, received, name)
            folder = await self._queued(request, lambda: _stored(received), self._readers)
        file = Path(folder.name) / UPLOAD
        try:
            picture = await self._queued(request, lambda: self.service.read(file, name, levels), self._readers)
            opening = partial(self.service.open_picture, picture, file, name, given, levels, spacing)
            session = Session(await self._queued(request, opening), folder, user(request))
            return await self._begun(request, session)
        except BaseException:
            folder.cleanup()
            raise

    async def ask(self, request: Request) -> Response:
        """A question, and everything that is shown of its answer."""
        given = await body(request)
        asked, index, seen = question(given), given.get("slice"), given.get("seen", False)
        began = time.perf_counter()
        with self._session(given).kept() as subject:
            told = await self._queued(request, lambda: show(self.service.ask(subject, asked), index, seen))
        told["seconds"] = round(time.perf_counter() - began, 3)
        return JSONResponse(told)

    async def download(self, request: Request) -> Response:
        """A file of an answer."""
        given = await body(request)
        asked, kind = question(given), str(given.get("kind", ""))
        with self._session(given).kept() as subject:
            name, made = await self._queued(request, lambda: download(self.service.ask(subject, asked), kind))
        return JSONResponse({"name": name, "content": base64.b64encode(made).decode()})

    async def close(self, request: Request) -> Response:
        """Forget an image."""
        self.sessions.close(str((await body(request)).get("session", "")))
        return JSONResponse({})

    async def tidy(self) -> None:
        """Close images that were idle for too long, whether anybody asks or not; never ends."""
        while True:
            await asyncio.sleep(TIDY)
            self.sessions.tidy()

    async def _received(self, request: Request, target: IO[bytes], name: str) -> None:
        """Write the body into a file as it comes."""
        limit = f"{self.upload_limit / 2**20:g} MB, which is the limit here (--upload-limit)"
        size = await receive(request, self.upload_limit, f"the file is larger than {limit}", target.write)
        if not size:
            raise Refused(400, f"{name or 'the file'} is empty")
        target.seek(0)

    def _session(self, given: dict[str, Any]) -> Session:
        return self.sessions.get(str(given.get("session", "")))

    async def _begun(self, request: Request, session: Session) -> Response:
        told = await self._queued(request, lambda: introduce(session.subject))
        return JSONResponse({"session": self.sessions.add(session), **told})

    async def _queued(self, request: Request, work: Callable[[], Result], queue: FairQueue | None = None) -> Result:
        """The result of ``work``, when it is the turn of who asked; the model's turn unless there is another queue."""
        return await (queue or self._queue).run(user(request), work, request.is_disconnected)

    def _safely(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Errors become sentences."""

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except Refused as refusal:
                return JSONResponse({"error": str(refusal)}, refusal.status)
            except ValueError as error:
                return JSONResponse({"error": str(error)}, 400)
            except MemoryError:
                return JSONResponse({"error": "that is too large for this computer's memory"}, 413)
            except asyncio.CancelledError:
                return JSONResponse({"error": "the server is being stopped"}, 503)
            except Exception as error:
                self._errors.write(error)
                return JSONResponse({"error": "something went wrong; the server's log says what"}, 500)

        return answered


def create(app: App, token: str | None, local: bool) -> ASGIApp:
    """Everything behind the connections; see ``Guard`` and ``connections.server``."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        timer = asyncio.create_task(app.tidy())
        yield
        timer.cancel()
        app.sessions.tidy(everyone=True)

    return Guard(Starlette(routes=app.routes(), lifespan=lifespan), token, local)


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def sent(request: Request) -> Response:
        return Response(text(name), media_type=kind)

    return sent


def _stored(received: IO[bytes]) -> "tempfile.TemporaryDirectory[str]":
    """A folder with what was received."""
    folder = tempfile.TemporaryDirectory(prefix="segcft-", ignore_cleanup_errors=True)
    with Path(folder.name, UPLOAD).open("wb") as target:
        shutil.copyfileobj(received, target)
    return folder
