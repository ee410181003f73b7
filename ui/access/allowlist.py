"""What is open: every path that the studio answers, who may use it, and how large a body it takes. All else is not there.

Our own routes are open to whoever is logged in; `public` ones to everybody. Of Gradio's some hundred routes the page and
`gradio_client` need the ones below; its login, proxy, monitoring, run history, deep links, editors and icons stay closed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from starlette.routing import BaseRoute, Route

from ui.store.limits import MB, Limits

_FORM_BYTES = 64_000
_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True)
class Endpoint:
    methods: frozenset[str]
    path: re.Pattern[str]
    body_bytes: int = _FORM_BYTES
    public: bool = False
    kind: Literal["ours", "page", "call", "upload", "file", "stream"] = "ours"
    ids: tuple[str, ...] = field(
        default=()
    )  # names in the query or the path that one user chose and no other may use

    def opens(self, method: str, path: str) -> re.Match[str] | None:
        return self.path.fullmatch(path) if method in self.methods else None


def public(endpoint: _Endpoint) -> _Endpoint:
    """Marks a route that needs no login."""
    endpoint.is_public = True  # pyright: ignore[reportFunctionMemberAccess]
    return endpoint


def takes(body_bytes: int) -> Callable[[_Endpoint], _Endpoint]:
    """Marks a route whose body may be larger than a form's."""

    def mark(endpoint: _Endpoint) -> _Endpoint:
        endpoint.body_bytes = body_bytes  # pyright: ignore[reportFunctionMemberAccess]
        return endpoint

    return mark


def own_endpoints(routes: Iterable[BaseRoute]) -> list[Endpoint]:
    """The routes that the studio itself declares, before Gradio is mounted beside them."""
    return [
        Endpoint(
            frozenset(route.methods or ()) | ({"HEAD"} if "GET" in (route.methods or ()) else set()),
            route.path_regex,
            getattr(route.endpoint, "body_bytes", _FORM_BYTES),
            getattr(route.endpoint, "is_public", False),
        )
        for route in routes
        if isinstance(route, Route)
    ]


def gradio_endpoints(limits: Limits) -> list[Endpoint]:
    def door(methods: str, path: str, **facts: Any) -> Endpoint:
        return Endpoint(frozenset(methods.split()), re.compile(path), **facts)

    api = "/gradio_api"
    return [
        door("GET HEAD", "/", kind="page"),
        door("GET HEAD", "/config|/theme\\.css|/static/.+"),
        door("GET HEAD", f"{api}/(app_id|startup-events|info|theme\\.css)"),
        door("GET", f"{api}/heartbeat/(?P<session_hash>[^/]+)", kind="stream", ids=("session_hash",)),
        door("GET", f"{api}/queue/data", kind="stream", ids=("session_hash",)),
        door("GET", f"{api}/call/[^/]+/(?P<event_id>[^/]+)", kind="stream"),
        door("POST", f"{api}/(queue/join|call/[^/]+|run/[^/]+|cancel|reset)", kind="call", body_bytes=MB),
        # One drop is one request; each file of it is counted by Gradio against `file_bytes`.
        door("POST", f"{api}/upload", kind="upload", body_bytes=limits.project_bytes, ids=("upload_id",)),
        door("GET", f"{api}/upload_progress", kind="stream", ids=("upload_id",)),
        door("GET HEAD", f"{api}/file=(?P<file>.+)", kind="file"),
    ]
