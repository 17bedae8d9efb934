"""The app over HTTP: a page, and JSON for its sliders.

Every opened image is a session with a name that cannot be guessed; a question names its session and nothing is shared
between sessions. The model answers one question at a time, in the order in which they came.
"""

import asyncio
import base64
import hmac
import json
import math
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from data_modules.readers import DICOM, FILMS, NIFTI
from segcft.app import drawing
from segcft.app.downloads import download, kinds
from segcft.app.session import Desk, Question, Reply, Subject
from segcft.panels import COLOURS, LIMIT
from segcft.requests import beyond

COOKIE = "segcft_token"
QUEUE = 64  # questions that may wait
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Result = TypeVar("Result")


class Refused(Exception):
    """What the page is told, with a status of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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


class App:
    """Routes of the page.

    Args:
        desk: That answers.
        title: Of the page.
        upload_limit: Bytes of an upload.
        sessions: Where they are kept.
    """

    def __init__(self, desk: Desk, title: str, upload_limit: int, sessions: Sessions | None = None) -> None:
        self.desk, self.title, self.upload_limit = desk, title, upload_limit
        self.sessions = sessions or Sessions()
        self._worker, self._waiting = ThreadPoolExecutor(1), 0

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
        return JSONResponse(await self._queued(lambda: describe(self.desk, self.title, self.upload_limit)))

    async def open(self, request: Request) -> Response:
        """A case."""
        name = str((await _json(request)).get("case", ""))
        subject = await self._queued(lambda: self.desk.open_case(name))
        return await self._begun(Session(subject))

    async def upload(self, request: Request) -> Response:
        """A file, as the body; its name and what is known about it in the header ``X-About``, as JSON in base64."""
        about = _about(request)
        name = Path(str(about.get("name", ""))).name
        end = next((each for each in (*NIFTI[::-1], *FILMS, *DICOM) if name.lower().endswith(each)), "")
        content = await self._body(request)
        if not content:
            raise Refused(400, f"{name or 'the file'} is empty")
        folder = tempfile.TemporaryDirectory(prefix="segcft-")
        try:
            file = Path(folder.name) / f"upload{end}"
            file.write_bytes(content)
            window, spacing = _numbers(about, "window", 2), _numbers(about, "spacing")
            given = {variable: _number(value, variable) for variable, value in dict(about.get("parents") or {}).items()}
            levels = None if window is None else (window[0], window[1])
            subject = await self._queued(lambda: self.desk.open_file(file, name, given, levels, spacing))
        except BaseException:
            folder.cleanup()
            raise
        return await self._begun(Session(subject, folder))

    async def ask(self, request: Request) -> Response:
        """A question, and everything that is shown of its answer."""
        given = await _json(request)
        subject = self._subject(given)
        question, index, seen = _question(given), given.get("slice"), given.get("seen", False)
        began = time.perf_counter()
        told = await self._queued(lambda: show(self.desk.ask(subject, question), index, seen))
        told["seconds"] = round(time.perf_counter() - began, 3)
        return JSONResponse(told)

    async def download(self, request: Request) -> Response:
        """A file of an answer."""
        given = await _json(request)
        subject, question, kind = self._subject(given), _question(given), str(given.get("kind", ""))
        name, content = await self._queued(lambda: download(self.desk.ask(subject, question), kind))
        return JSONResponse({"name": name, "content": base64.b64encode(content).decode()})

    async def close(self, request: Request) -> Response:
        """Forget an image."""
        self.sessions.close(str((await _json(request)).get("session", "")))
        return JSONResponse({})

    def _subject(self, given: dict[str, Any]) -> Subject:
        return self.sessions.get(str(given.get("session", ""))).subject

    async def _begun(self, session: Session) -> Response:
        told = await self._queued(lambda: introduce(session.subject))
        return JSONResponse({"session": self.sessions.add(session), **told})

    async def _queued(self, work: Callable[[], Result]) -> Result:
        """The result of ``work``, when it is its turn."""
        if self._waiting >= QUEUE:
            raise Refused(503, "too many questions are waiting: try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        finally:
            self._waiting -= 1

    async def _body(self, request: Request) -> bytes:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > self.upload_limit:
                limit = self.upload_limit / 2**20
                raise Refused(413, f"the file is larger than {limit:g} MB, which is the limit here (--upload-limit)")
        return bytes(content)


class Guard:
    """Lets in who knows the token, and pages of this server alone.

    Args:
        app: Behind it.
        token: None lets everyone in.
        local: Whether the server is bound to this computer; only its own names are answered then, so that no page from
            elsewhere reaches it by a name that resolves to it.
    """

    def __init__(self, app: ASGIApp, token: str | None, local: bool) -> None:
        self.app, self.token, self.local = app, token, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        response = await self._refusal(request)
        if response is None:

            async def marked(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] += [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                await send(message)

            await self.app(scope, receive, marked)
            return
        response.headers.update(HEADERS)
        await response(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if self.local and host.rpartition(":")[0] not in LOCAL and host not in LOCAL:
            return JSONResponse({"error": "this server answers on its own computer alone"}, 421)
        origin = request.headers.get("origin")
        if request.method == "POST" and origin is not None and origin.partition("//")[2] != host:
            return JSONResponse({"error": "this server answers its own page alone"}, 403)
        if self.token is None or self._knows(request.cookies.get(COOKIE, "")):
            return None
        if request.url.path in ("/page.css",):
            return None
        return await self._admission(request)

    async def _admission(self, request: Request) -> Response:
        if request.url.path == "/login" and request.method == "POST":
            form = (await request.body())[:4096].decode("utf-8", "replace")
            given = form.removeprefix("token=").strip()
        else:
            given = request.query_params.get("token", "")
        if not self._knows(given):
            if request.url.path in ("/", "/login"):
                return HTMLResponse(_text("login.html"), 401)
            return JSONResponse({"error": "the token is needed: load the page again"}, 401)
        kept = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
        answer = RedirectResponse(f"/?{kept}" if kept else "/", 303)
        answer.set_cookie(COOKIE, given, httponly=True, samesite="strict")
        return answer

    def _knows(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())


STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
LOCAL = ("127.0.0.1", "localhost", "[::1]")


def create(app: App, token: str | None, local: bool) -> ASGIApp:
    """The whole server, to be run by uvicorn; see ``Guard``."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        app.sessions.tidy(everyone=True)  # here, for a signal ends the process right after

    return Guard(Starlette(routes=app.routes(), lifespan=lifespan), token, local)


