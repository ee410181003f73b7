"""Artwork: pictures come in, are looked at by the doctor, cropped, masked, counted, removed and restored; projects are deleted."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.store.deletion import delete_project
from ui.store.intake import incoming_files
from ui.store.limits import MB
from ui.store.picture_checks import picture_report
from ui.store.projects import SAMPLES
from ui.store.training_goal import training_goal
from ui.tabs import PRIVATE, QUIET, TOUCH, Shared
from ui.text import Words
from ui.views.artwork import arrivals_html, cards_html, escaped, findings_html, removed_html
from ui.views.mask_dialog import mask_dialog_html
from ui.workspace import Workspace


def build(shared: Shared) -> None:
    label = shared.label
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
    limits = gr.HTML(elem_id="upload-limits", padding=False)
    arrivals = gr.HTML(elem_id="left-out", padding=False)
    visit = gr.HTML(elem_id="visit", padding=False)
    doctor = gr.HTML(elem_id="doctor", padding=False)
    cards = gr.HTML(elem_id="cards", padding=False)
    removed = gr.HTML(elem_id="removed", padding=False)
    dialog = gr.HTML(elem_id="mask-place", padding=False)
    changed = gr.Button("changed", elem_id="artwork-changed", elem_classes="unseen")  # pressed by the script
    # Written by the poll: a State's change is not told to the page by an event that passes the queue by (Gradio 6.31).
    fresh = gr.Textbox(elem_id="artwork-fresh", elem_classes="unseen", show_label=False)
    seen, drawn = gr.State(()), gr.State("")
    _deletion(shared)

    def show(workspace: Workspace, chosen: str | None):
        limits_said = _limits(workspace)
        if not chosen or chosen not in workspace.projects.names():
            return limits_said, "", "", "", mask_dialog_html(workspace.words), ""
        came = _came(
            workspace, chosen
        )  # before the pictures are looked up: what comes meanwhile is drawn later
        listed = workspace.projects.pictures(chosen)
        workspace.checks.start(chosen, listed)
        stood = came + _looked(workspace, chosen)
        goal = training_goal(workspace.projects.folder(chosen), workspace.runs.models)
        found = picture_report(workspace.checks, chosen, listed, goal)
        return (
            limits_said,
            findings_html(workspace.words, found, unfinished=bool(_visit_words(workspace, chosen))),
            cards_html(workspace.words, chosen, listed, found),
            removed_html(workspace.words, chosen, workspace.projects.removed(chosen)),
            mask_dialog_html(workspace.words),
            stood,
        )

    def take_in(workspace: Workspace, files: Any, chosen: str | None):
        values = files if isinstance(files, list) else [files] if files else []
        paths = workspace.uploaded(files)
        names = [str(value.get("orig_name") or "") if isinstance(value, dict) else "" for value in values]
        project = (
            chosen
            if chosen and chosen not in SAMPLES and chosen in workspace.projects.names()
            else workspace.projects.create("my-pictures")
        )
        workspace.intake.start(project, incoming_files(paths, names))
        return gr.update(choices=workspace.projects.names(), value=project), None

    def follow(workspace: Workspace, chosen: str | None, last: tuple, shown: str):
        """What changed since the last look; the cards themselves are drawn by the event that `fresh` raises."""
        if not chosen or chosen not in workspace.projects.names():
            return [gr.skip()] * 4
        drop, look = workspace.intake.progress(chosen), workspace.checks.progress(chosen)
        now = (chosen, drop and (id(drop), drop.rev), look and (id(look), look.done, look.ended))
        if tuple(last) == now:
            return [gr.skip()] * 4
        stood = _came(workspace, chosen) + _looked(workspace, chosen)
        return [
            arrivals_html(workspace.words, drop),
            escaped(_visit_words(workspace, chosen)),
            now,
            gr.skip() if stood == shown else stood,
        ]

    outputs = [limits, doctor, cards, removed, dialog, drawn]
    shared.draw([shared.project.change, shared.touched.change, fresh.change], show, shared.project, outputs)
    for box in (upload, folder):
        box.upload(
            shared.on(take_in), [box, shared.project], [shared.project, box], preprocess=False, **PRIVATE
        )
    gr.on(
        [changed.click, shared.news["arrived"].click],
        None,
        None,
        shared.touched,
        js=TOUCH,
        trigger_mode="multiple",
        **QUIET,
    )
    shared.draw(
        [shared.news["artwork"].click], follow, [shared.project, seen, drawn], [arrivals, visit, seen, fresh]
    )


def _came(workspace: Workspace, project: str) -> str:
    """Another word for each picture that a drop has brought."""
    drop = workspace.intake.progress(project)
    return repr((project, drop and (id(drop), drop.kept, drop.ended)))


def _looked(workspace: Workspace, project: str) -> str:
    """Another word for each tenth of the measuring."""
    visit = workspace.checks.progress(project)
    return repr(visit and (id(visit), visit.ended or 10 * visit.done // max(1, visit.total)))


def _limits(workspace: Workspace) -> str:
    limits = workspace.limits
    facts = {
        "pictures": limits.project_pictures,
        "megabytes": limits.picture_bytes // MB,
        "megapixels": limits.picture_pixels // 1_000_000,
    }
    return f'<p class="hint">{escaped(workspace.words("artwork.limits", **facts))}</p>'


def _visit_words(workspace: Workspace, project: str) -> str:
    visit = workspace.checks.progress(project)
    return (
        workspace.words("artwork.checking", done=visit.done, total=visit.total)
        if visit and not visit.ended
        else ""
    )


def _deletion(shared: Shared) -> None:
    """A button, and the question that it asks first."""
    label = shared.label
    delete = gr.Button(label("artwork.delete"), elem_id="delete", size="sm", variant="stop")
    with gr.Group(visible=False, elem_id="delete-question") as question:
        asked = gr.HTML(elem_id="delete-asked", padding=False)
        runs = gr.Checkbox(True, label=label("artwork.delete_runs"), elem_id="delete-runs")
        with gr.Row():
            no = gr.Button(label("artwork.delete_no"), elem_id="delete-no")
            yes = gr.Button(label("artwork.delete_yes"), elem_id="delete-yes", variant="stop")
    receipt = gr.HTML(elem_id="deleted", padding=False)
    about = gr.State("")  # the project that the question is of

    def ask(workspace: Workspace, chosen: str | None):
        if not chosen:
            return [gr.skip()] * 5
        count = len(workspace.runs.names(chosen))
        words = workspace.words(
            "artwork.delete_ask", project=chosen, pictures=len(workspace.projects.pictures(chosen))
        )
        said = f'<div role="alertdialog" aria-live="assertive" class="alert">{escaped(words)}</div>'
        return (
            gr.update(visible=True),
            said,
            gr.update(label=workspace.words("artwork.delete_runs", count=count), visible=count > 0),
            "",
            chosen,
        )

    def keep(workspace: Workspace):
        del workspace
        return gr.update(visible=False)

    def keep_of_other(workspace: Workspace, chosen: str | None, last: str):
        """A change of the project may be told late: a question of the one that is chosen by now stays."""
        del workspace
        return gr.skip() if chosen == last else gr.update(visible=False)

    def remove(workspace: Workspace, chosen: str | None, with_runs: bool):
        done = delete_project(
            workspace.projects,
            workspace.runs,
            workspace.words,
            chosen or "",
            with_trainings=with_runs is True,
        )
        said = _receipt(workspace.words, done.project, done.files, done.trainings)
        shown = gr.update(choices=workspace.projects.names(), value=workspace.projects.latest())
        return gr.update(visible=False), f'<p role="status">{said}</p>', shown

    delete.click(shared.on(ask), shared.project, [question, asked, runs, receipt, about], **PRIVATE)
    no.click(shared.on(keep), None, question, **PRIVATE)
    yes.click(shared.on(remove), [shared.project, runs], [question, receipt, shared.project], **PRIVATE)
    shared.draw([shared.project.change], keep_of_other, [shared.project, about], question)


def _receipt(words: Words, project: str, files: int, trainings: int) -> str:
    runs = words("artwork.deleted_runs", count=trainings) if trainings else ""
    return escaped(words("artwork.deleted", project=project, files=files, runs=runs))
