"""The web server: pictures, thumbnails, captions and downloads by its own routes; the page mounted beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse

from trainer.errors import TrainerError
from ui.guard import Guard
from ui.jobs import Jobs
from ui.projects import Projects
from ui.quick_start import without_editor_stubs

_ROOT = Path(__file__).resolve().parent.parent


def build_app(*, host: str, datasets: Path, outputs: Path, models: Path):
    """The whole application as ASGI, guard included."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    without_editor_stubs()
    import gradio as gr

    from ui.build import build_page
    from ui.theme import CSS, HEAD, theme

    jobs = Jobs(outputs, models)
    projects = Projects(datasets, outputs / ".cache")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, jobs, projects)
    page = build_page(jobs, projects)
    gr.mount_gradio_app(
        app, page, path="/", server_name=host, theme=theme(), css=CSS, head=HEAD, show_error=False, run_history=False,
        enable_monitoring=False, footer_links=[], ssr_mode=False, max_file_size="200mb",
    )  # fmt: skip
    return Guard(app, host)


def add_routes(app: FastAPI, jobs: Jobs, projects: Projects) -> None:
    """Files by name, never by path: each name is looked up in what is there."""

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/thumb/{project}/{name:path}")
    def thumb(project: str, name: str) -> FileResponse:
        return _found(lambda: projects.thumbnail(project, name), "image/webp")

    @app.put("/caption/{project}/{name:path}")
    async def caption(project: str, name: str, request: Request) -> JSONResponse:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > 16_384:
                return JSONResponse({"message": "that caption is too long; shorten it"}, status_code=400)
        try:
            projects.save_caption(project, name, body.decode("utf-8", errors="replace"))
        except TrainerError as error:
            return JSONResponse({"message": str(error)}, status_code=400)
        return JSONResponse({"message": "Saved"})

    @app.get("/picture/{run}/{name:path}")
    def picture(run: str, name: str) -> FileResponse:
        def look() -> Path:
            folder = jobs.run(run).samples
            path = (folder / name).resolve()
            if path.suffix != ".png" or not path.is_file() or not path.is_relative_to(folder.resolve()):
                raise TrainerError("no such picture")
            return path

        return _found(look, "image/png")

    @app.get("/download/{run}")
    def download(run: str) -> FileResponse:
        def look() -> Path:
            path = jobs.run(run).lora_file
            if not path.is_file():
                raise TrainerError("no file yet")
            return path

        path = _path_or_404(look)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)


def _found(look, media_type: str) -> FileResponse:
    return FileResponse(_path_or_404(look), media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})


def _path_or_404(look) -> Path:
    try:
        return look()
    except (TrainerError, OSError, ValueError):
        raise HTTPException(404, "not found") from None


def serve(*, host: str, port: int, datasets: Path, outputs: Path, models: Path) -> int:
    """Serves until stopped; the exit status. Says the address and the device on the terminal."""
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            print(f"impasto: {host}:{port} can't be used; another program may hold it: try --port {port + 1}", file=sys.stderr)
            return 1
    for folder in (datasets, outputs):
        folder.mkdir(parents=True, exist_ok=True)
    app = build_app(host=host, datasets=datasets, outputs=outputs, models=models)
    print(f"Impasto is at http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    threading.Thread(target=_say_device, daemon=True).start()
    uvicorn.run(app, host=host, port=port, log_level="warning")
    return 0


def _say_device() -> None:
    """Asked of a child process, so that torch stays out of this one."""
    command = [sys.executable, "-m", "trainer", "device"]
    found = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True).stdout.strip()
    print(f"Device: {found or 'none found; is torch installed?'}", flush=True)
