"""The web server: the studio's routes and the page behind the guard; one server for each folder of outputs."""

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
from typing import Any, Required, TypedDict, Unpack

from fastapi import FastAPI

from trainer.atomic_files import write_atomically
from trainer.errors import RunError, TrainerError
from trainer.json_files import read_object
from trainer.runs.queue import Queue
from trainer.runs.run import Run, claim
from ui.access.hosts import Hosts, url
from ui.gradio_startup import without_editor_stubs
from ui.guard import Guard
from ui.store.limits import Limits
from ui.workspace import Studio

_CLEAN_UP_SECONDS = 600
_QUEUE: dict[str, Any] = {"max_size": 100, "default_concurrency_limit": 4}
_OTHER_NAMES = (
    "Other machines open it by this machine's IP address. For any other name, such as that of a reverse proxy or "
    "of a rented machine, add --allow-host NAME."
)
_ADDRESS_ATTEMPTS = 10  # to read the address of another server, which may be about to write it


class StudioOptions(TypedDict, total=False):
    """Keyword arguments of `build_app`.

    Attributes:
        host: address that the server is bound to.
        users: file of accounts; without one there is no login.
        names: allowed host names besides those of `host`.
        root_path: under which a reverse proxy serves the studio, such as `/impasto`.
    """

    host: Required[str]
    datasets: Required[Path]
    outputs: Required[Path]
    models: Required[Path]
    limits: Limits | None
    users: Path | None
    names: tuple[str, ...]
    root_path: str


def build_app(**options: Unpack[StudioOptions]) -> Guard:
    """Builds the guarded ASGI application."""
    host, root_path = options["host"], options.get("root_path", "")
    studio = Studio(
        options["datasets"],
        options["outputs"],
        options["models"],
        options.get("limits"),
        options.get("users"),
        root_path,
    )
    # Gradio reads these variables while it is imported, so they are set first and it is imported here.
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
    assets = Assets(Path(gr.__file__).parent / "templates" / "frontend" / "assets")
    add_routes(app, studio, assets)
    endpoints = [*own_endpoints(app.routes), *gradio_endpoints(studio.limits)]
    label = translations()
    page = build_page(studio, label).queue(**_QUEUE)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        root_path=root_path or None,
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
    return Guard(app, studio, endpoints, Hosts.of(host, options.get("names", ())), assets.links)


def serve(*, port: int, **options: Unpack[StudioOptions]) -> int:
    """Serves until interrupted and prints the address and the devices; returns the exit status.

    Args:
        options: keyword arguments of `build_app`.
    """
    import uvicorn

    host, root_path = options["host"], options.get("root_path", "")
    address = url(options["host"], port) + (f"{root_path}/" if root_path else "")
    try:
        for folder in (options["datasets"], options["outputs"]):
            folder.mkdir(parents=True, exist_ok=True)
        with only_server(options["outputs"], address):
            if not _is_free(host, port):
                raise TrainerError(
                    f"{address} is not available, probably because another program uses it; try --port {port + 1}"
                )
            app = build_app(**options)
            print(f"Impasto is at {address}  (Ctrl-C ends it)", flush=True)
            if app.hosts.any_address:
                print(_OTHER_NAMES, flush=True)
            threading.Thread(target=_run_queue, args=(app.studio.queue,), daemon=True).start()
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
    """Makes this process the only server of a folder for the duration of the block. A dead server is replaced.

    Raises:
        TrainerError: another process serves the folder; the message has its address.
    """
    server = Run(outputs / ".cache" / "server")
    server.path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claim(server))
        except RunError:
            raise TrainerError(
                f"{outputs} is served already{_other_server(server.path)}; open that address, or stop that process first"
            ) from None
        text = json.dumps({"pid": os.getpid(), "address": address})
        write_atomically(server.path / "address.json", text.encode())
        yield


def _other_server(folder: Path) -> str:
    """Returns ` by process 71 at http://127.0.0.1:7860`, or "" if that can't be found out."""
    for _ in range(_ADDRESS_ATTEMPTS):
        owner, other = read_object(folder / "owner.json"), read_object(folder / "address.json")
        # Of different processes while the other server starts: it claims the folder, then writes its address.
        if "address" in other and other.get("pid") == owner.get("pid"):
            return f" by process {other['pid']} at {other['address']}"
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
    studio.clean_up(0)  # no upload of an earlier server can still be going on
    while True:
        time.sleep(_CLEAN_UP_SECONDS)
        studio.clean_up()


def _run_queue(queue: Queue) -> None:
    """Prints the devices, which a child process detects so that torch stays out of this one, and runs the queue."""
    queue.detect_devices()
    print(f"Device: {', '.join(device.words for device in queue.devices or ())}", flush=True)
    queue.serve()
