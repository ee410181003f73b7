"""The guard: the outermost ASGI layer, which every request passes before any route.

1. Host and Origin: a local server can be reached by every web page that the artist has open (cross-site requests, DNS
   rebinding).
2. Endpoints: only those of the allowlist (ui/access/allowlist.py) exist.
3. Login: with accounts, all but the public endpoints need a session.
4. Size: a body is counted while it arrives.
5. Ownership: ids that a browser chooses (sessions, uploads) are made private to the user.
6. Headers: every response limits what the browser may do with it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.errors import TrainerError
from ui.access.allowlist import Endpoint
from ui.access.body_limits import MultipartInspector, RequestRejected, limited, read_body, replay
from ui.access.hosts import Hosts, displayable_name
from ui.text import Words, preferred
from ui.workspace import USER, Studio

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_MAX_PRINTED_NAMES = 20  # of rejected hosts; whoever reaches the server can make up names
_MAX_EVENTS = 20_000  # of Gradio whose users are remembered
_SPACE_CHECK_BYTES = 64_000_000  # of an upload between two checks of the free disk space
_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)
# Gradio's components set inline styles, and its gr.HTML compiles templates with `Function`, so neither can be forbidden.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'{scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; "
    "manifest-src 'self'; worker-src 'self' blob:; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


class Guard:
    """The guarded application.

    Args:
        app: routes and page.
        head_links: returns elements that are added to the head of the page.
    """

    def __init__(
        self,
        app: ASGIApp,
        studio: Studio,
        endpoints: Sequence[Endpoint],
        hosts: Hosts,
        head_links: Callable[[], str] = str,
    ) -> None:
        self.app, self.studio, self.endpoints, self.hosts = app, studio, endpoints, hosts
        self.head_links = head_links
        self._secret = secrets.token_bytes(32)
        self._rejected_names: set[str] = set()
        self._events: OrderedDict[str, str] = OrderedDict()  # id of a Gradio call -> user who made it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; a rejected one gets a JSON response with a sentence in the browser's language."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no endpoint uses WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        has_started = False  # the response
        rejections: list[RequestRejected] = []  # raised by the body while a route read it

        async def send_hardened(message: Message) -> None:
            nonlocal has_started
            if rejections and not has_started:
                return  # the response of a route whose body was cut off; the rejection below replaces it
            if message["type"] == "http.response.start":
                has_started = True
                _harden(MutableHeaders(scope=message), bool(self.studio.accounts))
            await send(message)

        try:
            await self._handle(scope, receive, send_hardened, rejections)
        except RequestRejected as error:
            rejections.append(error)
        except Exception:
            # A route may turn the rejection of its body into an error of another type.
            if not rejections or has_started:
                raise
        if rejections and not has_started:
            error = rejections[0]
            rejections.clear()
            words = Words(preferred(Headers(scope=scope).get("accept-language", "")))
            sentence = words(error.key, **error.values)
            response = JSONResponse({"message": sentence, "detail": sentence}, error.status)
            await response(scope, receive, send_hardened)

    async def _handle(
        self, scope: Scope, receive: Receive, send: Send, rejections: list[RequestRejected]
    ) -> None:
        """Checks site, endpoint, login and size. Raises RequestRejected."""
        scope = _below(self.studio.root_path, scope)
        method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
        self._check_site(method, headers)
        matches = ((endpoint, endpoint.match(method, path)) for endpoint in self.endpoints)
        endpoint, match = next(((endpoint, match) for endpoint, match in matches if match), (None, None))
        user = self.studio.user_of(scope)
        scope = {**scope, USER: user}
        if user is None and not (endpoint and endpoint.public):
            if endpoint and endpoint.kind == "page":
                await RedirectResponse(f"{self.studio.root_path}/login", 303)(scope, receive, send)
                return
            raise RequestRejected(401, "login.first")
        if endpoint is None or match is None:
            raise RequestRejected(404, "refused.not_here")
        if _content_length(headers) > endpoint.body_bytes:
            raise RequestRejected(413, "refused.too_large")
        inspect = self._upload_inspector(headers) if endpoint.kind == "upload" else None
        receive = limited(receive, endpoint.body_bytes, rejections, inspect)
        await self._forward(endpoint, match.groupdict(), user or "", scope, receive, send)

    async def _forward(
        self,
        endpoint: Endpoint,
        parameters: dict[str, str],
        user: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Checks ownership, replaces ids by private ones and calls the application. Raises RequestRejected."""
        if endpoint.ids:
            scope = self._withprivate_ids(scope, endpoint.ids, parameters, user)
        if endpoint.kind == "file" and not self.studio.uploads.owns(user, parameters["file"]):
            raise RequestRejected(404, "refused.not_here")
        if "event_id" in parameters and self._events.get(parameters["event_id"]) != user:
            raise RequestRejected(404, "refused.not_here")
        if endpoint.kind == "call":
            body = self._private_call(await read_body(receive), user)
            scope, receive = _with_length(scope, len(body)), replay(body, receive)
        if endpoint.kind in ("call", "upload", "page"):
            send = self._buffered(endpoint, user, send)
        await self.app(scope, receive, send)

    def _check_site(self, method: str, headers: Headers) -> None:
        """Rejects unknown hosts, and requests of other sites that could change something."""
        host = headers.get("host", "")
        if not self.hosts.allows(host):
            raise self._unknown_host(host)
        if method in _SAFE_METHODS:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        is_cross_site = site not in (None, "same-origin", "none")
        if is_cross_site:
            raise RequestRejected(403, "refused.site")
        if origin is None or self.hosts.is_own_origin(origin, host, headers.get("x-forwarded-host", "")):
            return
        name = displayable_name(origin)
        if name:
            raise RequestRejected(403, "refused.origin", name=name)
        raise RequestRejected(403, "refused.site")

    def _unknown_host(self, host: str) -> RequestRejected:
        """Prints the name of a rejected host once, since whoever starts the server may not see the browser."""
        name = displayable_name(host)
        if not name:
            return RequestRejected(403, "refused.address")
        if name not in self._rejected_names and len(self._rejected_names) < _MAX_PRINTED_NAMES:
            self._rejected_names.add(name)
            text = f"rejected a request for {name}; if that is this studio's address, add --allow-host {name}"
            print(f"impasto: {text}", file=sys.stderr, flush=True)
        return RequestRejected(403, "refused.host", name=name)

    def private_id(self, user: str, name: str) -> str:
        """Returns an id that only this user's requests can contain.

        Gradio finds a browser's state and uploads by ids that the browser chooses, so whoever learns an id could use
        another user's state. The keyed hash replaces each id by one that depends on the user.
        """
        text = f"{user}\0{name}".encode(errors="replace")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:32]

    def _withprivate_ids(
        self, scope: Scope, ids: tuple[str, ...], parameters: dict[str, str], user: str
    ) -> Scope:
        """Replaces the ids in the query and at the end of the path."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        query = [(key, self.private_id(user, value) if key in ids else value) for key, value in query]
        scope = {**scope, "query_string": urlencode(query).encode()}
        for key in set(ids) & set(parameters):
            prefix = scope["path"].removesuffix(parameters[key])
            scope["path"] = prefix + self.private_id(user, parameters[key])
            scope["raw_path"] = scope["path"].encode()
        return scope

    def _private_call(self, body: bytes, user: str) -> bytes:
        """Replaces the session id in the body of a Gradio call, and checks the id of an earlier call."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            raise RequestRejected(400, "refused.bad_request") from None
        if not isinstance(call, dict):
            raise RequestRejected(400, "refused.bad_request")
        if isinstance(call.get("session_hash"), str):
            call["session_hash"] = self.private_id(user, call["session_hash"])
        if call.get("event_id") is not None and self._events.get(str(call["event_id"])) != user:
            raise RequestRejected(404, "refused.not_here")
        return json.dumps(call).encode()

    def _upload_inspector(self, headers: Headers) -> Callable[[bytes], None]:
        """Returns a function that checks each piece of an upload, and the disk space now and every 64 MB.

        Content-Length may be missing, and other programs fill the disk too, so checking once is not enough.
        """
        parts, unchecked = MultipartInspector(headers.get("content-type", "")), 0

        def check_space(incoming_bytes: int) -> None:
            try:
                self.studio.check_free_space(incoming_bytes)
            except TrainerError:
                raise RequestRejected(507, "refused.no_space") from None

        def inspect(piece: bytes) -> None:
            nonlocal unchecked
            parts.inspect(piece)
            unchecked += len(piece)
            if unchecked > _SPACE_CHECK_BYTES:
                unchecked = 0
                check_space(_SPACE_CHECK_BYTES)

        check_space(_content_length(headers))
        return inspect

    def _buffered(self, endpoint: Endpoint, user: str, send: Send) -> Send:
        """Returns a `send` that collects the response before sending it.

        It records whose calls and uploads the response is about, and adds the policy and links to the page.
        """
        start: Message = {}
        pieces: list[bytes] = []

        async def collect(message: Message) -> None:
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
            if endpoint.kind == "page":
                headers = MutableHeaders(scope=start)
                headers["content-security-policy"] = _PAGE_POLICY.format(scripts=_script_hashes(body))
                body = self._with_addresses(body)
                headers["content-length"] = str(len(body))
            elif start["status"] == 200:
                self._record_owner(endpoint, user, body)
            await send(start)
            await send({"type": "http.response.body", "body": body})

        return collect

    def _with_addresses(self, page: bytes) -> bytes:
        """Adds links to the head of the page and sets the base against which it resolves its addresses.

        Gradio's base is `./`, which is wrong for a page that was opened as `/impasto`, without a slash at the end.
        """
        page = page.replace(b"</head>", f"{self.head_links()}</head>".encode(), 1)
        page = page.replace(b'rel="manifest" href="/', b'rel="manifest" href="./', 1)
        return page.replace(b'<base href="./"', f'<base href="{self.studio.root_path}/"'.encode(), 1)

    def _record_owner(self, endpoint: Endpoint, user: str, body: bytes) -> None:
        """Records the paths of an upload, or the id of a call, as the user's."""
        try:
            response = json.loads(body)
        except ValueError:
            return
        if endpoint.kind == "upload" and isinstance(response, list):
            for path in response:
                self.studio.uploads.record(user, str(path))
        elif isinstance(response, dict) and isinstance(response.get("event_id"), str):
            self._events[response["event_id"]] = user
            while len(self._events) > _MAX_EVENTS:
                self._events.popitem(last=False)


def _content_length(headers: Headers) -> int:
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _below(root_path: str, scope: Scope) -> Scope:
    """Returns the request with its path below the root path. Some reverse proxies strip the prefix, others keep it."""
    path, raw_path = scope["path"], scope.get("raw_path") or b""
    if not root_path or not f"{path}/".startswith(f"{root_path}/"):
        return scope
    raw_path = raw_path.removeprefix(root_path.encode())
    return {**scope, "path": path.removeprefix(root_path) or "/", "raw_path": raw_path or b"/"}


def _with_length(scope: Scope, length: int) -> Scope:
    replaced = (b"content-length", b"transfer-encoding")
    headers = [(key, value) for key, value in scope["headers"] if key not in replaced]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _script_hashes(page: bytes) -> str:
    """Returns CSP sources for the inline scripts of Gradio's page, so that no other inline script runs."""
    digests = (hashlib.sha256(text.encode()).digest() for text in _INLINE_SCRIPT.findall(page.decode()))
    return "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _harden(headers: MutableHeaders, has_accounts: bool) -> None:
    """Sets the headers of every response."""
    for name in [name for name in headers if name.lower().startswith("access-control-")]:
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
