"""Train: what is taught, what it will take, the button, and how it goes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from trainer.config import PACES, PRESET_NAMES
from trainer.errors import TrainerError
from ui.tabs import QUIET, Shared
from ui.views import training
from ui.views.comparison import comparison_html
from ui.views.curves import curve_html
from ui.views.progress import notes_html, remedy_words, samples_html
from ui.workspace import Workspace


def build(shared: Shared) -> None:
    label, runs = shared.label, shared.studio.initial.runs
    # These can be changed once a project has brought its own: an answer that comes late must not take away what was typed.
    with gr.Row():
        preset = gr.Radio(
            [(label(f"train.{name}"), name) for name in PRESET_NAMES],
            value="style",
            label=label("train.preset"),
            elem_id="preset",
            interactive=False,
        )
        pace = gr.Radio(
            [(label(f"train.{name}"), name) for name in PACES],
            value="balanced",
            label=label("train.pace"),
            elem_id="pace",
            interactive=False,
        )
    with gr.Row():
        name = gr.Textbox(
            "my-lora",
            label=label("train.name"),
            info=label("train.name_info"),
            max_length=100,
            elem_id="name",
            interactive=False,
        )
        trigger = gr.Textbox(
            label=label("train.trigger"),
            info=label("train.trigger_info"),
            max_length=100,
            elem_id="trigger",
            interactive=False,
        )
        base = gr.Dropdown(
            runs.bases(),
            value=runs.bases()[0],
            label=label("train.base"),
            info=label("train.base_info"),
            elem_id="base",
            allow_custom_value=True,
            interactive=False,
        )
    with gr.Accordion(label("train.advanced"), open=False, elem_id="advanced"):
        form = gr.HTML(elem_id="form", padding=False)
        changed_there = gr.Button(
            "changed", elem_id="settings-changed", elem_classes="unseen"
        )  # pressed by the script
    estimate = gr.HTML(elem_id="estimate")
    checks = gr.HTML(elem_id="checks")
    told = gr.HTML(elem_id="train-told")
    with gr.Row(elem_id="train-buttons"):
        train = gr.Button(label("train.train"), variant="primary", elem_id="train")
        stop = gr.Button(label("train.stop"), elem_id="stop", visible=False)  # `ui/script/train.js` hears it
        go_on = gr.Button(label("train.continue"), elem_id="continue", visible=False)
        retry = gr.Button("", elem_id="retry", visible=False)
        another = gr.Button(label("train.another"), elem_id="another", visible=False)
    notes = gr.HTML(elem_id="notes")
    samples = gr.HTML(elem_id="samples")
    with gr.Accordion(label("train.curve"), open=False, elem_id="curve-fold"):
        curve = gr.HTML(elem_id="curve")
    with gr.Accordion(label("train.queue"), open=False, elem_id="line-fold"):
        line = gr.HTML(elem_id="line")
        pause = gr.Button(label("train.queue_pause"), elem_id="pause", size="sm", visible=False)
    with gr.Accordion(label("train.compare"), open=False, elem_id="compare-fold"):
        with gr.Row():
            one, other = (
                gr.Dropdown(
                    [],
                    label=label(f"train.compare_{side}"),
                    elem_id=f"compare-{side}",
                    allow_custom_value=True,
                )
                for side in ("left", "right")
            )
        comparison = gr.HTML(elem_id="comparison")
    loaded = gr.State("")  # whose settings the form shows
    asked, token, seen, seen_line = gr.State(None), gr.State(training.new_token()), gr.State(()), gr.State("")

    above = {"name": name, "trigger": trigger, "preset": preset, "pace": pace, "base": base}
    everything = {shared.project, loaded, token, *above.values()}
    before = [estimate, checks, asked]
    brought = [*above.values(), form, *before, told, token, loaded]
    buttons = [train, stop, go_on, retry, another]

    def fields(workspace: Workspace, values: dict[Any, Any]) -> training.Fields:
        """What the page holds, and what is kept of Advanced."""
        said = {key: values[component] for key, component in above.items()}
        return training.Fields(
            said, training.kept(workspace, values[shared.project]).advanced if values[shared.project] else {}
        )

    def load(workspace: Workspace, chosen: str | None):
        """A project brings its own settings."""
        if not chosen:
            return [gr.skip()] * len(brought)
        kept = training.kept(workspace, chosen)
        shown = {
            component: gr.update(value=kept.above[key], interactive=True) for key, component in above.items()
        }
        shown[base] = gr.update(choices=workspace.runs.bases(), value=kept.above["base"], interactive=True)
        said = training.told_before(workspace, chosen, kept)
        return [
            *shown.values(),
            training.form_of(workspace, chosen, kept),
            said.estimate,
            said.checks,
            said.asked,
            "",
            training.new_token(),
            chosen,
        ]

    def opened(workspace: Workspace, chosen: str | None, already: str):
        """Once for each choice of a project: what has been typed since then stays."""
        return [gr.skip()] * len(brought) if chosen == already else load(workspace, chosen)

    def changed(workspace: Workspace, values: dict[Any, Any]):
        chosen = values[shared.project]
        if not chosen or values[loaded] != chosen:  # another project's fields are on their way
            return [gr.skip()] * 4
        said = training.told_before(
            workspace, chosen, training.keep(workspace, chosen, above=fields(workspace, values).above)
        )
        return [said.estimate, said.checks, said.asked, ""]

    def refresh(workspace: Workspace, chosen: str | None):
        if not chosen:
            return [gr.skip()] * 3
        said = training.told_before(workspace, chosen, training.kept(workspace, chosen))
        return [said.estimate, said.checks, said.asked]

    def answered(workspace: Workspace, wanted: dict[str, str] | None):
        said = training.told_again(workspace, wanted)
        return [said.estimate, said.checks, said.asked] if said else [gr.skip()] * 3

    def start(workspace: Workspace, values: dict[Any, Any], more: bool = False):
        try:
            training.start(
                workspace,
                values[shared.project],
                fields(workspace, values),
                token=values[token],
                another=more,
            )
        except TrainerError as error:
            return [training.alert_html(str(error)), gr.skip(), gr.skip(), gr.skip()]
        return ["", training.new_token(), gr.update(interactive=False), gr.update(visible=True)]

    def start_another(workspace: Workspace, values: dict[Any, Any]):
        return start(workspace, values, more=True)

    def follow(workspace: Workspace, chosen: str | None, last: tuple[Any, ...]):
        run = training.shown_run(workspace, chosen)
        if run is None:
            blank = [gr.update(interactive=True), *(gr.update(visible=False) for _ in buttons[1:])]
            return [gr.skip()] * 9 if tuple(last) == (chosen, "") else [*blank, "", "", "", (chosen, "")]
        standing = workspace.runs.status(run)
        now = (chosen, run, *standing.key)
        if tuple(last) == now:
            return [gr.skip()] * 9
        change = training.change_of(workspace, run)
        shown = [
            gr.update(interactive=not standing.is_active),
            gr.update(visible=standing.is_active),
            gr.update(visible=training.can_go_on(standing)),
            gr.update(visible=bool(change), value=remedy_words(change, workspace.words) or " "),
            gr.update(visible=standing.is_active),
        ]
        pictures = samples_html(
            workspace.runs.run(run), standing, workspace.words, workspace.runs.project_of(run) or ""
        )
        return [
            *shown,
            notes_html(standing, workspace.words),
            pictures,
            curve_html(standing.view, workspace.words),
            now,
        ]

    def look(
        workspace: Workspace,
        chosen: str | None,
        last: tuple[Any, ...],
        last_line: str,
        wanted: dict[str, str] | None,
    ):
        """All that may have changed by itself, in one question to the server."""
        return [
            *follow(workspace, chosen, last),
            *follow_line(workspace, last_line),
            *answered(workspace, wanted),
        ]

    def follow_line(workspace: Workspace, last: str):
        mine, everyone, paused = (
            workspace.runs.queued(),
            workspace.runs.queue.active(),
            workspace.runs.queue.is_paused,
        )
        now = repr(
            (*((job.folder.name, job.state, job.queue_position) for job in mine), len(everyone), paused)
        )
        if last == now:
            return [gr.skip()] * 3
        others = sum(job.kind == "train" for job in everyone) - len(mine)
        words = workspace.words("train.queue_resume" if paused else "train.queue_pause")
        return (
            training.line_html(workspace, mine, others, workspace.words),
            gr.update(visible=not workspace.user, value=words),
            now,
        )

    def resume(workspace: Workspace, chosen: str | None):
        run = training.shown_run(workspace, chosen)
        if run:
            workspace.runs.resume(run)

    def try_again(workspace: Workspace, chosen: str | None):
        run = training.shown_run(workspace, chosen)
        if run and chosen:
            training.retry(workspace, chosen, run)

    def toggle(workspace: Workspace) -> None:
        if not workspace.user:  # the line is everyone's
            workspace.runs.queue.pause(not workspace.runs.queue.is_paused)

    def list_runs(workspace: Workspace):
        names = workspace.runs.names()
        return [gr.update(choices=names)] * 2

    def compare(workspace: Workspace, left: str | None, right: str | None) -> str:
        return comparison_html(workspace.runs, left, right, workspace.words)

    shared.draw([shared.project.change], opened, [shared.project, loaded], brought)
    shared.draw(
        [component.change for component in above.values()], changed, everything, [*before, told], keeps=True
    )
    shared.draw([shared.touched.change, changed_there.click], refresh, shared.project, before)
    started = [told, token, train, stop]
    train.click(shared.on(start), everything, started, **QUIET)
    another.click(shared.on(start_another), everything, started, **QUIET)
    go_on.click(shared.on(resume), shared.project, None, **QUIET)
    retry.click(shared.on(try_again), shared.project, None, **QUIET).then(
        shared.on(load), shared.project, brought, **QUIET
    )
    pause.click(shared.on(toggle), None, None, **QUIET)
    shown = [*buttons, notes, samples, curve, seen]
    made_or_opened = [shared.project.change, shared.news["made"].click]
    shared.draw(
        [shared.news["train"].click],
        look,
        [shared.project, seen, seen_line, asked],
        [*shown, line, pause, seen_line, *before],
    )
    shared.draw(made_or_opened, follow, [shared.project, seen], shown)
    shared.draw(made_or_opened, list_runs, None, [one, other])
    for dropdown in (one, other):
        dropdown.input(shared.on(compare), [one, other], comparison, **QUIET)
