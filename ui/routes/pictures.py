"""Pictures of a project: shown small and large, captioned, cropped, counted, masked, removed and restored, each by its name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response

from trainer.dataset.augmentations import mask_file
from trainer.dataset.overrides import MAX_REPEATS, Override, override_from, read_overrides
from trainer.errors import DatasetError, TrainerError
from ui.access.allowlist import takes
from ui.store import masks
from ui.store.caption_edits import save_caption
from ui.workspace import Studio, Workspace

_KEPT = {"Cache-Control": "private, max-age=3600"}


def add_picture_routes(app: FastAPI, studio: Studio) -> None:
    _add_shown(app, studio)
    _add_changed(app, studio)


def _add_shown(app: FastAPI, studio: Studio) -> None:
    @app.get("/thumb/{project}/{name:path}")
    def thumb(project: str, name: str, request: Request) -> FileResponse:
        return _file(lambda: studio.workspace_of(request).projects.thumbnail(project, name), "image/webp")

    @app.get("/thumb-removed/{project}/{name:path}")
    def thumb_removed(project: str, name: str, request: Request) -> FileResponse:
        return _file(
            lambda: studio.workspace_of(request).projects.removed_thumbnail(project, name), "image/webp"
        )

    @app.get("/large/{project}/{name:path}")
    def large(project: str, name: str, request: Request) -> FileResponse:
        return _file(lambda: studio.workspace_of(request).projects.large(project, name), "image/webp")

    @app.get("/mask/{project}/{name:path}")
    def mask(project: str, name: str, request: Request) -> FileResponse:
        def look() -> Path:
            found = mask_file(studio.workspace_of(request).projects.picture(project, name))
            if found is None:
                raise DatasetError("no mask")
            return found

        return _file(look, "image/png")


def _add_changed(app: FastAPI, studio: Studio) -> None:
    async def change(
        request: Request, work: Callable[[Workspace, bytes], dict[str, Any] | None], most_bytes: int
    ) -> JSONResponse:
        """Answers with what was done, or with the reason why not."""
        try:
            workspace, body = studio.workspace_of(request), await _body(request, most_bytes)
            facts = await run_in_threadpool(work, workspace, body)
            return JSONResponse({"message": workspace.words("artwork.saved"), **(facts or {})})
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)

    @app.put("/caption/{project}/{name:path}")
    async def caption(project: str, name: str, request: Request) -> Response:
        def work(workspace: Workspace, body: bytes) -> dict[str, Any]:
            hint = save_caption(workspace.projects, project, name, body.decode("utf-8", errors="replace"))
            return {"hint": workspace.words("captions.long", tokens=hint) if hint else ""}

        return await change(request, work, 16_384)

    @app.put("/choice/{project}/{name:path}")
    async def choice(project: str, name: str, request: Request) -> Response:
        return await change(request, lambda workspace, body: _choose(workspace, project, name, body), 1024)

    @app.put("/mask/{project}/{name:path}")
    @takes(masks.MAX_BYTES)
    async def put_mask(project: str, name: str, request: Request) -> Response:
        return await change(
            request,
            lambda workspace, body: masks.save_mask(workspace.projects.picture(project, name), body),
            masks.MAX_BYTES,
        )

    @app.post("/remove/{project}/{name:path}")
    async def remove(project: str, name: str, request: Request) -> Response:
        return await change(request, lambda workspace, _: workspace.projects.remove(project, name), 0)

    @app.post("/restore/{project}/{name:path}")
    async def restore(project: str, name: str, request: Request) -> Response:
        return await change(
            request, lambda workspace, _: {"name": workspace.projects.restore(project, name)}, 0
        )


def _choose(workspace: Workspace, project: str, name: str, body: bytes) -> None:
    """{"repeats": 2} or {"crop": [0.5, 0]}: what is not said stays. Raises DatasetError."""
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError):
        wanted = None
    said = override_from(wanted)
    if not isinstance(wanted, dict) or not wanted or set(wanted) - {"repeats", "crop"}:
        raise DatasetError("that could not be read; reload the page")
    if "repeats" in wanted and (type(wanted["repeats"]) is not int or said.repeats != wanted["repeats"]):
        raise DatasetError(f"a picture is seen 1 to {MAX_REPEATS} times")
    if wanted.get("crop") is not None and said.crop is None:
        raise DatasetError("a crop lies between the picture's edges; move it again")
    kept = read_overrides(workspace.projects.folder(project)).get(name, Override())
    changes = {key: getattr(said, key) for key in wanted}
    workspace.projects.set_choice(project, name, dataclasses.replace(kept, **changes))


async def _body(request: Request, most_bytes: int) -> bytes:
    """Raises DatasetError as soon as more has come than may be."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise DatasetError("that is too long; make it shorter")
    return bytes(body)


def _file(look: Callable[[], Path], media_type: str) -> FileResponse:
    """404 without a reason for what is not there and for what is not one's own."""
    try:
        return FileResponse(look(), media_type=media_type, headers=_KEPT)
    except (TrainerError, OSError, ValueError):
        raise HTTPException(404, "not found") from None
