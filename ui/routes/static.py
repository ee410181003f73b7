"""Routes without a login: the page's script, style and icon, and the health check."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from ui.access.allowlist import public
from ui.theme import ICON, LOGIN_CSS, SCRIPT

# The addresses of script and style have a hash of their content, so a browser never has to ask again.
_FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
_ONE_DAY = {"Cache-Control": "public, max-age=86400"}


def add_routes(app: FastAPI) -> None:
    """Adds the public files."""

    @app.get("/healthz")
    @public
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/studio.js")
    @public
    def script() -> Response:
        return Response(SCRIPT, media_type="text/javascript", headers=_FOREVER)

    @app.get("/login.css")
    @public
    def style() -> Response:
        return Response(LOGIN_CSS, media_type="text/css", headers=_FOREVER)

    @app.get("/icon.svg")
    @app.get("/favicon.ico")
    @public
    def icon() -> Response:
        return Response(ICON, media_type="image/svg+xml", headers=_ONE_DAY)

    @app.get("/manifest.json")
    @public
    def manifest() -> JSONResponse:
        icons = [{"src": "icon.svg", "type": "image/svg+xml", "sizes": "any"}]
        return JSONResponse(
            {
                "name": "Impasto",
                "short_name": "Impasto",
                "start_url": ".",
                "display": "standalone",
                "icons": icons,
            }
        )

    @app.get("/robots.txt")
    @public
    def robots() -> Response:
        return PlainTextResponse("User-agent: *\nDisallow: /\n")
