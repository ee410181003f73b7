"""The way in and out: a form that works without script, in the browser's language."""

from __future__ import annotations

import html
import math
from urllib.parse import parse_qs

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from ui.access.accounts import AccountError, user_name
from ui.access.allowlist import public
from ui.access.sessions import COOKIE, IDLE_SECONDS
from ui.text import Words, preferred
from ui.theme import LOGIN_HREF
from ui.workspace import Studio, Workspace, token_of

_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_LONGEST = 200  # characters of a name or a password
_AT_ONCE = 2  # passwords compared at the same time: each takes 32 MiB


def add_routes(app: FastAPI, studio: Studio) -> None:
    slots = anyio.Semaphore(_AT_ONCE)

    @app.get("/login")
    @public
    def ask(request: Request) -> Response:
        if studio.user_of(request.scope) is not None:
            return RedirectResponse("/", 303)
        return _page(_words(request))

    @app.post("/login")
    @public
    async def enter(request: Request) -> Response:
        words = _words(request)
        said = parse_qs((await request.body()).decode("utf-8", errors="replace"))
        name, password = (said.get(key, [""])[0][:_LONGEST] for key in ("username", "password"))
        if studio.accounts is None or studio.sessions is None:
            return _answer(request, words, 404, "login.none")
        address = request.client.host if request.client else ""
        counted = _counted_name(name)
        wait = studio.login_throttle.wait(counted, address)
        if wait > 0:
            return _answer(request, words, 429, "login.wait", name, math.ceil(wait))
        async with slots:
            user = await anyio.to_thread.run_sync(studio.accounts.check, name, password)
        fingerprint = studio.accounts.fingerprint(user) if user else None
        if user is None or fingerprint is None:
            return _answer(request, words, 401, "login.wrong", name)
        studio.login_throttle.succeeded(counted, address)
        studio.sessions.close(token_of(request.scope))
        plain = "text/html" not in request.headers.get("accept", "")  # gradio_client, curl
        answer = JSONResponse({"success": True}) if plain else RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            studio.sessions.open(user, fingerprint),
            max_age=IDLE_SECONDS,
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @app.post("/logout")
    @public
    def leave(request: Request) -> Response:
        if studio.sessions:
            studio.sessions.close(token_of(request.scope))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        answer.headers["Clear-Site-Data"] = '"cache"'
        return answer


def account_html(workspace: Workspace) -> str:
    """Who is logged in, and the way out."""
    said, leave = (
        html.escape(workspace.words("login.user", name=workspace.user)),
        html.escape(workspace.words("login.leave")),
    )
    return f'<form method="post" action="/logout"><span>{said}</span> <button>{leave}</button></form>'


def _words(request: Request) -> Words:
    return Words(preferred(request.headers.get("accept-language", "")))


def _counted_name(name: str) -> str:
    """One name for all its spellings, whether there is such a user or not."""
    try:
        return user_name(name)
    except AccountError:
        return "?"


def _answer(
    request: Request, words: Words, status: int, key: str, name: str = "", seconds: int = 0
) -> Response:
    told = words(key, seconds=seconds)
    headers = {"Retry-After": str(seconds)} if seconds else {}
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"message": told, "detail": told}, status, headers)
    return _page(words, status, told, name, headers)


def _page(
    words: Words, status: int = 200, told: str = "", name: str = "", headers: dict[str, str] | None = None
) -> Response:
    say = {
        key: html.escape(words(f"login.{key}"), quote=True)
        for key in ("title", "lead", "name", "password", "enter", "help")
    }
    alert = f'<p class="alert" role="alert" id="told">{html.escape(told)}</p>' if told else ""
    wrong = ' aria-invalid="true" aria-describedby="told"' if told else ""
    focus = ("", " autofocus") if name else (" autofocus", "")
    text = f"""<!doctype html>
<html lang="{words.language}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{say["title"]} · Impasto</title>
<link rel="icon" href="/icon.svg"><link rel="stylesheet" href="{LOGIN_HREF}"></head>
<body><main><h1>Impasto</h1><p class="lead">{say["lead"]}</p>
<form method="post" action="/login">{alert}
<label for="username">{say["name"]}</label>
<input id="username" name="username" value="{html.escape(name, quote=True)}" autocomplete="username" autocapitalize="none"
 spellcheck="false" required maxlength="{_LONGEST}"{wrong}{focus[0]}>
<label for="password">{say["password"]}</label>
<input id="password" name="password" type="password" autocomplete="current-password" required maxlength="{_LONGEST}"{wrong}{focus[1]}>
<button>{say["enter"]}</button></form>
<p class="help">{say["help"]}</p></main></body></html>"""
    return HTMLResponse(
        text, status, {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store", **(headers or {})}
    )
