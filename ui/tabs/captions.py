"""Captions: a picture beside its words, many changed at once and taken back, and a model that writes them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from trainer.errors import DatasetError
from ui.store.caption_edits import KINDS, CaptionEdit, apply_edit, changes, last_edit, undo_last
from ui.store.captioning import Captioning
from ui.store.naming import MAX_CAPTION
from ui.store.picture_checks import picture_report
from ui.store.training_goal import training_goal
from ui.tabs import PRIVATE, QUIET, TOUCH, Shared, touch
from ui.text import Words
from ui.updates import arrived_mark
from ui.views.artwork import escaped
from ui.views.captions import (
    captions_html,
    preview_html,
    progress_html,
    summary_html,
    tags_html,
    undone_words,
)
from ui.workspace import Workspace


def build(shared: Shared) -> None:
    label = shared.label
    summary = gr.HTML(elem_id="caption-summary", padding=False)
    with gr.Accordion(label("captions.many"), open=False, elem_id="many"):
        kind = gr.Radio(_kinds(Words()), value=KINDS[0], label=label("captions.what"), elem_id="edit-kind")
        with gr.Row():
            find = gr.Textbox(label=label("captions.find"), max_length=MAX_CAPTION, elem_id="edit-find")
            text = gr.Textbox(label=label("captions.text"), max_length=MAX_CAPTION, elem_id="edit-text")
        preview = gr.HTML(elem_id="edit-preview", padding=False)
        do = gr.Button(label("captions.apply"), variant="primary", elem_id="edit-apply", interactive=False)
    with gr.Row():
        back = gr.Button(label("captions.undo"), elem_id="edit-undo", interactive=False, size="sm")
    said = gr.HTML(elem_id="edit-said", padding=False)
    _model(shared)
    tags = gr.HTML(elem_id="caption-tags", padding=False)
    listed = gr.HTML(elem_id="caption-list", padding=False)
    saved = gr.Button("saved", elem_id="caption-saved", elem_classes="unseen")  # pressed by the script

    def about(workspace: Workspace, chosen: str | None):
        """All but the list itself, which is not drawn anew under the fingers of whoever writes in it."""
        if not chosen or chosen not in workspace.projects.names():
            return "", "", _back(workspace, None)
        cards = workspace.projects.pictures(chosen)
        trigger = training_goal(workspace.projects.folder(chosen), workspace.runs.models).trigger
        return (
            summary_html(workspace.words, cards),
            tags_html(workspace.words, [card.caption for card in cards], trigger),
            _back(workspace, chosen),
        )

    def show(workspace: Workspace, chosen: str | None):
        html = ""
        if chosen and chosen in workspace.projects.names():
            arrived = arrived_mark(
                workspace, chosen
            )  # before the pictures are looked up: what comes meanwhile is drawn later
            cards = workspace.projects.pictures(chosen)
            aims = training_goal(workspace.projects.folder(chosen), workspace.runs.models)
            html = captions_html(
                workspace.words, chosen, cards, picture_report(workspace.checks, chosen, cards, aims)
            )
            html = f'<div data-project="{escaped(chosen)}" data-arrived="{arrived}">{html}</div>'
        return *about(workspace, chosen), html, gr.update(choices=_kinds(workspace.words))

    def look(workspace: Workspace, chosen: str | None, what: str, found: str | None, new: str | None):
        edit = _edit(workspace, chosen, what, found, new)
        made = changes(workspace.projects, chosen, edit) if chosen else []
        fields = (
            gr.update(visible=what in ("replace", "remove")),
            gr.update(visible=what in ("replace", "prepend", "append")),
        )
        return (
            preview_html(workspace.words, made, not edit.does_nothing),
            gr.update(interactive=bool(made)),
            *fields,
        )

    def make(workspace: Workspace, chosen: str | None, what: str, found: str | None, new: str | None):
        if not chosen:
            raise DatasetError(workspace.words("captions.no_project"))
        count = apply_edit(workspace.projects, chosen, _edit(workspace, chosen, what, found, new))
        return (
            _status(workspace.words("captions.changed", count=count)),
            "",
            gr.update(interactive=False),
            touch(),
        )

    def take_back(workspace: Workspace, chosen: str | None):
        if not chosen:
            raise DatasetError(workspace.words("captions.no_project"))
        done = undo_last(workspace.projects, chosen)
        kept = workspace.words("captions.kept", count=done.kept) if done.kept else ""
        words = f"{workspace.words('captions.undone', what=undone_words(workspace.words, done), count=done.count)} {kept}"
        return _status(words), touch()

    asked = [shared.project, kind, find, text]
    shared.draw(
        [shared.project.change, shared.touched.change],
        show,
        shared.project,
        [summary, tags, back, listed, kind],
    )
    shared.draw([saved.click], about, shared.project, [summary, tags, back])
    shared.draw(
        [kind.change, find.change, text.change, shared.touched.change], look, asked, [preview, do, find, text]
    )
    do.click(shared.on(make), asked, [said, preview, do, shared.touched], **PRIVATE)
    back.click(shared.on(take_back), shared.project, [said, shared.touched], **PRIVATE)


def _kinds(words: Words) -> list[tuple[str, str]]:
    return [(words(f"captions.kind_{kind}"), kind) for kind in KINDS]


def _edit(
    workspace: Workspace, project: str | None, kind: str, find: str | None, text: str | None
) -> CaptionEdit:
    if kind == "apart" and project:
        find = training_goal(workspace.projects.folder(project), workspace.runs.models).trigger
    return CaptionEdit(kind, find or "", text or "")


def _back(workspace: Workspace, project: str | None) -> Any:
    """The Undo button, which says what it would take back."""
    entry = last_edit(workspace.projects, project) if project else None
    if entry is None:
        return gr.update(value=workspace.words("captions.undo"), interactive=False)
    what = undone_words(workspace.words, entry)
    return gr.update(
        value=workspace.words("captions.undo_of", what=what if len(what) <= 60 else what[:59] + "…"),
        interactive=True,
    )


def _status(words: str) -> str:
    return f'<p role="status">{escaped(words.strip())}</p>'


def _model(shared: Shared) -> None:
    """A model that writes captions, where one is at hand."""
    label = shared.label
    with gr.Accordion(label("captions.model"), open=False, elem_id="caption-model"):
        none = gr.HTML(elem_id="no-model", padding=False)
        with gr.Row() as row:
            model = gr.Dropdown([], label=label("captions.model_which"), elem_id="caption-which")
            over = gr.Checkbox(False, label=label("captions.model_overwrite"), elem_id="caption-over")
            start = gr.Button(label("captions.model_start"), elem_id="caption-start")
            stop = gr.Button(label("captions.model_stop"), elem_id="caption-stop", interactive=False)
    status = gr.HTML(elem_id="captioning", padding=False)
    seen = gr.State(("", 0, False, None))
    finished = gr.Textbox(
        elem_id="captioning-finished", elem_classes="unseen", show_label=False
    )  # as in the Artwork tab

    def offer(workspace: Workspace, chosen: str | None):
        del chosen
        found = Captioning(workspace.projects, workspace.runs).models()
        missing = (
            f'<p class="hint">{escaped(workspace.words("captions.model_none"))}</p>' if not found else ""
        )
        return (
            missing,
            gr.update(visible=bool(found)),
            gr.update(choices=found, value=found[0] if found else None),
        )

    def begin(workspace: Workspace, chosen: str | None, which: str | None, overwrite: bool):
        if not chosen:
            raise DatasetError(workspace.words("captions.no_project"))
        trigger = training_goal(workspace.projects.folder(chosen), workspace.runs.models).trigger
        Captioning(workspace.projects, workspace.runs).start(
            chosen, which or "", {"overwrite": overwrite is True, "trigger": trigger}
        )

    def halt(workspace: Workspace, chosen: str | None) -> None:
        if chosen:
            Captioning(workspace.projects, workspace.runs).stop(chosen)

    def follow(workspace: Workspace, chosen: str | None, before: tuple):
        stands = Captioning(workspace.projects, workspace.runs).status(chosen) if chosen else None
        if stands is None:
            return ("" if before[0] != chosen else gr.skip(), gr.skip(), (chosen, 0, False, None), gr.skip())
        view, alive = stands.view, stands.alive or stands.waits
        now = (chosen, len(view.captions), alive, view.ended, view.done, view.total, view.stage, stands.waits)
        if tuple(before) == now:
            return [gr.skip()] * 4
        known = before[1] if before[0] == chosen else len(view.captions)
        fresh = dict(list(view.captions.items())[known:])
        ended = before[0] == chosen and before[2] and not alive
        html = progress_html(workspace.words, stands, fresh, chosen or "")
        return html, gr.update(interactive=alive), now, repr(now) if ended else gr.skip()

    shared.draw([shared.project.change], offer, shared.project, [none, row, model])
    start.click(shared.on(begin), [shared.project, model, over], None, **PRIVATE)
    stop.click(shared.on(halt), shared.project, None, **PRIVATE)
    finished.change(None, None, shared.touched, js=TOUCH, **QUIET)
    shared.draw(
        [shared.news["captions"].click], follow, [shared.project, seen], [status, stop, seen, finished]
    )
