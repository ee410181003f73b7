"""Limits of request bodies, enforced while they arrive: a Content-Length header can be wrong or missing.

Gradio stores the text parts and headers of a multipart body in memory without a limit (6.31), so they are counted here.
"""

from __future__ import annotations

from collections.abc import Callable

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.types import Message, Receive

_MAX_TEXT_BYTES = 64_000  # of all text parts of a multipart body
_MAX_HEADER_BYTES = 8_000  # of one part
_MAX_PARTS = 1_001  # 1,000 files and one text part


class RequestRejected(Exception):
    """A request that the guard rejects, with the HTTP status, the key of a sentence in ui/text and its values."""

    def __init__(self, status: int, key: str, **values: str) -> None:
        super().__init__(key)
        self.status, self.key, self.values = status, key, values


def limited(
    receive: Receive,
    body_bytes: int,
    rejections: list[RequestRejected],
    inspect: Callable[[bytes], None] | None = None,
) -> Receive:
    """Wraps `receive` so that it raises RequestRejected after `body_bytes`.

    Args:
        rejections: receives the exception too. A route may catch an exception while it reads its body and send a response
            of its own, which the guard then replaces.
        inspect: called with each piece of the body; may raise RequestRejected.
    """
    total = 0

    async def next_message() -> Message:
        nonlocal total
        message = await receive()
        piece = message.get("body", b"") if message["type"] == "http.request" else b""
        total += len(piece)
        try:
            if total > body_bytes:
                raise RequestRejected(413, "refused.too_large")
            if inspect and piece:
                inspect(piece)
        except RequestRejected as error:
            rejections.append(error)
            raise
        return message

    return next_message


async def read_body(receive: Receive) -> bytes:
    """Returns the complete body; `limited` limits its size.

    Raises:
        RequestRejected: the browser disconnected.
    """
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise RequestRejected(400, "refused.broke_off")
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` with `body` as its first message, followed by the messages of the connection."""
    is_sent = False

    async def next_message() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


class MultipartInspector:
    """Parses a multipart body while it passes and limits the number of parts and the size of texts.

    Raises:
        RequestRejected: for a body that is not multipart, damaged, or over a limit.
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise RequestRejected(400, "refused.bad_request")
        self._text_bytes, self._parts, self._header = 0, 0, b""
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._on_part,
                "on_header_field": self._on_header,
                "on_header_value": self._on_header,
                "on_part_data": self._on_data,
            },
        )

    def inspect(self, piece: bytes) -> None:
        """Parses the next piece of the body."""
        try:
            self._parser.write(piece)
        except FormParserError:
            raise RequestRejected(400, "refused.damaged") from None

    def _on_part(self) -> None:
        self._parts, self._header = self._parts + 1, b""
        if self._parts > _MAX_PARTS:
            raise RequestRejected(413, "refused.too_many")

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        if len(self._header) > _MAX_HEADER_BYTES:
            raise RequestRejected(413, "refused.too_large")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if b"filename" in self._header.lower():  # Gradio writes files to the disk; `limited` counts them
            return
        self._text_bytes += end - start
        if self._text_bytes > _MAX_TEXT_BYTES:
            raise RequestRejected(413, "refused.too_large")
