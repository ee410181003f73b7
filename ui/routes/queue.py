"""The line of trainings: the small buttons beside each, and Stop."""

from __future__ import annotations

import contextlib

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from trainer.errors import TrainerError
from ui.views.training import shown_run
from ui.workspace import Studio


def add_routes(app: FastAPI, studio: Studio) -> None:
    @app.post("/line/{run}/{action}")
    def change(run: str, action: str, request: Request) -> JSONResponse:
        try:
            jobs = studio.of(request).jobs
            if action in ("up", "down"):
                jobs.move(run, -1 if action == "up" else 1)
            elif action in ("stop", "remove"):
                jobs.stop(run)
            else:
                return JSONResponse({"message": "not found"}, status_code=404)
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)
        return JSONResponse({"message": ""})

    @app.post("/stop/{project}")
    def stop(project: str, request: Request) -> JSONResponse:
        """Stops what the Train tab shows of a project."""
        desk = studio.of(request)
        run = shown_run(desk, project)
        if run:
            with contextlib.suppress(TrainerError):  # it has gone meanwhile
                desk.jobs.stop(run)
        return JSONResponse({"message": ""})
