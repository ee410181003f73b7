"""Routes that the page's script uses on its own: the poll for changes, and saving the fields under Advanced."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from trainer.errors import TrainerError
from ui.updates import page_state
from ui.views.training import save_advanced
from ui.workspace import Studio


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Adds the routes of the page's script."""

    @app.get("/pulse")
    def poll(request: Request, project: str = "") -> JSONResponse:
        try:
            return JSONResponse(page_state(studio.workspace_of(request), project))
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)

    @app.post("/settings/{project}")
    async def save_settings(project: str, request: Request) -> JSONResponse:
        """Saves {field: value} of the Advanced section."""
        try:
            workspace = studio.workspace_of(request)
            fields = await request.json()
            if not isinstance(fields, dict):
                raise TrainerError("the settings must be a JSON object; reload the page")
            await run_in_threadpool(save_advanced, workspace, project, fields)
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)
        except (ValueError, RecursionError):
            message = "the settings are not valid JSON; reload the page"
            return JSONResponse({"message": message}, status_code=400)
        return JSONResponse({"message": ""})
