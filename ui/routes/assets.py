"""Gradio's own scripts and styles, some sixty to a page: read and compressed once, and kept by browsers for good.

Gradio compresses each anew whenever it is asked for, and the guard lets nothing be kept. Their names change with what is in
them, so that both can be spared. What pages have asked for so far, the next page names in its head: a browser fetches it at
once instead of when one script after another asks for it.
"""

from __future__ import annotations

import gzip
import mimetypes
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

_LONG = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
_MOST_LINKS = 120
_LINKS = {
    ".js": '<link rel="modulepreload" href="/assets/{}">',
    ".css": '<link rel="preload" as="style" href="/assets/{}" crossorigin>',
}


@dataclass
class Assets:
    """The files of one folder, and which of them have been asked for."""

    folder: Path
    _kept: dict[str, bytes] = field(default_factory=dict)  # name -> gzip

    def compressed(self, name: str) -> bytes:
        """A file as gzip. Raises FileNotFoundError for a name that is none of the folder's."""
        if name not in self._kept:
            if Path(name).name != name or not (self.folder / name).is_file():
                raise FileNotFoundError(name)
            self._kept[name] = gzip.compress((self.folder / name).read_bytes(), 6, mtime=0)
        return self._kept[name]

    def links(self) -> str:
        """Elements for the head of a page."""
        asked = [(Path(name).suffix, name) for name in list(self._kept)[:_MOST_LINKS]]
        return "".join(_LINKS[suffix].format(name) for suffix, name in asked if suffix in _LINKS)


def add_routes(app: FastAPI, assets: Assets) -> None:
    @app.get("/assets/{name}")
    async def asset(name: str, request: Request) -> Response:
        try:
            content = assets.compressed(name)
        except FileNotFoundError:
            raise HTTPException(404) from None
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(content, media_type=kind, headers={**_LONG, "Content-Encoding": "gzip"})
        return Response(gzip.decompress(content), media_type=kind, headers=_LONG)
