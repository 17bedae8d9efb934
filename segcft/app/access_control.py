"""Who may come in: a token, names of this computer alone, and what a browser may do with the page."""

import hmac
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from segcft.app.static_files import text

COOKIE = "segcft_token"
LOCAL = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


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
                return HTMLResponse(text("login.html"), 401)
            return JSONResponse({"error": "the token is needed: load the page again"}, 401)
        kept = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
        answer = RedirectResponse(f"/?{kept}" if kept else "/", 303)
        answer.set_cookie(COOKIE, given, httponly=True, samesite="strict")
        return answer

    def _knows(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())
