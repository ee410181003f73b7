"""What the page's script asks and tells by itself: what is new, and the fields of Advanced."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from trainer.errors import TrainerError
from ui.updates import page_state
from ui.views.training import save_advanced
from ui.workspace import Studio


def add_routes(app: FastAPI, studio: Studio) -> None:
    @app.get("/pulse")
    def news(request: Request, project: str = "") -> JSONResponse:
        try:
            return JSONResponse(page_state(studio.workspace_of(request), project))
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)

    @app.post("/settings/{project}")
    async def keep(project: str, request: Request) -> JSONResponse:
        try:
            workspace = studio.workspace_of(request)
            said = await request.json()
            if not isinstance(said, dict):
                raise TrainerError("that is no form")
            await run_in_threadpool(save_advanced, workspace, project, said)
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)
        except (ValueError, RecursionError):
            return JSONResponse({"message": "that is no JSON"}, status_code=400)
        return JSONResponse({"message": ""})
