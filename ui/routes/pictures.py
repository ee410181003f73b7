"""Routes of a project's pictures: thumbnails, captions, repeats, crops, masks, and removing and restoring by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response

from trainer.dataset.overrides import MAX_REPEATS, Override, override_from, read_overrides
from trainer.errors import DatasetError, TrainerError
from ui.access.allowlist import max_body
from ui.routes.files import CACHED, found_or_404, picture_response
from ui.store import masks
from ui.store.caption_edits import save_caption
from ui.workspace import Studio, Workspace

_MAX_CAPTION_BYTES, _MAX_CHOICE_BYTES = 16_384, 1_024

# A change by a request body; returns fields of the JSON response besides "message". Raises TrainerError.
_Change = Callable[[Workspace, bytes], dict[str, Any] | None]


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Adds the routes that show pictures and those that change them."""
    _add_reading_routes(app, studio)
    _add_writing_routes(app, studio)


def _add_reading_routes(app: FastAPI, studio: Studio) -> None:
    @app.get("/thumb/{project}/{name:path}")
    def thumb(project: str, name: str, request: Request) -> FileResponse:
        return picture_response(
            lambda: studio.workspace_of(request).projects.thumbnail(project, name), "image/webp"
        )

    @app.get("/thumb-removed/{project}/{name:path}")
    def thumb_removed(project: str, name: str, request: Request) -> FileResponse:
        return picture_response(
            lambda: studio.workspace_of(request).projects.removed_thumbnail(project, name), "image/webp"
        )

    @app.get("/large/{project}/{name:path}")
    def large(project: str, name: str, request: Request) -> FileResponse:
        return picture_response(
            lambda: studio.workspace_of(request).projects.large(project, name), "image/webp"
        )

    @app.get("/mask/{project}/{name:path}")
    def mask(project: str, name: str, request: Request) -> Response:
        content = found_or_404(
            lambda: masks.mask_png(studio.workspace_of(request).projects.picture(project, name))
        )
        return Response(content, media_type="image/png", headers=CACHED)


async def _change(studio: Studio, request: Request, work: _Change, max_bytes: int) -> JSONResponse:
    """Runs a change in a thread; responds with what was done, or with status 400 and the reason why not."""
    try:
        workspace, body = studio.workspace_of(request), await _body(request, max_bytes)
        fields = await run_in_threadpool(work, workspace, body)
        return JSONResponse({"message": workspace.words("artwork.saved"), **(fields or {})})
    except TrainerError as error:
        return JSONResponse({"message": str(error)}, status_code=400)


def _add_writing_routes(app: FastAPI, studio: Studio) -> None:
    @app.put("/caption/{project}/{name:path}")
    async def caption(project: str, name: str, request: Request) -> Response:
        def work(workspace: Workspace, body: bytes) -> dict[str, Any]:
            text = body.decode("utf-8", errors="replace")
            tokens = save_caption(workspace.projects, project, name, text)
            return {"hint": workspace.words("captions.long", tokens=tokens) if tokens else ""}

        return await _change(studio, request, work, _MAX_CAPTION_BYTES)

    @app.put("/choice/{project}/{name:path}")
    async def choice(project: str, name: str, request: Request) -> Response:
        def work(workspace: Workspace, body: bytes) -> None:
            _set_override(workspace, project, name, body)

        return await _change(studio, request, work, _MAX_CHOICE_BYTES)

    @app.put("/mask/{project}/{name:path}")
    @max_body(masks.MAX_BYTES)
    async def put_mask(project: str, name: str, request: Request) -> Response:
        def work(workspace: Workspace, body: bytes) -> None:
            masks.save_mask(workspace.projects.picture(project, name), body)

        return await _change(studio, request, work, masks.MAX_BYTES)

    @app.post("/remove/{project}/{name:path}")
    async def remove(project: str, name: str, request: Request) -> Response:
        def work(workspace: Workspace, body: bytes) -> None:
            workspace.projects.remove(project, name)

        return await _change(studio, request, work, 0)

    @app.post("/restore/{project}/{name:path}")
    async def restore(project: str, name: str, request: Request) -> Response:
        def work(workspace: Workspace, body: bytes) -> dict[str, Any]:
            return {"name": workspace.projects.restore(project, name)}

        return await _change(studio, request, work, 0)


def _set_override(workspace: Workspace, project: str, name: str, body: bytes) -> None:
    """Stores the repeats or the crop of a picture: {"repeats": 2} or {"crop": [0.5, 0]}. Other fields stay as they are.

    Raises:
        DatasetError: there is no such picture, or a value is not valid.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    override = override_from(fields)
    if not isinstance(fields, dict) or not fields or set(fields) - {"repeats", "crop"}:
        raise DatasetError("this change could not be read; reload the page")
    # `override_from` replaces invalid values by defaults, so a value that differs was invalid.
    if "repeats" in fields and (type(fields["repeats"]) is not int or override.repeats != fields["repeats"]):
        raise DatasetError(
            f"a picture can be repeated 1 to {MAX_REPEATS} times; enter a number in this range"
        )
    if fields.get("crop") is not None and override.crop is None:
        raise DatasetError("the crop is outside the picture; move it again")
    stored = read_overrides(workspace.projects.folder(project)).get(name, Override())
    changes = {key: getattr(override, key) for key in fields}
    workspace.projects.set_override(project, name, dataclasses.replace(stored, **changes))


async def _body(request: Request, max_bytes: int) -> bytes:
    """Returns the request body.

    Raises:
        DatasetError: as soon as more than `max_bytes` have arrived.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise DatasetError("that is too long; shorten it")
    return bytes(body)
