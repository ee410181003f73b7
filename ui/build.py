"""The page: pictures, training, trying out. Its callbacks only carry values between components and `jobs`/`projects`."""

from __future__ import annotations

import functools
import html
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.config import PRESET_NAMES
from trainer.errors import TrainerError
from ui.form import FILES, FOLDERS, build_form, settings_from
from ui.jobs import Jobs
from ui.projects import SAMPLES, Projects, cards_html
from ui.views import download_html, samples_html, status_html, strip_html

STRENGTHS = [0.0, 0.25, 0.5, 0.75, 1.0]
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}


def told(callback: Callable) -> Callable:
    """A TrainerError becomes a message on the page; anything else a plain word without a traceback."""

    @functools.wraps(callback)
    def wrapped(*values: Any) -> Any:
        try:
            return callback(*values)
        except TrainerError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None
        except Exception:
            logging.exception("the page's %s failed", callback.__name__)
            words = "Something failed in the studio; its terminal says what. Nothing of yours is lost: reload the page."
            raise gr.Error(words, duration=None, print_exception=False) from None

    return wrapped


def build_page(jobs: Jobs, projects: Projects) -> gr.Blocks:
    """Components, then events."""
    with gr.Blocks(title="Impasto", analytics_enabled=False) as page:
        gr.Markdown("# Impasto\nTeach Stable Diffusion XL your style: add pictures, press **Train**, find the strength, download.")
        status = gr.HTML(status_html(None, False), elem_id="status")

        gr.Markdown("## 1. Pictures")
        with gr.Row():
            project = gr.Dropdown(projects.names(), label="Picture folder", elem_id="project", scale=2)
            new_name = gr.Textbox(label="Name for a new folder", placeholder="my-style", max_length=80, elem_id="new-name", scale=2)
        upload = gr.File(
            label="Drop pictures here (and .txt captions of the same names)", file_count="multiple", elem_id="upload", height=140
        )
        left_out = gr.HTML(elem_id="left-out")
        cards = gr.HTML(elem_id="cards")

        gr.Markdown("## 2. Train")
        with gr.Row():
            name = gr.Textbox("my-lora", label="Name of the LoRA", max_length=100, elem_id="name")
            trigger = gr.Textbox(label="Trigger word", info="Calls your style in a prompt.", max_length=100, elem_id="trigger")
            preset = gr.Radio(list(PRESET_NAMES), value="style", label="You teach a", elem_id="preset")
            base = gr.Dropdown(
                jobs.bases(), value=jobs.bases()[0], label="Base model", info="Folders and files under models/.", elem_id="base"
            )
        with gr.Accordion("Advanced: every setting", open=False, elem_id="advanced"):
            form = build_form(projects.names(), jobs.finished())
        with gr.Row():
            train = gr.Button("Train", variant="primary", elem_id="train")
            stop = gr.Button("Stop", elem_id="stop", interactive=False)
            go_on = gr.Button("Continue", elem_id="continue", interactive=False)
        samples = gr.HTML(elem_id="samples")

        gr.Markdown("## 3. Try it and download")
        run = gr.Dropdown(jobs.names(), label="Training", elem_id="run")
        strip = gr.HTML(strip_html("", ()), elem_id="strip")
        with gr.Row():
            prompt = gr.Textbox(label="Your own prompt", max_length=1000, elem_id="prompt", scale=4)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed", scale=1)
            draw = gr.Button("Draw", elem_id="draw", scale=1)
        own = gr.HTML(elem_id="own")
        download = gr.HTML(elem_id="download")

        seen = gr.State(("", -1, False))
        wish = gr.State(None)
        timer = gr.Timer(1.0)

        followed = [status, samples, strip, download, train, stop, go_on, seen]

        def show_project(chosen: str | None):
            return cards_html(chosen, projects.cards(chosen)) if chosen else ""

        def take_in(files: Any, chosen: str | None, new: str):
            paths = [Path(f["path"] if isinstance(f, dict) else f.path) for f in (getattr(files, "root", files) or [])]
            own = chosen if chosen and chosen not in SAMPLES else ""
            target, _, problems = projects.ingest(new or own, paths)
            for path in paths:
                path.unlink()  # nothing of an artist's stays in Gradio's cache
            words = "".join(f"<li>{html.escape(p)}</li>" for p in problems)
            note = f'<div role="alert" class="alert">Left out:<ul>{words}</ul></div>' if words else ""
            return gr.update(choices=projects.names(), value=target), None, note, show_project(target), ""

        def start(values: dict[Any, Any]):
            chosen = values[project]
            if not chosen:
                raise TrainerError("choose a picture folder, or drop pictures, then press Train")
            said = settings_from({setting: values[component] for setting, component in form.items()})
            said.update({setting: str(projects.folder(said[setting]).resolve()) for setting in FOLDERS if setting in said})
            said.update({setting: jobs.file(said[setting]) for setting in FILES if setting in said})
            above = {"name": (values[name] or "").strip(), "trigger": values[trigger] or "", "preset": values[preset], "base": values[base]}
            made = jobs.start(projects.folder(chosen), {"sample_every": 100, **said, **above})
            return gr.update(choices=jobs.names(), value=made)

        def follow(chosen: str | None, last: tuple[str, int, bool]):
            if not chosen or chosen not in jobs.names():
                return [gr.skip()] * len(followed)
            view, alive = jobs.view(chosen)
            now = (chosen, view.rev, alive)
            if tuple(last) == now:
                return [gr.skip()] * len(followed)
            unfinished = not alive and view.ended != "finished"
            strip_now = strip_html(chosen, view.strip) if last[0] != chosen or view.strip else gr.skip()
            return [
                status_html(view, alive), samples_html(chosen, view), strip_now, download_html(chosen, view.saved),
                gr.update(interactive=not alive), gr.update(interactive=alive), gr.update(interactive=unfinished), now,
            ]  # fmt: skip

        def ask(chosen: str | None, text: str, number: float | None):
            if not chosen:
                raise TrainerError("choose a training first")
            request = jobs.draw(chosen, [(text or "").strip()], STRENGTHS, int(number or 0))
            return {"run": chosen, "id": request, "prompt": text.strip()}, '<p role="status">Drawing…</p>'

        def answered(wanted: dict[str, str] | None):
            answer = jobs.drawn(wanted["id"]) if wanted else None
            if not wanted or answer is None:
                return gr.skip(), gr.skip()
            if answer["kind"] == "failed":
                return None, f'<div role="alert" class="alert">{html.escape(answer["message"])}</div>'
            pictures = [
                {"file": f"own-{wanted['id']}/{file}", "prompt": wanted["prompt"], "strength": strength}
                for file, strength in zip(answer["pictures"], STRENGTHS, strict=True)
            ]
            return None, strip_html(wanted["run"], pictures)

        def opened():
            chosen, runs = projects.latest(), jobs.names()
            shown = show_project(chosen)
            return gr.update(choices=projects.names(), value=chosen), gr.update(choices=runs, value=runs[0] if runs else None), shown

        page.load(told(opened), None, [project, run, cards], **_PRIVATE)
        project.input(told(show_project), project, cards, **_PRIVATE)
        upload.upload(
            told(take_in), [upload, project, new_name], [project, upload, left_out, cards, new_name], preprocess=False, **_PRIVATE
        )
        train.click(told(start), {project, name, trigger, preset, base, *form.values()}, run, **_PRIVATE)
        stop.click(told(lambda chosen: jobs.stop(chosen)), run, None, **_PRIVATE)
        go_on.click(told(lambda chosen: jobs.resume(chosen)), run, None, **_PRIVATE)
        draw.click(told(ask), [run, prompt, seed], [wish, own], **_PRIVATE)
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", **_PRIVATE}
        timer.tick(told(follow), [run, seen], followed, **quiet)
        timer.tick(told(answered), wish, [wish, own], **quiet)
    return page
