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
from ui.workspace import Desk

# A tab's own, and what all tabs look at: that a training or a file was made, changed or removed, or that a drop of pictures
# has come in whole.
SECTIONS = ("artwork", "captions", "train", "try_it", "library", "made", "arrived")


def pulse(desk: Desk, project: str) -> dict[str, Any]:
    """{"project": the chosen one, "status": HTML, "marks": {section: mark}}; an unknown project is none."""
    chosen = project if project in desk.projects.names() else ""
    made = _made(desk)
    seen = {
        "artwork": _artwork(desk, chosen),
        "captions": _captions(desk, chosen),
        "train": _train(desk, chosen),
        "try_it": (made, [job.folder.name for job in desk.jobs.line()], Drawings(desk.jobs).marks()),
        "library": (made, Library(desk.jobs).works()),
        "made": made,
        "arrived": _arrived(desk, chosen),
    }
    of = {
        section: "" if section == "made" else chosen for section in SECTIONS
    }  # what was made is every project's
    marks = {section: _mark(of[section], seen[section]) for section in SECTIONS}
    return {"project": chosen, "status": head_html(desk, chosen), "marks": marks}


def made_mark(desk: Desk) -> str:
    """The mark of "made" now, for what is drawn from it: the page's first question may come after the next change."""
    return _mark("", _made(desk))


def arrived_mark(desk: Desk, project: str) -> str:
    """The mark of "arrived" now, likewise."""
    return _mark(project, _arrived(desk, project))


def _made(desk: Desk) -> Any:
    return desk.jobs.names(), Library(desk.jobs).version()


def _arrived(desk: Desk, chosen: str) -> Any:
    drop = desk.projects.intake.arrivals(desk.projects.folder(chosen)) if chosen else None
    return drop and drop.ended and id(drop)


def _mark(project: str, seen: Any) -> str:
    return hashlib.sha256(repr((project, seen)).encode()).hexdigest()[:16]


def head_html(desk: Desk, chosen: str) -> str:
    """What trains is told, whatever project is chosen."""
    run = shown_run(desk, chosen)
    active = desk.jobs.active(chosen) if chosen else None
    run = run if active else desk.jobs.busy() or run
    standing = desk.jobs.standing(run) if run else None
    queue = desk.jobs.queue
    others = standing is None and queue.blocking_job() is not None
    return status_html(standing, desk.words, name=run or "", paused=queue.is_paused, others=others)


def _artwork(desk: Desk, chosen: str) -> Any:
    if not chosen:
        return None
    place = desk.projects.folder(chosen)
    drop, look = desk.projects.intake.arrivals(place), desk.projects.checkup.visit(place)
    return drop and (id(drop), drop.rev), look and (id(look), look.done, look.ended)


def _captions(desk: Desk, chosen: str) -> Any:
    stands = Captioning(desk.projects, desk.jobs).standing(chosen) if chosen else None
    return stands and (
        len(stands.view.captions),
        stands.alive,
        stands.waits,
        stands.view.ended,
        stands.view.done,
        stands.view.stage,
    )


def _train(desk: Desk, chosen: str) -> Any:
    run, queue = shown_run(desk, chosen), desk.jobs.queue
    line = [(job.folder.name, job.state, job.queue_position) for job in queue.active()]
    return run, run and desk.jobs.standing(run).key, line, queue.is_paused, desk.jobs.estimates.mark()
