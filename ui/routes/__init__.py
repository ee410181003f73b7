"""The studio's own HTTP routes.

Each route of an artist's files begins with `studio.workspace_of(request)`. A route without a login is marked `public`
(ui/access/allowlist.py).
"""

from __future__ import annotations

from fastapi import FastAPI

from ui.routes import assets, login, pictures, queue, results, static, updates
from ui.routes.assets import Assets
from ui.workspace import Studio


def add_routes(app: FastAPI, studio: Studio, frontend: Assets) -> None:
    """Adds all routes to the application, before Gradio is mounted beside them."""
    static.add_routes(app)
    assets.add_routes(app, frontend)
    login.add_routes(app, studio)
    pictures.add_routes(app, studio)
    results.add_routes(app, studio)
    queue.add_routes(app, studio)
    updates.add_routes(app, studio)
