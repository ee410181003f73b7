"""The web server: our own routes with the page mounted beside them, the guard before both; one server to a folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from trainer.atomic_files import write_atomically
from trainer.errors import RunError, TrainerError
from trainer.runs.queue import Queue
from trainer.runs.run import Run, claim
from ui.access.hosts import Hosts, url
from ui.gradio_startup import without_editor_stubs
from ui.guard import Guard
from ui.store.limits import Limits
from ui.workspace import Studio

_CLEAN_UP_SECONDS = 600
_QUEUE: dict[str, Any] = {"max_size": 100, "default_concurrency_limit": 4}


def build_app(
    *,
    host: str,
    datasets: Path,
    outputs: Path,
    models: Path,
    limits: Limits | None = None,
    users: Path | None = None,
    names: tuple[str, ...] = (),
) -> Guard:
    """The whole application as ASGI, guard included; `names` are host names that it answers to besides its own."""
    studio = Studio(datasets, outputs, models, limits, users)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(studio.uploads.folder)
    without_editor_stubs()
    import gradio as gr

    from ui.access.allowlist import gradio_endpoints, own_endpoints
    from ui.page import build_page, translations
    from ui.routes import add_routes
    from ui.routes.assets import Assets
    from ui.theme import CSS, HEAD, theme

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    frontend = Assets(Path(gr.__file__).parent / "templates" / "frontend" / "assets")
    add_routes(app, studio, frontend)
    doors = [*own_endpoints(app.routes), *gradio_endpoints(studio.limits)]
    label = translations()
    page = build_page(studio, label).queue(**_QUEUE)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        i18n=label,
        theme=theme(),
        css=CSS,
        head=HEAD,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        ssr_mode=False,
        max_file_size=studio.limits.file_bytes,
    )
    return Guard(app, studio, doors, Hosts.of(host, names), frontend.links)


def serve(
    *,
    host: str,
    port: int,
    datasets: Path,
    outputs: Path,
    models: Path,
    limits: Limits,
    users: Path | None,
    names: tuple[str, ...],
) -> int:
    """Serves until stopped; the exit status. Says the address and the device on the terminal."""
    import uvicorn

    try:
        for folder in (datasets, outputs):
            folder.mkdir(parents=True, exist_ok=True)
        with only_server(outputs, url(host, port)):
            if not _is_free(host, port):
                raise TrainerError(
                    f"{url(host, port)} can't be used; another program may hold it: try --port {port + 1}"
                )
            app = build_app(
                host=host,
                datasets=datasets,
                outputs=outputs,
                models=models,
                limits=limits,
                users=users,
                names=names,
            )
            print(f"Impasto is at {url(host, port)}  (Ctrl-C ends it)", flush=True)
            threading.Thread(target=_say_devices, args=(app.studio.queue,), daemon=True).start()
            threading.Thread(target=_clean_up_regularly, args=(app.studio,), daemon=True).start()
            uvicorn.run(
                app,
                host=host,
                port=port,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=3,
            )
    except (TrainerError, OSError) as error:
        print(f"impasto: {error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def only_server(outputs: Path, address: str) -> Iterator[None]:
    """Makes this process the only server of a folder; a dead one's place is taken. Raises TrainerError, naming the living one."""
    place = Run(outputs / ".cache" / "server")
    place.path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(claim(place))
        except RunError:
            raise TrainerError(
                f"{outputs} is served already{_by_whom(place.path)}; open that one, or stop it first"
            ) from None
        write_atomically(
            place.path / "address.json", json.dumps({"pid": os.getpid(), "address": address}).encode()
        )
        yield


def _by_whom(place: Path) -> str:
    """` by process 71 at http://...`: the other server may just be about to write it."""
    for _ in range(10):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            pid = json.loads((place / "owner.json").read_text())["pid"]
            said = json.loads((place / "address.json").read_text())
            if said["pid"] == pid:
                return f" by process {pid} at {said['address']}"
        time.sleep(0.1)
    return ""


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True


def _clean_up_regularly(studio: Studio) -> None:
    studio.clean_up(0)  # whoever was sending has gone with the server before this one
    while True:
        time.sleep(_CLEAN_UP_SECONDS)
        studio.clean_up()


def _say_devices(queue: Queue) -> None:
    """Asked of a child process, so that torch stays out of this one; then the line is looked after."""
    queue.detect_devices()
    print(f"Device: {', '.join(device.words for device in queue.devices or ())}", flush=True)
    queue.serve()
