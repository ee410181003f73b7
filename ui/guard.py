"""What reaches the studio: the outermost layer, before any route.

1. Host and Origin: a local server is reachable by any web page that the artist has open (cross-site posts, DNS rebinding).
2. Doors: what is not declared in `doors.py` is not there.
3. Login: with accounts, nothing but the public doors answers who has not logged in.
4. Size: a body is counted as it comes.
5. Ownership: names that a browser makes up (sessions, uploads) are each user's own.
6. Headers: every answer says how a browser must treat it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.errors import TrainerError
from ui.access.allowlist import Endpoint
from ui.access.body_limits import Parts, Refused, counted, replay, whole
from ui.access.hosts import Hosts
from ui.text import Words, preferred
from ui.workspace import USER, Studio

_SAFE = {"GET", "HEAD", "OPTIONS"}
_KEPT_EVENTS = 20_000
_ROOM_EVERY = 64_000_000  # bytes of an upload between two looks at the disk
_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)
# Gradio's components style elements inline, and its gr.HTML compiles templates (`Function`): both can't be forbidden here.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'{scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; manifest-src 'self'; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


class Guard:
    def __init__(
        self,
        app: ASGIApp,
        studio: Studio,
        doors: Sequence[Endpoint],
        hosts: Hosts,
        links: Callable[[], str] = str,
    ) -> None:
        self.app, self.studio, self.doors, self.hosts = app, studio, doors, hosts
        self.links = links  # elements for the head of the page
        self._secret = secrets.token_bytes(32)
        self._events: OrderedDict[str, str] = OrderedDict()  # Gradio's id of a call -> who made it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        answered, refused = False, list[Refused]()  # `refused`: by the body, while a route read it

        async def hardened(message: Message) -> None:
            nonlocal answered
            if refused and not answered:
                return  # what a route makes of a body that was cut off; our own answer follows
            if message["type"] == "http.response.start":
                answered = True
                _harden(MutableHeaders(scope=message), bool(self.studio.accounts))
            await send(message)

        try:
            await self._answer(scope, receive, hardened, refused)
        except Refused as error:
            refused.append(error)
        except Exception:
            if not refused or answered:
                raise
        if refused and not answered:
            error = refused[0]
            refused.clear()
            sentence = Words(preferred(Headers(scope=scope).get("accept-language", "")))(error.key)
            await JSONResponse({"message": sentence, "detail": sentence}, error.status)(
                scope, receive, hardened
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send, refused: list[Refused]) -> None:
        method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
        self._check_site(method, headers)
        door, match = next(((d, m) for d in self.doors if (m := d.opens(method, path))), (None, None))
        user = self.studio.user_of(scope)
        scope = {**scope, USER: user}
        if user is None and not (door and door.public):
            if door and door.kind == "page":
                await RedirectResponse("/login", 303)(scope, receive, send)
                return
            raise Refused(401, "login.first")
        if door is None or match is None:
            raise Refused(404, "refused.not_here")
        if _length(headers) > door.body_bytes:
            raise Refused(413, "refused.too_large")
        look = self._looker(scope) if door.kind == "upload" else None
        receive = counted(receive, door.body_bytes, refused, look)
        await self._pass(door, match, user or "", scope, receive, send)

    async def _pass(
        self, door: Endpoint, match: re.Match[str], user: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """By a door, with what the user's browser calls its own made the user's own."""
        named = match.groupdict()
        if door.ids:
            scope = self._own_names(scope, door.ids, named, user)
        if door.kind == "file" and not self.studio.uploads.owns(user, named["file"]):
            raise Refused(404, "refused.not_here")
        if "event_id" in named and self._events.get(named["event_id"]) != user:
            raise Refused(404, "refused.not_here")
        if door.kind == "call":
            body = self._own_call(await whole(receive), user)
            scope, receive = _with_length(scope, len(body)), replay(body, receive)
        if door.kind in ("call", "upload", "page"):
            await self.app(scope, receive, self._seen(door, user, send))
        else:
            await self.app(scope, receive, send)

    def _check_site(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self.hosts.knows(host):
            raise Refused(403, "refused.address")
        if method in _SAFE:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if site not in (None, "same-origin", "none") or (
            origin is not None and _netloc(origin) != host.lower()
        ):
            raise Refused(403, "refused.site")

    def _own(self, user: str, name: str) -> str:
        """A name that only this user can have made: another's is as good as none."""
        return hmac.new(self._secret, f"{user}\0{name}".encode(errors="replace"), hashlib.sha256).hexdigest()[
            :32
        ]

    def _own_names(self, scope: Scope, ids: tuple[str, ...], named: dict[str, str], user: str) -> Scope:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        query = [(key, self._own(user, value) if key in ids else value) for key, value in query]
        scope = {**scope, "query_string": urlencode(query).encode()}
        for key in set(ids) & set(named):
            scope["path"] = scope["path"].removesuffix(named[key]) + self._own(user, named[key])
            scope["raw_path"] = scope["path"].encode()
        return scope

    def _own_call(self, body: bytes, user: str) -> bytes:
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "refused.bad_request") from None
        if not isinstance(said, dict):
            raise Refused(400, "refused.bad_request")
        if isinstance(said.get("session_hash"), str):
            said["session_hash"] = self._own(user, said["session_hash"])
        if said.get("event_id") is not None and self._events.get(str(said["event_id"])) != user:
            raise Refused(404, "refused.not_here")
        return json.dumps(said).encode()

    def _looker(self, scope: Scope) -> Callable[[bytes], None]:
        """What watches an upload as it comes. Raises Refused where there is no room for it."""
        headers = Headers(scope=scope)
        parts, since = Parts(headers.get("content-type", "")), 0

        def check(incoming_bytes: int) -> None:
            try:
                self.studio.check_free_space(incoming_bytes)
            except TrainerError:
                raise Refused(507, "refused.no_space") from None

        def look(piece: bytes) -> None:
            nonlocal since
            parts.look(piece)
            since += len(piece)
            if since > _ROOM_EVERY:  # a length need not have been said, and others fill the disk too
                since = 0
                check(_ROOM_EVERY)

        check(_length(headers))
        return look

    def _seen(self, door: Endpoint, user: str, send: Send) -> Send:
        """`send` that learns from the whole answer: ids of calls, paths of uploads, the page's own scripts."""
        start: Message = {}
        pieces: list[bytes] = []

        async def gathered(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body":
                await send(message)
                return
            pieces.append(message.get("body", b""))
            if message.get("more_body"):
                return
            body = b"".join(pieces)
            if door.kind == "page":
                headers = MutableHeaders(scope=start)
                headers["content-security-policy"] = _PAGE_POLICY.format(scripts=_script_hashes(body))
                body = body.replace(b"</head>", f"{self.links()}</head>".encode(), 1)
                headers["content-length"] = str(len(body))
            elif start["status"] == 200:
                self._learn(door, user, body)
            await send(start)
            await send({"type": "http.response.body", "body": body})

        return gathered

    def _learn(self, door: Endpoint, user: str, body: bytes) -> None:
        try:
            said = json.loads(body)
        except ValueError:
            return
        if door.kind == "upload" and isinstance(said, list):
            for path in said:
                self.studio.uploads.record(user, str(path))
        elif isinstance(said, dict) and isinstance(said.get("event_id"), str):
            self._events[said["event_id"]] = user
            while len(self._events) > _KEPT_EVENTS:
                self._events.popitem(last=False)


def _length(headers: Headers) -> int:
    said = headers.get("content-length", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 20 else 0


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _with_length(scope: Scope, length: int) -> Scope:
    headers = [
        (key, value)
        for key, value in scope["headers"]
        if key not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _script_hashes(page: bytes) -> str:
    """Of the inline scripts that Gradio's page begins with, so that no other one runs."""
    found = _INLINE_SCRIPT.findall(page.decode("utf-8"))
    return "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found
    )


def _harden(headers: MutableHeaders, has_accounts: bool) -> None:
    for name in [n for n in headers if n.lower().startswith("access-control-")]:
        del headers[name]
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Permissions-Policy"] = "camera=(), microphone=(), geolocation=()"
    headers.setdefault("Content-Security-Policy", _FILE_POLICY)
    headers.setdefault("Cache-Control", "no-store")
    if has_accounts:
        headers.add_vary_header("Cookie")
