"""The studio's own routes. Each begins with `studio.workspace_of(request)`; one without a login is marked `public` (ui/access/allowlist.py)."""

from __future__ import annotations

from fastapi import FastAPI

from ui.routes import assets, login, pictures, results, static
from ui.routes import queue as line
from ui.routes import updates as follow
from ui.routes.assets import Assets
from ui.workspace import Studio


def add_routes(app: FastAPI, studio: Studio, frontend: Assets) -> None:
    static.add_routes(app)
    assets.add_routes(app, frontend)
    login.add_routes(app, studio)
    pictures.add_picture_routes(app, studio)
    results.add_result_routes(app, studio)
    line.add_routes(app, studio)
    follow.add_routes(app, studio)
