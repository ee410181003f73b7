"""The allowlist of endpoints: which paths exist, who may use them, and how large a body each accepts.

The studio's own routes are open to logged-in users, and those marked `public` to everyone. Of Gradio's hundred routes the
page and `gradio_client` need the ones below; its login, proxy, monitoring, run history, deep links, editors and icons are
not reachable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from starlette.routing import BaseRoute, Route

from ui.store.limits import MB, Limits

_FORM_BYTES = 64_000
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Endpoint:
    """Methods and paths that the guard lets through."""

    methods: frozenset[str]
    path: re.Pattern[str]
    body_bytes: int = _FORM_BYTES
    public: bool = False
    kind: Literal["ours", "page", "call", "upload", "file", "stream"] = "ours"
    ids: tuple[
        str, ...
    ] = ()  # parameters of the query or path that a browser chooses, made private by the guard

    def match(self, method: str, path: str) -> re.Match[str] | None:
        """Returns the match of the path if the endpoint allows the request."""
        return self.path.fullmatch(path) if method in self.methods else None


def public(function: _Function) -> _Function:
    """Marks a route that needs no login."""
    function.is_public = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def max_body(body_bytes: int) -> Callable[[_Function], _Function]:
    """Marks a route that accepts a body of more than 64 kB."""

    def mark(function: _Function) -> _Function:
        function.body_bytes = body_bytes  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return mark


def own_endpoints(routes: Iterable[BaseRoute]) -> list[Endpoint]:
    """Returns the endpoints of the studio's routes, declared before Gradio is mounted beside them."""
    endpoints = []
    for route in routes:
        if not isinstance(route, Route):
            continue
        methods = frozenset(route.methods or ())
        endpoint = Endpoint(
            methods | {"HEAD"} if "GET" in methods else methods,
            route.path_regex,
            getattr(route.endpoint, "body_bytes", _FORM_BYTES),
            getattr(route.endpoint, "is_public", False),
        )
        endpoints.append(endpoint)
    return endpoints


def gradio_endpoints(limits: Limits) -> list[Endpoint]:
    """Returns the allowed endpoints of Gradio 6."""

    def allow(methods: str, path: str, **options: Any) -> Endpoint:
        return Endpoint(frozenset(methods.split()), re.compile(path), **options)

    api = "/gradio_api"
    session = ("session_hash",)
    return [
        allow("GET HEAD", "/", kind="page"),
        allow("GET HEAD", "/config|/theme\\.css|/static/.+"),
        allow("GET HEAD", f"{api}/(app_id|startup-events|info|theme\\.css)"),
        allow("GET", f"{api}/heartbeat/(?P<session_hash>[^/]+)", kind="stream", ids=session),
        allow("GET", f"{api}/queue/data", kind="stream", ids=session),
        allow("GET", f"{api}/call/[^/]+/(?P<event_id>[^/]+)", kind="stream"),
        allow("POST", f"{api}/(queue/join|call/[^/]+|run/[^/]+|cancel|reset)", kind="call", body_bytes=MB),
        # One request may upload many files; Gradio checks each of them against `file_bytes`.
        allow("POST", f"{api}/upload", kind="upload", body_bytes=limits.project_bytes, ids=("upload_id",)),
        allow("GET", f"{api}/upload_progress", kind="stream", ids=("upload_id",)),
        allow("GET HEAD", f"{api}/file=(?P<file>.+)", kind="file"),
    ]
