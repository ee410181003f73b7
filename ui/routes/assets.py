"""Routes of Gradio's scripts and styles: compressed once, cached by browsers, and preloaded.

A page loads some sixty of them. Gradio compresses each file for every request, and the guard forbids caching by default.
Their names have a hash of their content, so both can be avoided. Files that earlier pages requested are linked in the head
of later ones: a browser then loads all of them at once instead of one script after another.
"""

from __future__ import annotations

import gzip
import mimetypes
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
_MAX_LINKS = 120
_LINKS = {
    ".js": '<link rel="modulepreload" href="./assets/{}">',
    ".css": '<link rel="preload" as="style" href="./assets/{}" crossorigin>',
}


@dataclass
class Assets:
    """The files of one folder; those that were requested are kept compressed in memory."""

    folder: Path
    _compressed: dict[str, bytes] = field(default_factory=dict)  # name -> gzip

    def compressed(self, name: str) -> bytes:
        """Returns a file as gzip.

        Raises:
            FileNotFoundError: the folder has no file of this name.
        """
        if name not in self._compressed:
            if Path(name).name != name or not (self.folder / name).is_file():
                raise FileNotFoundError(name)
            self._compressed[name] = gzip.compress((self.folder / name).read_bytes(), 6, mtime=0)
        return self._compressed[name]

    def links(self) -> str:
        """Returns elements for the head of a page that preload the files requested so far."""
        names = list(self._compressed)[:_MAX_LINKS]
        return "".join(
            _LINKS[suffix].format(name) for name in names if (suffix := Path(name).suffix) in _LINKS
        )


def add_routes(app: FastAPI, assets: Assets) -> None:
    """Adds the route of the files."""

    @app.get("/assets/{name}")
    async def asset(name: str, request: Request) -> Response:
        try:
            content = assets.compressed(name)
        except FileNotFoundError:
            raise HTTPException(404) from None
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(content, media_type=media_type, headers={**_FOREVER, "Content-Encoding": "gzip"})
        return Response(gzip.decompress(content), media_type=media_type, headers=_FOREVER)
