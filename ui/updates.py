"""The state that the page polls: one cheap response, requested again and again by its script. No gradio.

The status line comes as HTML. Each section of the page comes as a mark, a hash that changes whenever its tab should; the
script then triggers the expensive events of Gradio only for tabs that are visible and have changed.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ui.store.captioning import Captioning
from ui.store.drawings import Drawings
from ui.store.file_jobs import FileJobs
from ui.store.library import Library
from ui.views.progress import status_html
from ui.views.training import shown_run
from ui.workspace import Workspace

# One section for each tab, and two that several tabs need: "made", when a training or LoRA file was created, changed or
# deleted, and "arrived", when all pictures of an upload have been added.
SECTIONS = ("artwork", "captions", "train", "try_it", "library", "made", "arrived")


def page_state(workspace: Workspace, project: str) -> dict[str, Any]:
    """Returns {"project": name, "status": HTML, "marks": {section: mark}}; an unknown project counts as none."""
    chosen = project if project in workspace.projects.names() else ""
    made = _made(workspace)
    queued = [job.folder.name for job in workspace.runs.queued()]
    states = {
        "artwork": _artwork(workspace, chosen),
        "captions": _captions(workspace, chosen),
        "train": _train(workspace, chosen),
        "try_it": (made, queued, Drawings(workspace.runs).revisions()),
        "library": (made, FileJobs(workspace.runs).all()),
        "made": made,
        "arrived": _arrived(workspace, chosen),
    }
    marks = {section: _mark(chosen, states[section]) for section in SECTIONS if section != "made"}
    marks["made"] = made_mark(workspace, made)
    return {"project": chosen, "status": status_line_html(workspace, chosen), "marks": marks}


def made_mark(workspace: Workspace, made: Any = None) -> str:
    """Returns the current mark of "made", which is the same for all projects.

    Tabs put it into their HTML: the first poll may come after the next change, and the script compares the two.
    """
    return _mark("", _made(workspace) if made is None else made)


def arrived_mark(workspace: Workspace, project: str) -> str:
    """Returns the current mark of "arrived", for the HTML of tabs."""
    return _mark(project, _arrived(workspace, project))


def _made(workspace: Workspace) -> tuple[list[str], str]:
    return workspace.runs.names(), Library(workspace.runs).revision()


def _arrived(workspace: Workspace, chosen: str) -> Any:
    progress = workspace.intake.progress(chosen) if chosen else None
    return progress and progress.ended and id(progress)


def _mark(project: str, state: Any) -> str:
    return hashlib.sha256(repr((project, state)).encode()).hexdigest()[:16]


def status_line_html(workspace: Workspace, chosen: str) -> str:
    """Returns the status of the artist's training that is running, or else of the chosen project's latest run."""
    runs, queue = workspace.runs, workspace.runs.queue
    run = shown_run(workspace, chosen)
    if not (chosen and runs.active(chosen)):
        run = runs.busy() or run
    status = runs.status(run) if run else None
    others = status is None and queue.blocking_job() is not None
    return status_html(status, workspace.words, name=run or "", paused=queue.is_paused, others=others)


def _artwork(workspace: Workspace, chosen: str) -> Any:
    if not chosen:
        return None
    intake, checks = workspace.intake.progress(chosen), workspace.checks.progress(chosen)
    return intake and (id(intake), intake.rev), checks and (id(checks), checks.done, checks.ended)


def _captions(workspace: Workspace, chosen: str) -> Any:
    status = Captioning(workspace.projects, workspace.runs).status(chosen) if chosen else None
    if status is None:
        return None
    view = status.view
    return len(view.captions), status.is_running, status.is_waiting, view.ended, view.done, view.stage


def _train(workspace: Workspace, chosen: str) -> Any:
    run, queue = shown_run(workspace, chosen), workspace.runs.queue
    jobs = [(job.folder.name, job.state, job.queue_position) for job in queue.active()]
    status = run and workspace.runs.status(run).key
    return run, status, jobs, queue.is_paused, workspace.runs.estimates.revision()