def describe(desk: Desk, title: str, upload_limit: int) -> dict[str, Any]:
    """Variables, graph and cases."""
    model, graph, depth = desk.model, desk.graph, dict[str, int]()
    for name, causes in graph.items():
        depth[name] = 1 + max((depth[cause] for cause in causes), default=-1)
    variables = [
        {
            "name": name,
            "kind": variable.kind,
            "unit": variable.unit,
            "low": variable.low,
            "high": variable.high,
            "categories": list(variable.categories) or (["0", "1"] if variable.kind == "binary" else []),
            "measured": variable.measured_as,
            "causes": graph[name],
            "depth": depth[name],
        }
        for name, variable in model.parents.variables.items()
    ]
    colours = dict(zip(model.description.structures, COLOURS, strict=False))
    cases = [{"name": name, "picture": _address(thumbnail(desk, name))} for name in desk.cases]
    return {
        "title": title,
        "variables": variables,
        "colours": colours if model.segmentor is not None else {},
        "cases": cases,
        "needed": desk.hidden,
        "kinds": [*FILMS, *DICOM, *NIFTI],
        "upload_limit": upload_limit,
        "limit": LIMIT,
        "frame": list(desk.frame),
    }


def thumbnail(desk: Desk, name: str) -> bytes:
    """A case, small, as PNG."""
    image = desk.cases[name].image[0, 0].float().numpy()
    flat = drawing.plane(image, None if image.ndim == 2 else image.shape[-1] // 2)
    return drawing.small((flat + 1) * 127.5)


def introduce(subject: Subject) -> dict[str, Any]:
    """An opened image, unasked; its pictures come with the first question."""
    values = {name: _finite(value) for name, value in subject.values.items()}
    structural = {name: subject.values[name] for name in subject.model.parents.structural}
    return {
        "name": subject.name,
        "values": values,
        "given": sorted(subject.given),
        "depth": subject.shown.shape[-1] if len(subject.shown.shape) == 3 else 1,
        "downloads": kinds(subject),
        "uploaded": subject.file is not None,
        "reasons": beyond(structural, subject.model.parents),
        "shape": list(subject.picture.levels.shape),
    }


def show(reply: Reply, index: Any = None, seen: Any = False) -> dict[str, Any]:
    """Pictures and numbers of an answer; of a volume, one slice.

    Args:
        reply: The answer.
        index: Of the slice; the one that changes most unless it is one of the volume's.
        seen: The slice whose factual picture the page has already, None of an image; False if it has none.
    """
    subject, depth = reply.subject, reply.change.shape[-1]
    if not isinstance(index, int) or not 0 <= index < depth or reply.change.ndim == 2:
        index = drawing.busiest(reply)
    factual, changed = (drawing.plane(each, index) for each in (subject.levels, reply.change))
    told = {
        "image": _address(drawing.grey(subject, factual + changed)),
        "change": _address(drawing.change(subject, changed)),
        "size": [factual.shape[1], factual.shape[0]],
        "slice": index,
        "after": drawing.contours(subject, reply.masks, index),
        "rows": [{key: _finite(value) for key, value in row.items()} for row in reply.rows],
        "reasons": reply.reasons,
        "refined": reply.question.refined,
    }
    if seen is False or seen != index:
        told["factual"] = _address(drawing.grey(subject, factual))
        told["before"] = drawing.contours(subject, subject.masks, index)
    if reply.answer.uncertainty is not None:
        deep = subject.spread(reply.answer.uncertainty)
        limit = max(float(deep.max()), 0.02)
        told["deviation"] = _address(drawing.deviation(subject, drawing.plane(deep, index), limit))
        told["deviation_limit"] = limit / 2  # share of the window
    return told


def _question(given: dict[str, Any]) -> Question:
    do = given.get("do", [])
    if not isinstance(do, list) or not all(isinstance(each, str) for each in do):
        raise Refused(400, "do: a list of requests is needed")
    effect = given.get("effect", "total")
    if effect not in ("total", "direct"):
        raise Refused(400, f"effect {effect!r}: total or direct is needed")
    return Question(tuple(do), effect, bool(given.get("refined", True)), bool(given.get("uncertain", False)))


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


async def _json(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > 2**16:
            raise Refused(413, "the question is too long")
    try:
        given = json.loads(body)
    except ValueError as error:
        raise Refused(400, "the question is no JSON") from error
    if not isinstance(given, dict):
        raise Refused(400, "the question is no JSON object")
    return given


def _about(request: Request) -> dict[str, Any]:
    try:
        given = json.loads(base64.b64decode(request.headers.get("x-about", "")))
        if isinstance(given, dict) and isinstance(given.get("parents") or {}, dict):
            return given
    except ValueError:
        pass
    raise Refused(400, "X-About: what is known about the file is needed, as JSON in base64")


def _numbers(about: dict[str, Any], name: str, count: int | None = None) -> list[float] | None:
    given = about.get(name)
    if not given:
        return None
    if not isinstance(given, list) or (count is not None and len(given) != count):
        raise Refused(400, f"{name}: a list of {count or 'some'} numbers is needed")
    return [_number(each, name) for each in given]


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(400, f"{name} = {value!r} is not a number")
    return float(value)


def _finite(value: Any) -> Any:
    """Numbers as JSON knows them."""
    if isinstance(value, str | bool) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _address(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _text(name: str) -> str:
    return files("segcft.app").joinpath(name).read_text(encoding="utf-8")


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def sent(request: Request) -> Response:
        return Response(_text(name), media_type=kind)

    return sent
