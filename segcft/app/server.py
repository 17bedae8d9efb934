"""The app over HTTP: a page, and JSON for its sliders.

Every opened image is a session with a name that cannot be guessed; a question names its session and nothing is shared
between sessions. The model answers one question at a time, in the order in which they came.
"""

import asyncio
import base64
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from segcft.app.access_control import Guard
from segcft.app.downloads import download
from segcft.app.opened_image import Subject
from segcft.app.requests import Refused, about, body, content, number, numbers, question
from segcft.app.responses import describe, introduce, show
from segcft.app.service import CounterfactualService
from segcft.app.sessions import Session, Sessions
from segcft.app.static_files import text

QUEUE = 64  # questions that may wait
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
        self._worker, self._readers, self._waiting = ThreadPoolExecutor(1), ThreadPoolExecutor(2), 0

    def routes(self) -> list[Route]:
        """Of Starlette."""
        posts: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/open": self.open, "/upload": self.upload, "/ask": self.ask, "/download": self.download,
            "/close": self.close,
        }  # fmt: skip
        pages = [Route("/", _file("page.html", "text/html"))]
        pages += [Route(f"/{name}", _file(name, kind)) for name, kind in STATIC.items()]
        pages += [Route("/model", _safely(self.model))]
        return pages + [Route(path, _safely(handler), methods=["POST"]) for path, handler in posts.items()]

    async def model(self, request: Request) -> Response:
        """What may be asked, and of which cases."""
        return JSONResponse(await self._queued(lambda: describe(self.service, self.title, self.upload_limit)))

    async def open(self, request: Request) -> Response:
        """A case."""
        name = str((await body(request)).get("case", ""))
        subject = await self._queued(lambda: self.service.open_case(name))
        return await self._begun(Session(subject))

    async def upload(self, request: Request) -> Response:
        """A file, as the body; its name and what is known about it in the header ``X-About``, as JSON in base64."""
        told = about(request)
        name = Path(str(told.get("name", ""))).name
        limit = f"{self.upload_limit / 2**20:g} MB, which is the limit here (--upload-limit)"
        read = await content(request, self.upload_limit, f"the file is larger than {limit}")
        if not read:
            raise Refused(400, f"{name or 'the file'} is empty")
        folder = tempfile.TemporaryDirectory(prefix="segcft-")
        try:
            file = Path(folder.name) / "upload"
            file.write_bytes(read)
            window, spacing = numbers(told, "window", 2), numbers(told, "spacing")
            given = {variable: number(value, variable) for variable, value in dict(told.get("parents") or {}).items()}
            levels = None if window is None else (window[0], window[1])
            picture = await self._queued(lambda: self.service.read(file, name, levels), self._readers)
            opening = partial(self.service.open_picture, picture, file, name, given, levels, spacing)
            subject = await self._queued(opening)
        except BaseException:
            folder.cleanup()
            raise
        return await self._begun(Session(subject, folder))

    async def ask(self, request: Request) -> Response:
        """A question, and everything that is shown of its answer."""
        given = await body(request)
        subject = self._subject(given)
        asked, index, seen = question(given), given.get("slice"), given.get("seen", False)
        began = time.perf_counter()
        told = await self._queued(lambda: show(self.service.ask(subject, asked), index, seen))
        told["seconds"] = round(time.perf_counter() - began, 3)
        return JSONResponse(told)

    async def download(self, request: Request) -> Response:
        """A file of an answer."""
        given = await body(request)
        subject, asked, kind = self._subject(given), question(given), str(given.get("kind", ""))
        name, made = await self._queued(lambda: download(self.service.ask(subject, asked), kind))
        return JSONResponse({"name": name, "content": base64.b64encode(made).decode()})

    async def close(self, request: Request) -> Response:
        """Forget an image."""
        self.sessions.close(str((await body(request)).get("session", "")))
        return JSONResponse({})

    def _subject(self, given: dict[str, Any]) -> Subject:
        return self.sessions.get(str(given.get("session", ""))).subject

    async def _begun(self, session: Session) -> Response:
        told = await self._queued(lambda: introduce(session.subject))
        return JSONResponse({"session": self.sessions.add(session), **told})

    async def _queued(self, work: Callable[[], Result], workers: ThreadPoolExecutor | None = None) -> Result:
        """The result of ``work``, when it is its turn; the model's turn unless there are other workers."""
        if self._waiting >= QUEUE:
            raise Refused(503, "too many questions are waiting: try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(workers or self._worker, work)
        finally:
            self._waiting -= 1


def create(app: App, token: str | None, local: bool) -> ASGIApp:
    """The whole server, to be run by uvicorn; see ``Guard``."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        app.sessions.tidy(everyone=True)  # here, for a signal ends the process right after

    return Guard(Starlette(routes=app.routes(), lifespan=lifespan), token, local)


def _safely(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
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
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return JSONResponse({"error": "something went wrong; the server's log says what"}, 500)

    return answered


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def sent(request: Request) -> Response:
        return Response(text(name), media_type=kind)

    return sent
