"""Routes of the queue: the buttons beside each training, and Stop."""

from __future__ import annotations

import contextlib

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from trainer.errors import TrainerError
from ui.views.training import shown_run
from ui.workspace import Studio


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Adds the routes that change the queue."""

    @app.post("/line/{run}/{action}")
    def change(run: str, action: str, request: Request) -> JSONResponse:
        try:
            runs = studio.workspace_of(request).runs
            if action in ("up", "down"):
                runs.move(run, -1 if action == "up" else 1)
            elif action in ("stop", "remove"):
                runs.stop(run)
            else:
                return JSONResponse({"message": "not found"}, status_code=404)
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)
        return JSONResponse({"message": ""})

    @app.post("/stop/{project}")
    def stop(project: str, request: Request) -> JSONResponse:
        """Stops the run that the Train tab shows for a project."""
        workspace = studio.workspace_of(request)
        run = shown_run(workspace, project)
        if run:
            with contextlib.suppress(TrainerError):  # the run has been deleted meanwhile
                workspace.runs.stop(run)
        return JSONResponse({"message": ""})
