"""What trainings and drawings made: pictures, files with their sidecars, and the strength that an artist prefers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from trainer.errors import TrainerError
from ui.store import share
from ui.store.drawings import Drawings
from ui.store.library import Library
from ui.workspace import Studio


def add_result_routes(app: FastAPI, studio: Studio) -> None:
    @app.get("/picture/{run}/{name:path}")
    def picture(run: str, name: str, request: Request) -> FileResponse:
        def look() -> Path:
            folder = studio.workspace_of(request).runs.run(run).samples
            path = (folder / name).resolve()
            if path.suffix != ".png" or not path.is_file() or not path.is_relative_to(folder.resolve()):
                raise TrainerError("no such picture")
            return path

        return _found(look, "image/png")

    @app.get("/drawn/{drawing}/{name}")
    def drawn(drawing: str, name: str, request: Request) -> FileResponse:
        return _found(lambda: Drawings(studio.workspace_of(request).runs).picture(drawing, name), "image/png")

    @app.get("/cover/{key}")
    def cover(key: str, request: Request) -> FileResponse:
        return _found(lambda: Library(studio.workspace_of(request).runs).thumbnail(key), "image/webp")

    @app.get("/download/{key}")
    def download(key: str, request: Request) -> FileResponse:
        library = Library(studio.workspace_of(request).runs)
        path = _path_or_404(lambda: library.entry(key).file)
        return FileResponse(
            path, media_type="application/octet-stream", filename=f"{library.entry(key).stem}.safetensors"
        )

    @app.get("/download/{key}/{part}")
    def beside(key: str, part: str, request: Request) -> Response:
        """`json` and `png` for A1111 and ComfyUI, `zip` with everything."""
        library = Library(studio.workspace_of(request).runs)
        try:
            entry = library.entry(key)
            if part == "json":
                return _attached(share.sidecar(entry), f"{entry.stem}.json", "application/json")
            shown = share.preview(library, key) if part == "png" else None
            if shown:
                return _attached(shown, f"{entry.stem}.png", "image/png")
        except (TrainerError, OSError, ValueError):
            raise HTTPException(404, "not found") from None
        if part != "zip":
            raise HTTPException(404, "not found")
        return StreamingResponse(
            share.zipped(share.parts(library, key)),
            media_type="application/zip",
            headers=_named(f"{entry.stem}.zip"),
        )

    @app.get("/making/{work}")
    def making(work: str, request: Request) -> JSONResponse:
        workspace = studio.workspace_of(request)
        state, message = Library(workspace.runs).job_status(work)
        said = {
            "finished": workspace.words("try_it.chosen"),
            "failed": message,
            "working": workspace.words("try_it.choosing"),
        }
        return JSONResponse({"state": state, "message": said[state]})

    @app.put("/prefer/{key}")
    async def prefer(key: str, request: Request) -> JSONResponse:
        """{"strength": 0.75} or, of a checkpoint, {"strength": 0.75, "step": 200}."""
        workspace = studio.workspace_of(request)
        try:
            said = json.loads(await request.body())
            step = said.get("step")
            if step is not None and type(step) is not int:
                raise TrainerError(workspace.words("try_it.not_chosen"))
            work = Library(workspace.runs).prefer(key, said.get("strength"), step)
        except (ValueError, AttributeError):
            return JSONResponse({"message": workspace.words("try_it.not_chosen")}, status_code=400)
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)
        words = (
            workspace.words("try_it.choosing")
            if work
            else workspace.words("try_it.is_preferred", value=f"{said['strength']:g}")
        )
        return JSONResponse({"message": words, "work": work})


def _found(look: Callable[[], Path], media_type: str) -> FileResponse:
    return FileResponse(
        _path_or_404(look), media_type=media_type, headers={"Cache-Control": "private, max-age=3600"}
    )


def _path_or_404(look: Callable[[], Path]) -> Path:
    """What `look` finds; 404 without a reason for what is not there and for what is not one's own."""
    try:
        return look()
    except (TrainerError, OSError, ValueError):
        raise HTTPException(404, "not found") from None


def _attached(data: bytes, name: str, media_type: str) -> Response:
    return Response(data, media_type=media_type, headers=_named(name))


def _named(name: str) -> dict[str, str]:
    """A download's name in any script (RFC 6266)."""
    return {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}"}
