"""Routes of what trainings and drawings produced: pictures, LoRA files with sidecars, and the preferred strength."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from trainer.errors import TrainerError
from ui.routes.files import found_or_404, picture_response
from ui.store import share
from ui.store.drawings import Drawings
from ui.store.file_jobs import FileJobs
from ui.store.library import Library
from ui.store.lora_pictures import thumbnail
from ui.workspace import Studio


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Adds the routes of pictures, downloads and the preferred strength."""
    _add_picture_routes(app, studio)
    _add_download_routes(app, studio)
    _add_preference_routes(app, studio)


def _add_picture_routes(app: FastAPI, studio: Studio) -> None:
    @app.get("/picture/{run}/{name:path}")
    def picture(run: str, name: str, request: Request) -> FileResponse:
        def find() -> Path:
            folder = studio.workspace_of(request).runs.run(run).samples
            path = (folder / name).resolve()
            if path.suffix != ".png" or not path.is_file() or not path.is_relative_to(folder.resolve()):
                raise TrainerError("there is no such picture")
            return path

        return picture_response(find, "image/png")

    @app.get("/drawn/{drawing}/{name}")
    def drawn(drawing: str, name: str, request: Request) -> FileResponse:
        def find() -> Path:
            return Drawings(studio.workspace_of(request).runs).picture(drawing, name)

        return picture_response(find, "image/png")

    @app.get("/cover/{key}")
    def cover(key: str, request: Request) -> FileResponse:
        def find() -> Path:
            return thumbnail(Library(studio.workspace_of(request).runs), key)

        return picture_response(find, "image/webp")


def _add_download_routes(app: FastAPI, studio: Studio) -> None:
    @app.get("/download/{key}")
    def download(key: str, request: Request) -> FileResponse:
        library = Library(studio.workspace_of(request).runs)
        path = found_or_404(lambda: library.entry(key).file)
        name = f"{library.entry(key).stem}.safetensors"
        return FileResponse(path, media_type="application/octet-stream", filename=name)

    @app.get("/download/{key}/{part}")
    def download_part(key: str, part: str, request: Request) -> Response:
        """Sends `json` or `png`, the sidecars of A1111 and ComfyUI, or `zip` with everything."""
        library = Library(studio.workspace_of(request).runs)
        try:
            entry = library.entry(key)
            picture = share.preview(library, key) if part == "png" else None
        except (TrainerError, OSError, ValueError):
            raise HTTPException(404, "not found") from None
        name = f"{entry.stem}.{part}"
        if part == "json":
            return _attachment(share.sidecar(entry), name, "application/json")
        if picture:
            return _attachment(picture, name, "image/png")
        if part != "zip":
            raise HTTPException(404, "not found")
        stream = share.zip_stream(share.zip_members(library, key))
        return StreamingResponse(stream, media_type="application/zip", headers=_named(name))


def _add_preference_routes(app: FastAPI, studio: Studio) -> None:
    @app.get("/making/{work}")
    def job_status(work: str, request: Request) -> JSONResponse:
        """Returns the state of the job that exports a checkpoint."""
        workspace = studio.workspace_of(request)
        state, message = FileJobs(workspace.runs).status(work)
        messages = {
            "finished": workspace.words("try_it.chosen"),
            "failed": message,
            "working": workspace.words("try_it.choosing"),
        }
        return JSONResponse({"state": state, "message": messages[state]})

    @app.put("/prefer/{key}")
    async def prefer(key: str, request: Request) -> JSONResponse:
        """Stores {"strength": 0.75}, or with a checkpoint {"strength": 0.75, "step": 200}."""
        workspace = studio.workspace_of(request)
        try:
            fields = json.loads(await request.body())
            step, strength = fields.get("step"), fields.get("strength")
            if step is not None and type(step) is not int:
                raise TrainerError(workspace.words("try_it.not_chosen"))
            job = Library(workspace.runs).prefer(key, strength, step)
        except (ValueError, AttributeError):
            return JSONResponse({"message": workspace.words("try_it.not_chosen")}, status_code=400)
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)
        if job:
            message = workspace.words("try_it.choosing")
        else:
            message = workspace.words("try_it.is_preferred", value=f"{strength:g}")
        return JSONResponse({"message": message, "work": job})


def _attachment(data: bytes, name: str, media_type: str) -> Response:
    return Response(data, media_type=media_type, headers=_named(name))


def _named(name: str) -> dict[str, str]:
    """Returns the header with a download's name, in any script (RFC 6266)."""
    return {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}"}
