"""The line of trainings: the small buttons beside each."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from trainer.errors import TrainerError
from ui.studio import Studio


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
