"""The Library tab: all finished LoRAs, the details of a file, modified copies, import and deletion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from trainer.errors import TrainerError
from trainer.headers.edit_metadata import MAX_TEXT
from ui.store.file_jobs import FileJobs
from ui.store.library import LIBRARY_PREFIX, Library
from ui.store.lora_edits import LoraEdit, start_edit
from ui.tabs import (
    PRIVATE,
    QUIET,
    OtherLora,
    PageContext,
    Updates,
    choice_update,
    other_lora_rows,
    other_loras,
)
from ui.updates import made_mark
from ui.views.html import element
from ui.views.library import cards_html, format_size, messages_html, problems_html, question_html
from ui.workspace import Workspace

# Hides the question before a deletion in the browser: a response of the server could come after the next
# question.
_HIDE_QUESTION = "() => ['', {__type__: 'update', visible: false}, {__type__: 'update', visible: false}]"
_TEXTS = ("title", "author", "licence", "description", "tags", "trigger")
_MAX_NAME = 200  # characters that are read of a new file's name


@dataclass(frozen=True)
class Details:
    """The form of a file's details.

    Attributes:
        fields: field of a `Label` -> its component.
        shown: the file, and its time, that the form shows.
    """

    fields: dict[str, Component]
    save: gr.Button
    shown: gr.State


@dataclass(frozen=True)
class ModifiedCopy:
    """The form that makes a LoRA of others: resize, convert or merge."""

    tool: gr.Radio
    merge: gr.Column  # of the merge fields
    weight: gr.Slider
    others: list[OtherLora]
    rank: gr.Number
    form: gr.Dropdown
    name: gr.Textbox
    start: gr.Button
    works: gr.State  # ids of those that are being made

    @property
    def merge_fields(self) -> list[Component]:
        """Components that only a merge needs."""
        return [self.weight, *(component for row in self.others for component in row)]

    @property
    def inputs(self) -> set[Block]:
        """Components that `make_copy` reads, without the chosen LoRA."""
        return {self.tool, self.rank, self.form, self.name, self.works, *self.merge_fields}


@dataclass(frozen=True)
class LoraDeletion:
    """The buttons of a deletion; `key` is the LoRA that the question is about."""

    start: gr.Button
    question: gr.HTML
    confirm: gr.Button
    cancel: gr.Button
    key: gr.State

    @property
    def outputs(self) -> list[Component]:
        """Components that show or hide the question."""
        return [self.question, self.confirm, self.cancel]


@dataclass(frozen=True)
class LibraryTab:
    """All components of the tab; its methods are the callbacks."""

    upload: gr.File
    message: gr.HTML
    cards: gr.HTML
    lora: gr.Dropdown
    details: Details
    copy: ModifiedCopy
    deletion: LoraDeletion

    def show(self, workspace: Workspace, current: str | None) -> Updates:
        """Shows the cards and the choices of all lists."""
        library = Library(workspace.runs)
        # The mark is taken first: a LoRA that is added meanwhile makes the cards stale again.
        mark = made_mark(workspace)
        entries = library.entries()
        choices = [(entry.name, entry.key) for entry in entries]
        others = gr.update(choices=[("—", ""), *choices])
        cards = cards_html(workspace.words, library, entries)
        return {
            self.cards: element("div", cards, data_made=mark),
            self.lora: choice_update(choices, current),
            **{row.lora: others for row in self.copy.others},
        }

    def import_files(self, workspace: Workspace, files: Any) -> Updates:
        """Imports uploaded LoRA files and removes the uploads."""
        imported, problems = [], []
        values = getattr(files, "root", files) or []
        names = [value.get("orig_name") if isinstance(value, dict) else value.orig_name for value in values]
        for path, name in zip(workspace.uploaded(files), names, strict=True):
            try:
                workspace.limits.check_free_space(workspace.runs.outputs, path.stat().st_size)
                key = Library(workspace.runs).import_file(path, str(name or "lora"))
                imported.append(workspace.words("library.taken_in", name=key.removeprefix(LIBRARY_PREFIX)))
            except TrainerError as error:
                problems.append(str(error))
            finally:
                path.unlink(missing_ok=True)  # Gradio's cache must keep no file of an artist
        return {self.upload: None, self.message: messages_html(imported) + problems_html(problems)}

    def show_details(self, workspace: Workspace, key: str | None, shown: str) -> Updates:
        """Fills the form for another or a changed file; otherwise text that is being typed stays."""
        details = self.details
        if not key:
            return {**{field: gr.update(value=None) for field in details.fields.values()}, details.shown: ""}
        entry = Library(workspace.runs).entry(key)
        state = f"{key} {entry.file.stat().st_mtime_ns}"
        if state == shown:
            return gr.skip()
        values = {field: getattr(entry.label, name) for name, field in details.fields.items()}
        return {**values, details.shown: state}

    def save_details(self, workspace: Workspace, values: dict[Component, Any]) -> Updates:
        """Writes the form into the metadata of the chosen file."""
        key = _chosen(workspace, values[self.lora])
        details = {name: values[field] for name, field in self.details.fields.items()}
        entry = Library(workspace.runs).relabel(key, details)
        return {self.message: messages_html([workspace.words("library.saved", name=entry.file.name)])}

    def show_tool_fields(self, workspace: Workspace, tool: str) -> Updates:
        """Shows the fields that the chosen operation needs."""
        del workspace
        copy = self.copy
        return {
            copy.rank: gr.update(visible=tool in ("merge", "resize")),
            copy.form: gr.update(visible=tool == "convert"),
            copy.merge: gr.update(visible=tool == "merge"),
        }

    def make_copy(self, workspace: Workspace, values: dict[Component, Any]) -> Updates:
        """Starts the child process that makes the new file."""
        copy = self.copy
        files = [(_chosen(workspace, values[self.lora]), values[copy.weight])]
        is_merge = values[copy.tool] == "merge"
        if is_merge:
            files += other_loras(copy.others, values)
        edit = LoraEdit(
            tool=values[copy.tool],
            keys=tuple(key for key, _ in files),
            weights=tuple(weight for _, weight in files) if is_merge else (),
            rank=values[copy.rank] or 0,
            form=values[copy.form],
            name=str(values[copy.name] or "")[:_MAX_NAME],
        )
        work = start_edit(Library(workspace.runs), edit)
        message = messages_html([workspace.words("library.working")])
        return {copy.works: (*values[copy.works], work), self.message: message}

    def update_works(self, workspace: Workspace, works: tuple[str, ...]) -> Updates:
        """Shows which of the new files are finished or have failed."""
        statuses = {work: FileJobs(workspace.runs).status(work) for work in works or ()}
        working = tuple(work for work, (state, _) in statuses.items() if state == "working")
        if len(working) == len(statuses):
            return gr.skip()
        failed = [message for state, message in statuses.values() if state == "failed"]
        is_any_finished = any(state == "finished" for state, _ in statuses.values())
        finished = [workspace.words("library.finished")] if is_any_finished else []
        message = messages_html(finished) + problems_html(failed)
        return {self.copy.works: working, self.message: message}

    def ask_before_deletion(self, workspace: Workspace, key: str | None) -> Updates:
        """Shows the question with the number and the size of the files."""
        library, key = Library(workspace.runs), _chosen(workspace, key)
        files, size = library.size_on_disk(key)
        name = library.entry(key).name
        question = workspace.words("library.delete_ask", name=name, files=files, size=format_size(size))
        return {
            self.deletion.question: question_html(question),
            self.deletion.confirm: gr.update(visible=True),
            self.deletion.cancel: gr.update(visible=True),
            self.deletion.key: key,
        }

    def delete(self, workspace: Workspace, key: str | None) -> Updates:
        """Deletes the LoRA that the question was about."""
        library, key = Library(workspace.runs), _chosen(workspace, key)
        name = library.entry(key).name
        files, size = library.delete(key)
        message = workspace.words("library.deleted", name=name, files=files, size=format_size(size))
        return {
            self.message: messages_html([message]),
            self.deletion.question: "",
            self.deletion.confirm: gr.update(visible=False),
            self.deletion.cancel: gr.update(visible=False),
        }


def _chosen(workspace: Workspace, key: str | None) -> str:
    if not key:
        raise TrainerError(workspace.words("library.choose_first"))
    return key


def build(page: PageContext) -> None:
    """Builds the tab and connects its components to their callbacks."""
    label = page.label
    upload = gr.File(
        label=label("library.drop"),
        file_count="multiple",
        file_types=[".safetensors"],
        height=140,
        elem_id="import",
    )
    message = gr.HTML(elem_id="library-told")
    cards = gr.HTML(elem_id="shelf")
    lora = gr.Dropdown([], label=label("library.change"), allow_custom_value=True, elem_id="lora")
    with gr.Accordion(label("library.file_details"), open=False, elem_id="label-box"):
        details = _details(page)
    with gr.Accordion(label("library.modified_copy"), open=False, elem_id="make-box"):
        copy = _modified_copy(page)
    with gr.Accordion(label("library.delete"), open=False, elem_id="delete-lora-box"):
        deletion = _deletion(page)
    _connect(page, LibraryTab(upload, message, cards, lora, details, copy, deletion))


def _details(page: PageContext) -> Details:
    label = page.label
    fields: dict[str, Component] = {}
    with gr.Row():
        for name in _TEXTS:
            fields[name] = gr.Textbox(
                label=label(f"library.{name}"),
                lines=3 if name == "description" else 1,
                max_length=MAX_TEXT,
                min_width=240,
                elem_id=f"label-{name}",
            )
    fields["weight"] = gr.Number(
        None, label=label("library.weight"), minimum=-2, maximum=2, step=0.05, elem_id="label-weight"
    )
    fields["own_work"] = gr.Checkbox(False, label=label("library.own_work_ask"), elem_id="label-own-work")
    save = gr.Button(label("library.save"), variant="primary", elem_id="save-label")
    return Details(fields, save, gr.State(""))


def _modified_copy(page: PageContext) -> ModifiedCopy:
    label = page.label
    tools = [(label(f"library.{name}"), name) for name in ("resize", "convert", "merge")]
    tool = gr.Radio(tools, value="resize", label=label("library.tool"), elem_id="make-tool")
    # Hidden as a whole: hidden fields in visible rows would leave gaps.
    with gr.Column(visible=False) as merge:
        weight = gr.Slider(-2, 2, 1, step=0.05, label=label("library.weight_here"), elem_id="make-weight")
        others = other_lora_rows(page, "library", prefix="make-", min_weight=-2)
    with gr.Row():
        rank = gr.Number(
            8,
            label=label("library.rank"),
            info=label("library.rank_info"),
            precision=0,
            minimum=0,
            maximum=1024,
            elem_id="make-rank",
        )
        forms = [
            (label("library.kohya"), "kohya"),
            (label("library.diffusers_blocks"), "kohya-diffusers"),
            (label("library.diffusers"), "diffusers"),
        ]
        form = gr.Dropdown(
            forms, value="kohya", label=label("library.form"), visible=False, elem_id="make-form"
        )
        name = gr.Textbox(
            label=label("library.name"), info=label("library.name_info"), max_length=80, elem_id="make-name"
        )
    start = gr.Button(label("library.start"), elem_id="make")
    return ModifiedCopy(tool, merge, weight, others, rank, form, name, start, gr.State(()))


def _deletion(page: PageContext) -> LoraDeletion:
    label = page.label
    start = gr.Button(label("library.delete"), elem_id="delete-lora")
    question = gr.HTML(elem_id="delete-lora-question")
    with gr.Row():
        confirm = gr.Button(
            label("library.delete_sure"), variant="stop", visible=False, elem_id="delete-lora-sure"
        )
        cancel = gr.Button(label("library.keep"), visible=False, elem_id="delete-lora-keep")
    return LoraDeletion(start, question, confirm, cancel, gr.State(None))


def _connect(page: PageContext, tab: LibraryTab) -> None:
    lora, details, copy, deletion = tab.lora, tab.details, tab.copy, tab.deletion
    lists = [lora, *(row.lora for row in copy.others)]
    page.refresh([page.project.change, page.stale("made")], tab.show, lora, [tab.cards, *lists])
    page.refresh([page.stale("library")], tab.update_works, copy.works, [copy.works, tab.message])
    imported = [tab.upload, tab.message]
    tab.upload.upload(page.on(tab.import_files), tab.upload, imported, preprocess=False, **PRIVATE)

    # The question is hidden first, before the other events of this dropdown.
    lora.change(None, None, deletion.outputs, js=_HIDE_QUESTION, **QUIET)
    asked = [*deletion.outputs, deletion.key]
    deletion.start.click(page.on(tab.ask_before_deletion), lora, asked, **QUIET)
    deleted = [tab.message, *deletion.outputs]
    deletion.confirm.click(page.on(tab.delete), deletion.key, deleted, **PRIVATE)
    deletion.cancel.click(None, None, deletion.outputs, js=_HIDE_QUESTION, **QUIET)

    fields = list(details.fields.values())
    changes = [lora.change, page.stale("made")]
    page.refresh(changes, tab.show_details, [lora, details.shown], [*fields, details.shown])
    details.save.click(page.on(tab.save_details), {lora, *fields}, tab.message, **PRIVATE)

    shown = [copy.rank, copy.form, copy.merge]
    copy.tool.change(page.on(tab.show_tool_fields), copy.tool, shown, **QUIET)
    made = [copy.works, tab.message]
    copy.start.click(page.on(tab.make_copy), {lora, *copy.inputs}, made, **PRIVATE)
