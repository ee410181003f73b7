"""What may have changed by itself: one cheap answer that the page's script asks for again and again. No gradio.

The head's status comes as it is to be shown; of each section only a mark, another one whenever its tab would look
different, so that the costly events of the page are raised for what is in sight and new.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ui.store.captioning import Captioning
from ui.store.drawings import Drawings
from ui.store.library import Library
from ui.views.progress import status_html
from ui.views.training import shown_run
from ui.workspace import Workspace

# A tab's own, and what all tabs look at: that a training or a file was made, changed or removed, or that a drop of pictures
# has come in whole.
SECTIONS = ("artwork", "captions", "train", "try_it", "library", "made", "arrived")


def page_state(workspace: Workspace, project: str) -> dict[str, Any]:
    """{"project": the chosen one, "status": HTML, "marks": {section: mark}}; an unknown project is none."""
    chosen = project if project in workspace.projects.names() else ""
    made = _made(workspace)
    seen = {
        "artwork": _artwork(workspace, chosen),
        "captions": _captions(workspace, chosen),
        "train": _train(workspace, chosen),
        "try_it": (
            made,
            [job.folder.name for job in workspace.runs.queued()],
            Drawings(workspace.runs).marks(),
        ),
        "library": (made, Library(workspace.runs).works()),
        "made": made,
        "arrived": _arrived(workspace, chosen),
    }
    of = {
        section: "" if section == "made" else chosen for section in SECTIONS
    }  # what was made is every project's
    marks = {section: _mark(of[section], seen[section]) for section in SECTIONS}
    return {"project": chosen, "status": head_html(workspace, chosen), "marks": marks}


def made_mark(workspace: Workspace) -> str:
    """The mark of "made" now, for what is drawn from it: the page's first question may come after the next change."""
    return _mark("", _made(workspace))


def arrived_mark(workspace: Workspace, project: str) -> str:
    """The mark of "arrived" now, likewise."""
    return _mark(project, _arrived(workspace, project))


def _made(workspace: Workspace) -> Any:
    return workspace.runs.names(), Library(workspace.runs).revision()


def _arrived(workspace: Workspace, chosen: str) -> Any:
    drop = workspace.intake.progress(chosen) if chosen else None
    return drop and drop.ended and id(drop)


def _mark(project: str, seen: Any) -> str:
    return hashlib.sha256(repr((project, seen)).encode()).hexdigest()[:16]


def head_html(workspace: Workspace, chosen: str) -> str:
    """What trains is told, whatever project is chosen."""
    run = shown_run(workspace, chosen)
    active = workspace.runs.active(chosen) if chosen else None
    run = run if active else workspace.runs.busy() or run
    standing = workspace.runs.status(run) if run else None
    queue = workspace.runs.queue
    others = standing is None and queue.blocking_job() is not None
    return status_html(standing, workspace.words, name=run or "", paused=queue.is_paused, others=others)


def _artwork(workspace: Workspace, chosen: str) -> Any:
    if not chosen:
        return None
    drop, look = workspace.intake.progress(chosen), workspace.checks.progress(chosen)
    return drop and (id(drop), drop.rev), look and (id(look), look.done, look.ended)


def _captions(workspace: Workspace, chosen: str) -> Any:
    stands = Captioning(workspace.projects, workspace.runs).status(chosen) if chosen else None
    return stands and (
        len(stands.view.captions),
        stands.alive,
        stands.waits,
        stands.view.ended,
        stands.view.done,
        stands.view.stage,
    )


def _train(workspace: Workspace, chosen: str) -> Any:
    run, queue = shown_run(workspace, chosen), workspace.runs.queue
    line = [(job.folder.name, job.state, job.queue_position) for job in queue.active()]
    return run, run and workspace.runs.status(run).key, line, queue.is_paused, workspace.runs.estimates.mark()
