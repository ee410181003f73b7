"""The Artwork tab: upload, checks, cards with crop, mask and repeats, and deletion of the project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from ui.store.deletion import delete_project
from ui.store.incoming import incoming_files
from ui.store.limits import MB
from ui.store.picture_checks import picture_report
from ui.store.projects import SAMPLES
from ui.store.training_goal import training_goal
from ui.tabs import NEW_VALUE, PRIVATE, QUIET, PageContext, Updates, hidden_button, hidden_field
from ui.views.artwork import cards_html, findings_html, intake_html, removed_html
from ui.views.html import escape, text_element
from ui.views.mask_dialog import mask_dialog_html
from ui.workspace import Workspace


@dataclass(frozen=True)
class ArtworkTab:
    """All components of the tab; its methods are the callbacks.

    Attributes:
        changed: a button that the page's script presses after a change of the pictures.
        cards_stale: a field that `update_progress` writes when the cards must be rendered again.
        shown_progress: the state of upload and checks that the page shows.
        shown_cards: the state that the cards were rendered from.
    """

    project: gr.Dropdown
    upload: gr.File
    folder: gr.UploadButton
    limits: gr.HTML
    intake: gr.HTML
    checking: gr.HTML
    findings: gr.HTML
    cards: gr.HTML
    removed: gr.HTML
    dialog: gr.HTML
    changed: gr.Button
    cards_stale: gr.Textbox
    shown_progress: gr.State
    shown_cards: gr.State

    @property
    def outputs(self) -> list[Component]:
        """Components that `show` updates."""
        return [self.limits, self.findings, self.cards, self.removed, self.dialog, self.shown_cards]

    def show(self, workspace: Workspace, project: str | None) -> Updates:
        """Shows the cards with all findings, and starts the checks of new pictures."""
        words = workspace.words
        updates: Updates = {self.limits: _limits_html(workspace), self.dialog: mask_dialog_html(words)}
        if not project or project not in workspace.projects.names():
            empty = [self.findings, self.cards, self.removed, self.shown_cards]
            return {**updates, **dict.fromkeys(empty, "")}
        # The state is taken before the pictures: one that is added meanwhile makes the cards stale again.
        intake = _intake_state(workspace, project)
        pictures = workspace.projects.pictures(project)
        workspace.checks.start(project, pictures)
        state = intake + _checks_state(workspace, project)
        goal = training_goal(workspace.projects.folder(project), workspace.runs.models)
        report = picture_report(workspace.checks, project, pictures, goal)
        is_checking = bool(_checking_words(workspace, project))
        return {
            **updates,
            self.findings: findings_html(words, report, unfinished=is_checking),
            self.cards: cards_html(words, project, pictures, report),
            self.removed: removed_html(words, project, workspace.projects.removed(project)),
            self.shown_cards: state,
        }

    def take_files(self, workspace: Workspace, files: Any, project: str | None) -> Updates:
        """Adds uploaded files."""
        return self._take(workspace, files, project, self.upload)

    def take_folder(self, workspace: Workspace, files: Any, project: str | None) -> Updates:
        """Adds the files of an uploaded folder."""
        return self._take(workspace, files, project, self.folder)

    def _take(self, workspace: Workspace, files: Any, project: str | None, component: Component) -> Updates:
        """Adds uploaded files to the project; to a new one if none is chosen or the sample set is."""
        values = files if isinstance(files, list) else [files] if files else []
        paths = workspace.uploaded(files)
        names = [str(value.get("orig_name") or "") if isinstance(value, dict) else "" for value in values]
        if not project or project in SAMPLES or project not in workspace.projects.names():
            project = workspace.projects.create("my-pictures")
        workspace.intake.start(project, incoming_files(paths, names))
        return {self.project: gr.update(choices=workspace.projects.names(), value=project), component: None}

    def update_progress(
        self, workspace: Workspace, project: str | None, shown: tuple[Any, ...], shown_cards: str
    ) -> Updates:
        """Shows the progress of upload and checks, and marks outdated cards as stale."""
        if not project or project not in workspace.projects.names():
            return gr.skip()
        intake, checks = workspace.intake.progress(project), workspace.checks.progress(project)
        state = (
            project,
            intake and (id(intake), intake.rev),
            checks and (id(checks), checks.done, checks.ended),
        )
        if tuple(shown) == state:
            return gr.skip()
        updates: Updates = {
            self.intake: intake_html(workspace.words, intake),
            self.checking: escape(_checking_words(workspace, project)),
            self.shown_progress: state,
        }
        cards = _intake_state(workspace, project) + _checks_state(workspace, project)
        if cards != shown_cards:
            updates[self.cards_stale] = cards
        return updates


@dataclass(frozen=True)
class ProjectDeletion:
    """The button that deletes the project, and the question before it.

    Attributes:
        asked_project: the project that the question is about.
    """

    project: gr.Dropdown
    start: gr.Button
    question: gr.Group
    text: gr.HTML
    with_runs: gr.Checkbox
    cancel: gr.Button
    confirm: gr.Button
    receipt: gr.HTML
    asked_project: gr.State

    @property
    def outputs(self) -> list[Any]:
        """Components that `ask` updates."""
        return [self.question, self.text, self.with_runs, self.receipt, self.asked_project]

    def ask(self, workspace: Workspace, project: str | None) -> Updates:
        """Shows the question with the number of pictures and trainings."""
        if not project:
            return gr.skip()
        words, runs = workspace.words, len(workspace.runs.names(project))
        pictures = len(workspace.projects.pictures(project))
        text = words("artwork.delete_ask", project=project, pictures=pictures)
        alert = text_element("div", text, role="alertdialog", aria_live="assertive", class_="alert")
        label = words("artwork.delete_runs", count=runs)
        return {
            self.question: gr.update(visible=True),
            self.text: alert,
            self.with_runs: gr.update(label=label, visible=runs > 0),
            self.receipt: "",
            self.asked_project: project,
        }

    def hide(self, workspace: Workspace) -> Updates:
        """Hides the question."""
        del workspace
        return {self.question: gr.update(visible=False)}

    def hide_for_other_project(self, workspace: Workspace, project: str | None, asked: str) -> Updates:
        """Hides the question of another project. A late event leaves a newer question."""
        return gr.skip() if project == asked else self.hide(workspace)

    def delete(self, workspace: Workspace, project: str | None, with_runs: bool) -> Updates:
        """Deletes the project and shows a receipt."""
        words, projects = workspace.words, workspace.projects
        done = delete_project(
            projects, workspace.runs, words, project or "", with_trainings=with_runs is True
        )
        runs = words("artwork.deleted_runs", count=done.trainings) if done.trainings else ""
        receipt = words("artwork.deleted", project=done.project, files=done.files, runs=runs)
        return {
            self.question: gr.update(visible=False),
            self.receipt: text_element("p", receipt, role="status"),
            self.project: gr.update(choices=projects.names(), value=projects.latest()),
        }


def _intake_state(workspace: Workspace, project: str) -> str:
    """Returns another text for each picture that an upload has added."""
    progress = workspace.intake.progress(project)
    return repr((project, progress and (id(progress), progress.kept, progress.ended)))


def _checks_state(workspace: Workspace, project: str) -> str:
    """Returns another text for each tenth of the checks: the HTML of a thousand cards is large."""
    progress = workspace.checks.progress(project)
    return repr(progress and (id(progress), progress.ended or 10 * progress.done // max(1, progress.total)))


def _limits_html(workspace: Workspace) -> str:
    limits = workspace.limits
    text = workspace.words(
        "artwork.limits",
        pictures=limits.project_pictures,
        megabytes=limits.picture_bytes // MB,
        megapixels=limits.picture_pixels // 1_000_000,
    )
    return text_element("p", text, class_="hint")


def _checking_words(workspace: Workspace, project: str) -> str:
    progress = workspace.checks.progress(project)
    if not progress or progress.ended:
        return ""
    return workspace.words("artwork.checking", done=progress.done, total=progress.total)


def build(page: PageContext) -> None:
    """Builds the tab and connects its components to their callbacks."""
    label = page.label
    with gr.Row(equal_height=True):
        upload = gr.File(
            label=label("artwork.drop"), file_count="multiple", elem_id="upload", height=170, scale=4
        )
        folder = gr.UploadButton(
            label("artwork.folder"),  # pyright: ignore[reportArgumentType]
            file_count="directory",
            elem_id="upload-folder",
            scale=1,
        )
    tab = ArtworkTab(
        project=page.project,
        upload=upload,
        folder=folder,
        limits=gr.HTML(elem_id="upload-limits", padding=False),
        intake=gr.HTML(elem_id="left-out", padding=False),
        checking=gr.HTML(elem_id="visit", padding=False),
        findings=gr.HTML(elem_id="doctor", padding=False),
        cards=gr.HTML(elem_id="cards", padding=False),
        removed=gr.HTML(elem_id="removed", padding=False),
        dialog=gr.HTML(elem_id="mask-place", padding=False),
        changed=hidden_button("changed", "artwork-changed"),
        cards_stale=hidden_field(elem_id="artwork-fresh"),
        shown_progress=gr.State(()),
        shown_cards=gr.State(""),
    )
    deletion = _deletion(page)
    changes = [page.project.change, page.data_changed.change, tab.cards_stale.change]
    page.refresh(changes, tab.show, page.project, tab.outputs)
    for component, callback in ((upload, tab.take_files), (folder, tab.take_folder)):
        inputs, outputs = [component, page.project], [page.project, component]
        component.upload(page.on(callback), inputs, outputs, preprocess=False, **PRIVATE)
    changes = [tab.changed.click, page.stale("arrived")]
    gr.on(changes, None, None, page.data_changed, js=NEW_VALUE, trigger_mode="multiple", **QUIET)
    page.refresh(
        [page.stale("artwork")],
        tab.update_progress,
        [page.project, tab.shown_progress, tab.shown_cards],
        [tab.intake, tab.checking, tab.shown_progress, tab.cards_stale],
    )
    _connect_deletion(page, deletion)


def _deletion(page: PageContext) -> ProjectDeletion:
    label = page.label
    start = gr.Button(label("artwork.delete"), elem_id="delete", size="sm", variant="stop")
    with gr.Group(visible=False, elem_id="delete-question") as question:
        text = gr.HTML(elem_id="delete-asked", padding=False)
        with_runs = gr.Checkbox(True, label=label("artwork.delete_runs"), elem_id="delete-runs")
        with gr.Row():
            cancel = gr.Button(label("artwork.delete_no"), elem_id="delete-no")
            confirm = gr.Button(label("artwork.delete_yes"), elem_id="delete-yes", variant="stop")
    receipt = gr.HTML(elem_id="deleted", padding=False)
    return ProjectDeletion(
        page.project, start, question, text, with_runs, cancel, confirm, receipt, gr.State("")
    )


def _connect_deletion(page: PageContext, deletion: ProjectDeletion) -> None:
    question = deletion.question
    deletion.start.click(page.on(deletion.ask), page.project, deletion.outputs, **PRIVATE)
    deletion.cancel.click(page.on(deletion.hide), None, question, **PRIVATE)
    inputs, outputs = [page.project, deletion.with_runs], [question, deletion.receipt, page.project]
    deletion.confirm.click(page.on(deletion.delete), inputs, outputs, **PRIVATE)
    inputs = [page.project, deletion.asked_project]
    page.refresh([page.project.change], deletion.hide_for_other_project, inputs, question)
