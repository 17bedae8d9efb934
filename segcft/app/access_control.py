"""Who may come in: a token, names of this computer alone, and what a browser may do with the page."""

import hashlib
import hmac
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from segcft.app.addresses import is_local, without_port
from segcft.app.requests import Refused, receive
from segcft.app.static_files import text
from segcft.app.users import VISITOR, new_visitor, user

COOKIE = "segcft_token"
LOGIN_LIMIT = 4096  # bytes of the form with the token
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
        try:
            response = await self._refusal(request)
        except Refused as refusal:
            response = JSONResponse({"error": str(refusal)}, refusal.status)
        if response is None:
            added = dict(HEADERS)
            if scope["path"] == "/" and not user(request).visitor:
                added["Set-Cookie"] = f"{VISITOR}={new_visitor()}; HttpOnly; Path=/; SameSite=strict"

            async def marked(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] += [(k.lower().encode(), v.encode()) for k, v in added.items()]
                await send(message)

            await self.app(scope, receive, marked)
            return
        response.headers.update(HEADERS)
        await response(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        host, path = request.headers.get("host", ""), request.scope["path"]
        if self.local and not is_local(without_port(host)):
            return JSONResponse({"error": "this server answers on its own computer alone"}, 421)
        origin = request.headers.get("origin")
        if request.method == "POST" and origin is not None and origin.partition("//")[2] != host:
            return JSONResponse({"error": "this server answers its own page alone"}, 403)
        if self.token is None or _same(request.cookies.get(COOKIE, ""), digest(self.token)):
            return None
        if path in ("/page.css",):
            return None
        return await self._admission(request, path, self.token)

    async def _admission(self, request: Request, path: str, token: str) -> Response:
        if path == "/login" and request.method == "POST":
            form = bytearray()
            await receive(request, LOGIN_LIMIT, "the token is too long", form.extend)
            given = parse_qs(form.decode("utf-8", "replace")).get("token", [""])[0]
        else:
            given = request.query_params.get("token", "")
        if not _same(given.strip(), token):
            if path in ("/", "/login"):
                return HTMLResponse(text("login.html"), 401)
            return JSONResponse({"error": "the token is needed: load the page again"}, 401)
        kept = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
        answer = RedirectResponse(f"/?{kept}" if kept else "/", 303)
        answer.set_cookie(COOKIE, digest(token), httponly=True, samesite="strict")
        return answer


def digest(token: str) -> str:
    """What the cookie holds of a token, which may have characters that a cookie may not."""
    return hashlib.sha256(token.encode()).hexdigest()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())
