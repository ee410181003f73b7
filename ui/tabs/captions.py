"""The Captions tab: a caption beside each picture, edits with undo, and captioning by a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from trainer.errors import DatasetError
from ui.store.caption_edits import KINDS, CaptionEdit, apply_edit, changes
from ui.store.caption_undo import last_edit, undo_last
from ui.store.captioning import Captioning
from ui.store.naming import MAX_CAPTION
from ui.store.picture_checks import picture_report
from ui.store.training_goal import training_goal
from ui.tabs import (
    NEW_VALUE,
    PRIVATE,
    QUIET,
    PageContext,
    Updates,
    hidden_button,
    hidden_field,
    new_value,
)
from ui.text import Words
from ui.updates import arrived_mark
from ui.views.captions import captions_html, edit_words, preview_html, progress_html, summary_html, tags_html
from ui.views.html import element, text_element
from ui.workspace import Workspace

_MAX_UNDO_LABEL = 60  # characters


@dataclass(frozen=True)
class EditForm:
    """The form that edits all captions."""

    kind: gr.Radio
    find: gr.Textbox
    text: gr.Textbox
    preview: gr.HTML
    apply: gr.Button


@dataclass(frozen=True)
class CaptionsTab:
    """The list of captions and the edits of all; its methods are the callbacks.

    Attributes:
        saved: a button that the page's script presses after it has saved a caption.
    """

    data_changed: gr.Textbox
    summary: gr.HTML
    form: EditForm
    undo: gr.Button
    message: gr.HTML
    tags: gr.HTML
    captions: gr.HTML
    saved: gr.Button

    @property
    def overview_outputs(self) -> list[Component]:
        """Components that `update_overview` updates."""
        return [self.summary, self.tags, self.undo]

    def update_overview(self, workspace: Workspace, project: str | None) -> Updates:
        """Shows all but the list, which is not rendered again while somebody is typing in it."""
        if not project or project not in workspace.projects.names():
            return {self.summary: "", self.tags: "", self.undo: _undo_update(workspace, None)}
        pictures = workspace.projects.pictures(project)
        captions = [picture.text.replace("\n", ", ") for picture in pictures]  # no tag spans two lines
        return {
            self.summary: summary_html(workspace.words, pictures),
            self.tags: tags_html(workspace.words, captions, _trigger(workspace, project)),
            self.undo: _undo_update(workspace, project),
        }

    def show(self, workspace: Workspace, project: str | None) -> Updates:
        """Shows the list of captions."""
        html = ""
        if project and project in workspace.projects.names():
            # The mark is taken before the pictures: one that is added meanwhile makes the list stale again.
            mark = arrived_mark(workspace, project)
            pictures = workspace.projects.pictures(project)
            goal = training_goal(workspace.projects.folder(project), workspace.runs.models)
            report = picture_report(workspace.checks, project, pictures, goal)
            listed = captions_html(workspace.words, project, pictures, report)
            html = element("div", listed, data_project=project, data_arrived=mark)
        return {
            **self.update_overview(workspace, project),
            self.captions: html,
            self.form.kind: gr.update(choices=_kinds(workspace.words)),
        }

    def preview_edit(
        self, workspace: Workspace, project: str | None, kind: str, find: str | None, text: str | None
    ) -> Updates:
        """Shows what the edit would change, and only the fields that it uses."""
        edit = _edit(workspace, project, kind, find, text)
        found = changes(workspace.projects, project, edit) if project else []
        return {
            self.form.preview: preview_html(workspace.words, found, not edit.does_nothing),
            self.form.apply: gr.update(interactive=bool(found)),
            self.form.find: gr.update(visible=kind in ("replace", "remove")),
            self.form.text: gr.update(visible=kind in ("replace", "prepend", "append")),
        }

    def apply_edit(
        self, workspace: Workspace, project: str | None, kind: str, find: str | None, text: str | None
    ) -> Updates:
        """Edits all captions."""
        project = _chosen(workspace, project)
        count = apply_edit(workspace.projects, project, _edit(workspace, project, kind, find, text))
        return {
            self.message: _message(workspace.words("captions.changed", count=count)),
            self.form.preview: "",
            self.form.apply: gr.update(interactive=False),
            self.data_changed: new_value(),
        }

    def undo_edit(self, workspace: Workspace, project: str | None) -> Updates:
        """Undoes the last edit."""
        words = workspace.words
        undone = undo_last(workspace.projects, _chosen(workspace, project))
        text = words("captions.undone", what=edit_words(words, undone), count=undone.count)
        if undone.kept:
            text += f" {words('captions.kept', count=undone.kept)}"
        return {self.message: _message(text), self.data_changed: new_value()}


@dataclass(frozen=True)
class ModelPanel:
    """Captioning by a model; its methods are the callbacks.

    Attributes:
        hint: text where there is no model.
        finished: a field that `update` writes when captioning has ended.
        shown: the state that the page shows.
    """

    hint: gr.HTML
    row: gr.Row
    model: gr.Dropdown
    overwrite: gr.Checkbox
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    shown: gr.State
    finished: gr.Textbox

    def list_models(self, workspace: Workspace, project: str | None) -> Updates:
        """Shows the captioning models, or a hint where there are none."""
        del project
        models = Captioning(workspace.projects, workspace.runs).models()
        hint = "" if models else text_element("p", workspace.words("captions.model_none"), class_="hint")
        return {
            self.hint: hint,
            self.row: gr.update(visible=bool(models)),
            self.model: gr.update(choices=models, value=models[0] if models else None),
        }

    def begin(self, workspace: Workspace, project: str | None, model: str | None, overwrite: bool) -> None:
        """Queues the captioning of the project."""
        project = _chosen(workspace, project)
        values = {"overwrite": overwrite is True, "trigger": _trigger(workspace, project)}
        Captioning(workspace.projects, workspace.runs).start(project, model or "", values)

    def end(self, workspace: Workspace, project: str | None) -> None:
        """Stops the captioning of the project."""
        if project:
            Captioning(workspace.projects, workspace.runs).stop(project)

    def update(self, workspace: Workspace, project: str | None, shown: tuple[Any, ...]) -> Updates:
        """Shows the progress with the captions since the last call."""
        captioning = Captioning(workspace.projects, workspace.runs)
        status = captioning.status(project) if project else None
        is_same_project = shown[0] == project
        if status is None:
            updates: Updates = {self.shown: (project, 0, False, None)}
            return updates if is_same_project else {**updates, self.status: ""}
        view, is_active = status.view, status.is_running or status.is_waiting
        count = len(view.captions)
        state = (project, count, is_active, view.ended, view.done, view.total, view.stage, status.is_waiting)
        if tuple(shown) == state:
            return gr.skip()
        # Captions that were written before the project was opened are in the list already.
        known = shown[1] if is_same_project else count
        fresh = dict(list(view.captions.items())[known:])
        updates = {
            self.status: progress_html(workspace.words, status, fresh, project or ""),
            self.stop: gr.update(interactive=is_active),
            self.shown: state,
        }
        if is_same_project and shown[2] and not is_active:
            updates[self.finished] = repr(state)
        return updates


def _chosen(workspace: Workspace, project: str | None) -> str:
    if not project:
        raise DatasetError(workspace.words("captions.no_project"))
    return project


def _trigger(workspace: Workspace, project: str) -> str:
    return training_goal(workspace.projects.folder(project), workspace.runs.models).trigger


def _kinds(words: Words) -> list[tuple[str, str]]:
    return [(words(f"captions.kind_{kind}"), kind) for kind in KINDS]


def _edit(
    workspace: Workspace, project: str | None, kind: str, find: str | None, text: str | None
) -> CaptionEdit:
    if kind == "apart" and project:
        find = _trigger(workspace, project)
    return CaptionEdit(kind, find or "", text or "")


def _undo_update(workspace: Workspace, project: str | None) -> dict[str, Any]:
    """Returns the update of the Undo button, whose label names the edit that it undoes."""
    words = workspace.words
    entry = last_edit(workspace.projects, project) if project else None
    if entry is None:
        return gr.update(value=words("captions.undo"), interactive=False)
    edit = edit_words(words, entry)
    if len(edit) > _MAX_UNDO_LABEL:
        edit = f"{edit[: _MAX_UNDO_LABEL - 1]}…"
    return gr.update(value=words("captions.undo_of", what=edit), interactive=True)


def _message(text: str) -> str:
    return text_element("p", text, role="status")


def build(page: PageContext) -> None:
    """Builds the tab and connects its components to their callbacks."""
    summary = gr.HTML(elem_id="caption-summary", padding=False)
    form = _edit_form(page)
    with gr.Row():
        undo = gr.Button(page.label("captions.undo"), elem_id="edit-undo", interactive=False, size="sm")
    message = gr.HTML(elem_id="edit-said", padding=False)
    panel = _model_panel(page)
    tab = CaptionsTab(
        data_changed=page.data_changed,
        summary=summary,
        form=form,
        undo=undo,
        message=message,
        tags=gr.HTML(elem_id="caption-tags", padding=False),
        captions=gr.HTML(elem_id="caption-list", padding=False),
        saved=hidden_button("saved", "caption-saved"),
    )
    _connect_captions(page, tab)
    _connect_model(page, panel)


def _edit_form(page: PageContext) -> EditForm:
    label = page.label
    with gr.Accordion(label("captions.many"), open=False, elem_id="many"):
        kind = gr.Radio(_kinds(Words()), value=KINDS[0], label=label("captions.what"), elem_id="edit-kind")
        with gr.Row():
            find = gr.Textbox(label=label("captions.find"), max_length=MAX_CAPTION, elem_id="edit-find")
            text = gr.Textbox(label=label("captions.text"), max_length=MAX_CAPTION, elem_id="edit-text")
        preview = gr.HTML(elem_id="edit-preview", padding=False)
        apply = gr.Button(label("captions.apply"), variant="primary", elem_id="edit-apply", interactive=False)
    return EditForm(kind, find, text, preview, apply)


def _model_panel(page: PageContext) -> ModelPanel:
    label = page.label
    with gr.Accordion(label("captions.model"), open=False, elem_id="caption-model"):
        hint = gr.HTML(elem_id="no-model", padding=False)
        with gr.Row() as row:
            model = gr.Dropdown([], label=label("captions.model_which"), elem_id="caption-which")
            overwrite = gr.Checkbox(False, label=label("captions.model_overwrite"), elem_id="caption-over")
            start = gr.Button(label("captions.model_start"), elem_id="caption-start")
            stop = gr.Button(label("captions.model_stop"), elem_id="caption-stop", interactive=False)
    status = gr.HTML(elem_id="captioning", padding=False)
    shown = gr.State(("", 0, False, None))
    finished = hidden_field(elem_id="captioning-finished")
    return ModelPanel(hint, row, model, overwrite, start, stop, status, shown, finished)


def _connect_captions(page: PageContext, tab: CaptionsTab) -> None:
    form = tab.form
    inputs = [page.project, form.kind, form.find, form.text]
    changed = [page.project.change, page.data_changed.change]
    page.refresh(changed, tab.show, page.project, [*tab.overview_outputs, tab.captions, form.kind])
    page.refresh([tab.saved.click], tab.update_overview, page.project, tab.overview_outputs)
    edited = [form.kind.change, form.find.change, form.text.change, page.data_changed.change]
    page.refresh(edited, tab.preview_edit, inputs, [form.preview, form.apply, form.find, form.text])
    applied = [tab.message, form.preview, form.apply, tab.data_changed]
    form.apply.click(page.on(tab.apply_edit), inputs, applied, **PRIVATE)
    tab.undo.click(page.on(tab.undo_edit), page.project, [tab.message, tab.data_changed], **PRIVATE)


def _connect_model(page: PageContext, panel: ModelPanel) -> None:
    listed = [panel.hint, panel.row, panel.model]
    page.refresh([page.project.change], panel.list_models, page.project, listed)
    inputs = [page.project, panel.model, panel.overwrite]
    panel.start.click(page.on(panel.begin), inputs, None, **PRIVATE)
    panel.stop.click(page.on(panel.end), page.project, None, **PRIVATE)
    panel.finished.change(None, None, page.data_changed, js=NEW_VALUE, **QUIET)
    outputs = [panel.status, panel.stop, panel.shown, panel.finished]
    page.refresh([page.stale("captions")], panel.update, [page.project, panel.shown], outputs)
