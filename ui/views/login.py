"""The login page, and the account in the head of the page, as HTML."""

from __future__ import annotations

import html

from ui.text import Words
from ui.theme import LOGIN_HREF
from ui.workspace import Workspace

MAX_CHARACTERS = 200  # of a name or a password
_TEXTS = ("title", "lead", "name", "password", "enter", "help")
_PAGE = """<!doctype html>
<html lang="{language}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title} · Impasto</title>
<link rel="icon" href="icon.svg"><link rel="stylesheet" href="{style}"></head>
<body><main><h1>Impasto</h1><p class="lead">{lead}</p>
<form method="post" action="login">{alert}
<label for="username">{name}</label>
<input id="username" name="username" value="{username}" autocomplete="username" autocapitalize="none"
 spellcheck="false" required maxlength="{max_characters}"{invalid}{focus_name}>
<label for="password">{password}</label>
<input id="password" name="password" type="password" autocomplete="current-password" required
 maxlength="{max_characters}"{invalid}{focus_password}>
<button>{enter}</button></form>
<p class="help">{help}</p></main></body></html>"""


def login_html(words: Words, message: str = "", username: str = "") -> str:
    """Returns the login page, a form that works without scripts.

    Args:
        message: why a login failed.
        username: typed before, so that only the password has to be typed again.
    """
    alert = f'<p class="alert" role="alert" id="told">{html.escape(message)}</p>' if message else ""
    return _PAGE.format(
        **{key: html.escape(words(f"login.{key}"), quote=True) for key in _TEXTS},
        language=words.language,
        style=LOGIN_HREF,
        alert=alert,
        username=html.escape(username, quote=True),
        max_characters=MAX_CHARACTERS,
        invalid=' aria-invalid="true" aria-describedby="told"' if message else "",
        focus_name="" if username else " autofocus",
        focus_password=" autofocus" if username else "",
    )


def account_html(workspace: Workspace) -> str:
    """Returns the name of the user and a button to log out."""
    user = html.escape(workspace.words("login.user", name=workspace.user))
    leave = html.escape(workspace.words("login.leave"))
    return f'<form method="post" action="./logout"><span>{user}</span> <button>{leave}</button></form>'
