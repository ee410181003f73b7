"""Bodies of requests, counted as they come: a length that a header claims proves nothing.

Gradio keeps the text parts and headers of a multipart body in memory without a limit (6.31); they are counted here.
"""

from __future__ import annotations

from collections.abc import Callable

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.types import Message, Receive

_TEXT_BYTES = 64_000  # all text parts and headers of a multipart body
_PARTS = 1_001


class Refused(Exception):
    """A request that is turned away, with a sentence of the studio's by its `key`."""

    def __init__(self, status: int, key: str) -> None:
        super().__init__(key)
        self.status, self.key = status, key


def counted(
    receive: Receive, body_bytes: int, refused: list[Refused], look: Callable[[bytes], None] | None = None
) -> Receive:
    """`receive` that raises Refused once more than `body_bytes` have come, and notes it in `refused`, since a route may turn what
    it meets while reading into an answer of its own; `look` sees each piece first, and may raise Refused too."""
    total = 0

    async def next_message() -> Message:
        nonlocal total
        message = await receive()
        piece = message.get("body", b"") if message["type"] == "http.request" else b""
        total += len(piece)
        try:
            if total > body_bytes:
                raise Refused(413, "refused.too_large")
            if look and piece:
                look(piece)
        except Refused as error:
            refused.append(error)
            raise
        return message

    return next_message


async def whole(receive: Receive) -> bytes:
    """All of a body; its size is limited by `counted`."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "refused.broke_off")
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body`, then what the connection says."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


class Parts:
    """Looks at a multipart body on its way and raises Refused for too many parts or too much text."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Refused(400, "refused.bad_request")
        self._text_bytes, self._parts, self._header, self._is_file = 0, 0, b"", False
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": self._head,
                "on_header_value": self._head,
                "on_part_data": self._data,
            },
        )

    def look(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError:
            raise Refused(400, "refused.damaged") from None

    def _begin(self) -> None:
        self._parts, self._header = self._parts + 1, b""
        if self._parts > _PARTS:
            raise Refused(413, "refused.too_many")

    def _head(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        if len(self._header) > 8_000:
            raise Refused(413, "refused.too_large")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if b"filename" in self._header.lower():
            return
        self._text_bytes += end - start
        if self._text_bytes > _TEXT_BYTES:
            raise Refused(413, "refused.too_large")
