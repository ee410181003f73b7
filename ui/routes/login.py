"""Routes to log in and out."""

from __future__ import annotations

import math
from urllib.parse import parse_qs

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from ui.access.accounts import AccountError, user_name
from ui.access.allowlist import public
from ui.access.sessions import COOKIE, IDLE_SECONDS
from ui.text import Words, preferred
from ui.views.login import MAX_CHARACTERS, login_html
from ui.workspace import Studio, token_of

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; manifest-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
_MAX_CONCURRENT_CHECKS = 2  # of passwords: each takes 32 MiB


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Adds the login page and the routes of its forms."""
    slots = anyio.Semaphore(_MAX_CONCURRENT_CHECKS)
    home, cookie_path = f"{studio.root_path}/", studio.root_path or "/"

    @app.get("/login")
    @public
    def show(request: Request) -> Response:
        if studio.user_of(request.scope) is not None:
            return RedirectResponse(home, 303)
        return HTMLResponse(login_html(_words(request)), headers=_HEADERS)

    @app.post("/login")
    @public
    async def log_in(request: Request) -> Response:
        fields = parse_qs((await request.body()).decode("utf-8", errors="replace"))
        name, password = (fields.get(key, [""])[0][:MAX_CHARACTERS] for key in ("username", "password"))
        if studio.accounts is None or studio.sessions is None:
            return _failure(request, 404, "login.none")
        address = request.client.host if request.client else ""
        throttled_name = _throttled_name(name)
        wait = studio.login_throttle.start_attempt(throttled_name, address)
        if wait > 0:
            return _failure(request, 429, "login.wait", name, math.ceil(wait))
        async with slots:
            user = await anyio.to_thread.run_sync(studio.accounts.check, name, password)
        fingerprint = studio.accounts.fingerprint(user) if user else None
        if user is None or fingerprint is None:
            return _failure(request, 401, "login.wrong", name)
        studio.login_throttle.record_success(throttled_name, address)
        studio.sessions.close(
            token_of(request.scope)
        )  # the browser's earlier session, which the new one replaces
        response = RedirectResponse(home, 303) if _accepts_html(request) else JSONResponse({"success": True})
        response.set_cookie(
            COOKIE,
            studio.sessions.open(user, fingerprint),
            max_age=IDLE_SECONDS,
            path=cookie_path,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @app.post("/logout")
    @public
    def log_out(request: Request) -> Response:
        if studio.sessions:
            studio.sessions.close(token_of(request.scope))
        response = RedirectResponse(f"{home}login", 303)
        response.delete_cookie(COOKIE, path=cookie_path, httponly=True, samesite="strict")
        response.headers["Clear-Site-Data"] = '"cache"'
        return response


def _words(request: Request) -> Words:
    return Words(preferred(request.headers.get("accept-language", "")))


def _accepts_html(request: Request) -> bool:
    """Returns False for gradio_client and curl, which get JSON."""
    return "text/html" in request.headers.get("accept", "")


def _throttled_name(name: str) -> str:
    """Returns the name whose attempts are counted: one for all spellings, also of users that don't exist."""
    try:
        return user_name(name)
    except AccountError:
        return "?"


def _failure(request: Request, status: int, key: str, name: str = "", seconds: int = 0) -> Response:
    """Returns the login page with a message, or the message as JSON."""
    words = _words(request)
    message = words(key, seconds=seconds)
    headers = {"Retry-After": str(seconds)} if seconds else {}
    if not _accepts_html(request):
        return JSONResponse({"message": message, "detail": message}, status, headers)
    return HTMLResponse(login_html(words, message, name), status, {**_HEADERS, **headers})
