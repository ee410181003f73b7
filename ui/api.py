"""The API for scripts: four named endpoints for gradio_client, with the same access as the page of the same user.

run = client.predict("ink-emoji", {"preset": "style", "steps": 40}, api_name="/start_training")["run"]
client.predict(run, api_name="/status")["state"]
client.predict(run, "a cat", [0, 1], 7, api_name="/preview")["pictures"]     URLs relative to the studio's address
client.predict(run, api_name="/download")["url"]
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer.config import TrainConfig
from trainer.errors import ConfigError, TrainerError
from ui.store.drawings import Drawings
from ui.store.library import Library
from ui.tabs import PageContext
from ui.views.html import picture_url
from ui.views.settings_form import FILES, FOLDERS, TERMINAL_ONLY
from ui.workspace import Workspace

PREVIEW_SECONDS = 1800  # until `preview` gives up
_MAX_CHARACTERS = 2000  # of a name or a prompt


def build(page: PageContext) -> None:
    """Adds the endpoints to the page. Their docstrings are shown to users of the API."""
    studio = page.studio

    def start_training(project: str, settings: dict[str, Any], request: gr.Request) -> dict[str, Any]:
        """Queues a training on a project's pictures; settings as in docs/settings.md."""
        with _errors_for_client("start_training"):
            workspace, name = studio.workspace_of(request), checked_text(project)
            folder = workspace.projects.folder(name)
            values = checked_settings(workspace, name, settings)
            return {"run": workspace.runs.start(folder, values, another=True)}

    def status(run: str, request: gr.Request) -> dict[str, Any]:
        """Returns the state and progress of a training."""
        with _errors_for_client("status"):
            current = studio.workspace_of(request).runs.status(checked_text(run))
            view = current.view
            return {
                "run": run,
                "state": current.state,
                "place": current.queue_position,
                "stage": view.stage,
                "step": view.step,
                "steps": view.steps,
                "loss": view.loss,
                "seconds_left": view.seconds_left,
                "message": view.message,
                "remedy": view.remedy,
                "samples": [{**sample, "url": picture_url(run, sample)} for sample in view.samples],
            }

    async def preview(
        run: str, prompt: str, strengths: list[float], seed: int, request: gr.Request
    ) -> dict[str, Any]:
        """Generates pictures of one prompt at several strengths; 0 is the base model. Returns when they are done."""
        with _errors_for_client("preview"):
            drawings = Drawings(studio.workspace_of(request).runs)
            values = {"prompts": [checked_text(prompt)], "strengths": strengths, "seed": seed}
            # In a thread: both functions read and write files, which would block the event loop.
            drawing = await asyncio.to_thread(drawings.submit, [(checked_text(run), 1.0)], values)
            result = await asyncio.to_thread(drawings.status, drawing)
            for _ in range(PREVIEW_SECONDS):
                if not result.is_open:
                    break
                await asyncio.sleep(1)
                result = await asyncio.to_thread(drawings.status, drawing)
            if result.state != "drawn":
                message = result.message or "the pictures were not generated in time; try again"
                raise TrainerError(message)
            pictures = result.pictures()
            return {
                "pictures": [
                    {**picture, "url": f"/drawn/{drawing}/{quote(picture['file'])}"} for picture in pictures
                ],
                "notes": list(result.notes),
            }

    def download(run: str, request: gr.Request) -> dict[str, Any]:
        """Returns the URL of a training's LoRA file."""
        with _errors_for_client("download"):
            file = studio.workspace_of(request).runs.run(checked_text(run)).lora_file
            if not file.is_file():
                raise TrainerError(f"“{run}” has no LoRA file yet; wait until the training has ended")
            return {"name": file.name, "url": f"/download/{quote(run)}", "bytes": file.stat().st_size}

    for endpoint in (start_training, status, preview, download):
        gr.api(endpoint, api_name=endpoint.__name__, api_visibility="public")


@contextlib.contextmanager
def _errors_for_client(name: str) -> Iterator[None]:
    """Sends a TrainerError's message to the client; logs any other exception and sends a general message."""
    try:
        yield
    except TrainerError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception:  # the edge of the process: whatever an endpoint raises is logged and reported
        logging.exception("the endpoint %s failed", name)
        message = "the studio failed to process this call; see its terminal for the error"
        raise gr.Error(message, print_exception=False) from None


def checked_text(value: Any) -> str:
    """Returns a name or prompt.

    Raises:
        ConfigError: not a text, empty or too long.
    """
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_CHARACTERS:
        raise ConfigError([f"a name or a prompt must be a text of 1 to {_MAX_CHARACTERS} characters"])
    return value


def checked_settings(workspace: Workspace, project: str, settings: Any) -> dict[str, Any]:
    """Returns the settings of a script; folders and files are given by their names in the studio and looked up.

    Raises:
        TrainerError: not a dictionary, or a name that doesn't exist. The values are checked by `Runs.start`.
    """
    if not isinstance(settings, dict):
        raise ConfigError(["settings must be a dictionary, such as {'preset': 'style'}"])
    closed = sorted(set(settings) & TERMINAL_ONLY)
    if closed:
        raise ConfigError([f"{closed[0]} can only be set on the command line"])
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    for name in FOLDERS:
        if values.get(name):
            values[name] = str(workspace.projects.folder(checked_text(values[name])).resolve())
    for name in FILES:
        if values.get(name):
            values[name] = Library(workspace.runs).path(checked_text(values[name]))
    bases = workspace.runs.bases()
    if values.get("base", TrainConfig.base) not in bases:
        raise ConfigError([f"there is no base model {values['base']!r}; choose one of {', '.join(bases)}"])
    return {"name": project, "base": bases[0], **values}
