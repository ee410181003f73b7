"""What a script may do with the studio: four named endpoints, for gradio_client. They see what the page of the same user sees.

run = client.predict("ink-emoji", {"preset": "style", "steps": 40}, api_name="/start_training")["run"]
client.predict(run, api_name="/status")["state"]
client.predict(run, "a cat", [0, 1], 7, api_name="/preview")["pictures"]     addresses below the studio's own
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

PREVIEW_SECONDS = 1800


def build(page: PageContext) -> None:
    studio = page.studio

    def start_training(project: str, settings: dict, request: gr.Request) -> dict:
        """Trains on a project's pictures, as soon as the device is free; settings as in docs/settings.md."""
        with told("start_training"):
            workspace = studio.workspace_of(request)
            return {
                "run": workspace.runs.start(
                    workspace.projects.folder(text(project)),
                    checked(workspace, text(project), settings),
                    another=True,
                )
            }

    def status(run: str, request: gr.Request) -> dict:
        """How a training stands."""
        with told("status"):
            standing = studio.workspace_of(request).runs.status(text(run))
            view = standing.view
            return {
                "run": run,
                "state": standing.state,
                "place": standing.place,
                "stage": view.stage,
                "step": view.step,
                "steps": view.steps,
                "loss": view.loss,
                "seconds_left": view.seconds_left,
                "message": view.message,
                "remedy": view.remedy,
                "samples": [{**facts, "url": picture_url(run, facts)} for facts in view.samples],
            }

    async def preview(run: str, prompt: str, strengths: list[float], seed: int, request: gr.Request) -> dict:
        """Pictures of one prompt at several strengths, 0 being the base model's own; answers when they are drawn."""
        with told("preview"):
            drawings = Drawings(studio.workspace_of(request).runs)
            values = {"prompts": [text(prompt)], "strengths": strengths, "seed": seed}
            asked = await asyncio.to_thread(drawings.ask, [(text(run), 1.0)], values)
            for _ in range(PREVIEW_SECONDS):
                found = await asyncio.to_thread(drawings.follow, asked)
                if not found.is_open:
                    break
                await asyncio.sleep(1)
            if found.state != "drawn":
                raise TrainerError(found.message or "the pictures were not drawn in time; ask again")
            return {
                "pictures": [
                    {**facts, "url": f"/drawn/{asked}/{quote(facts['file'])}"} for facts in found.pictures()
                ]
            }

    def download(run: str, request: gr.Request) -> dict:
        """Where the LoRA file of a training is fetched."""
        with told("download"):
            file = studio.workspace_of(request).runs.run(text(run)).lora_file
            if not file.is_file():
                raise TrainerError(f"“{run}” has no file yet; wait until it has ended")
            return {"name": file.name, "url": f"/download/{quote(run)}", "bytes": file.stat().st_size}

    for endpoint in (start_training, status, preview, download):
        gr.api(endpoint, api_name=endpoint.__name__, api_visibility="public")


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """A TrainerError is told as it is, anything else by a plain word."""
    try:
        yield
    except TrainerError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception:
        logging.exception("the endpoint %s failed", name)
        raise gr.Error(
            "something failed in the studio; its terminal says what", print_exception=False
        ) from None


def text(value: Any) -> str:
    """Raises ConfigError."""
    if not isinstance(value, str) or not 0 < len(value) <= 2000:
        raise ConfigError(["a name or a prompt must be a text of 1 to 2000 characters"])
    return value


def checked(workspace: Workspace, project: str, settings: Any) -> dict[str, Any]:
    """Settings of a script, each looked up; folders and files by their names in the studio. Raises TrainerError."""
    if not isinstance(settings, dict):
        raise ConfigError(["settings must be a dictionary, like {'preset': 'style'}"])
    closed = sorted(set(settings) & TERMINAL_ONLY)
    if closed:
        raise ConfigError([f"{closed[0]} can only be set on the command line"])
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    said.update(
        {
            name: str(workspace.projects.folder(text(said[name])).resolve())
            for name in FOLDERS
            if said.get(name)
        }
    )
    said.update({name: Library(workspace.runs).path(text(said[name])) for name in FILES if said.get(name)})
    if said.get("base", TrainConfig.base) not in workspace.runs.bases():
        raise ConfigError(
            [f"there is no base model {said['base']!r}; there are {', '.join(workspace.runs.bases())}"]
        )
    return {"name": project, "base": workspace.runs.bases()[0], **said}
