"""Logic of the Train tab without components: fields, preflight, start and retry, the queue. No gradio."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from trainer.errors import TrainerError
from trainer.runs.job import Job
from ui.store.library import Library
from ui.store.project_settings import read_settings, write_settings
from ui.store.runs import RunStatus
from ui.text import Words
from ui.views.html import element, escape, text_element
from ui.views.preflight import PlannedTraining, checks, checks_html, estimate_html, planned_training
from ui.views.settings_form import FILES, FOLDERS, form_html, parsed_field, settings_from
from ui.workspace import Workspace

_ICONS = {"up": "↑", "down": "↓", "remove": "✕", "stop": "■"}


@dataclass(frozen=True)
class Fields:
    """The content of the form.

    Attributes:
        main: name, trigger, preset, pace and base.
        advanced: fields of the advanced settings; empty ones are left out or "".
    """

    main: dict[str, Any]
    advanced: dict[str, Any]


@dataclass(frozen=True)
class Preflight:
    """Contents of the panel beside the Train button.

    Attributes:
        estimate: HTML.
        checks: HTML.
        pending: argument of `finished_preflight` while the estimate is being made, otherwise None.
    """

    estimate: str
    checks: str
    pending: dict[str, str] | None


def settings_of(workspace: Workspace, fields: Fields) -> dict[str, Any]:
    """Returns the settings of a training. Names in the form are replaced by paths of the workspace.

    Raises:
        TrainerError: a name is unknown or a field has the wrong form.
    """
    settings = settings_from(fields.advanced)
    for name in FOLDERS:
        if name in settings:
            settings[name] = str(workspace.projects.folder(settings[name]).resolve())
    for name in FILES:
        if name in settings:
            settings[name] = Library(workspace.runs).path(settings[name])
    main = {name: value for name, value in fields.main.items() if value not in (None, "")}
    if not all(isinstance(value, str) for value in main.values()):
        raise TrainerError("the form has a field that is not text; reload the page")
    # A name that is not in the list could be a path: a browser must not name paths.
    if "base" in main and main["base"] not in workspace.runs.bases():
        raise TrainerError(f"the base model “{main['base']}” does not exist; choose another one")
    return {**settings, **{name: value.strip() for name, value in main.items()}}


def saved_fields(workspace: Workspace, project: str) -> Fields:
    """Returns the saved fields of a project, with defaults for a new one."""
    saved = read_settings(workspace.projects.folder(project))
    bases = workspace.runs.bases()
    main = {"name": project, "trigger": "", "preset": "style", "pace": "balanced", **saved}
    advanced = main.pop("advanced", {})
    main["base"] = saved["base"] if saved.get("base") in bases else bases[0]
    return Fields(main, advanced)


def advanced_html(workspace: Workspace, project: str, fields: Fields) -> str:
    """Returns the form of the advanced settings."""
    folders, files = workspace.projects.names(), Library(workspace.runs).all()
    choices = {**dict.fromkeys(FOLDERS, folders), **dict.fromkeys(FILES, files)}
    return form_html(workspace.words, project, fields.advanced, choices)


def save_advanced(workspace: Workspace, project: str, values: dict[str, Any]) -> None:
    """Saves single fields of the advanced settings as a browser sent them.

    Raises:
        TrainerError: there is no such field, or its value has the wrong form.
    """
    parsed = {name: parsed_field(name, value) for name, value in values.items()}
    save_fields(workspace, project, advanced=parsed)


def save_fields(
    workspace: Workspace,
    project: str,
    *,
    main: dict[str, Any] | None = None,
    advanced: dict[str, Any] | None = None,
) -> Fields:
    """Saves some fields and returns all fields of the project.

    The file is written only if a field changes, so that opening a project changes nothing.
    """
    with workspace.runs.queue.lock:
        before = saved_fields(workspace, project)
        after = Fields({**before.main, **(main or {})}, {**before.advanced, **(advanced or {})})
        filled = _filled(after.advanced)
        if after.main != before.main or filled != _filled(before.advanced):
            write_settings(workspace.projects.folder(project), after.main, after.advanced)
        return Fields(after.main, filled)


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "")}


def _planned(workspace: Workspace, project: str, fields: Fields) -> PlannedTraining:
    folder = workspace.projects.folder(project)
    try:
        return planned_training(folder, settings_of(workspace, fields), workspace.runs.models)
    except TrainerError as error:
        return PlannedTraining(folder, {}, None, str(error))


def preflight(workspace: Workspace, project: str, fields: Fields) -> Preflight:
    """Returns the estimate and the checks of a training, and starts the estimate if there is none."""
    planned, estimates = _planned(workspace, project, fields), workspace.runs.estimates
    key = estimates.submit(planned.folder, planned.values) if planned.values is not None else ""
    estimate = estimates.result(key) if key else None
    is_pending = bool(key) and estimate is None and estimates.is_pending(key)
    line = estimate_html(
        planned, estimate, workspace.words, is_pending=is_pending, is_busy=estimates.is_busy()
    )
    listed = checks_html(checks(planned, workspace.runs.models, estimate), workspace.words, estimate)
    return Preflight(line, listed, {"project": project, "key": key} if is_pending else None)


def finished_preflight(workspace: Workspace, pending: dict[str, str] | None) -> Preflight | None:
    """Returns the preflight of the saved fields once a pending estimate is there; None before that."""
    if not pending:
        return None
    estimates, key = workspace.runs.estimates, pending["key"]
    if estimates.result(key) is None and estimates.is_pending(key):
        return None
    return preflight(workspace, pending["project"], saved_fields(workspace, pending["project"]))


def start(
    workspace: Workspace, project: str | None, fields: Fields, *, token: str, another: bool = False
) -> str:
    """Queues a training and returns the name of its run.

    Args:
        token: of one click; a second call with the same token starts nothing.
        another: whether to queue it although the project has an active training.

    Raises:
        TrainerError: the training can't start.
    """
    if not project:
        raise TrainerError(workspace.words("train.no_project"))
    for check in checks(_planned(workspace, project, fields), workspace.runs.models):
        if check.key == "check_fewest":
            raise TrainerError(workspace.words("train.check_fewest", **check.values))
    save_fields(workspace, project, main=fields.main, advanced=fields.advanced)
    folder, settings = workspace.projects.folder(project), settings_of(workspace, fields)
    return workspace.runs.start(folder, settings, token=token, another=another)


def retry(workspace: Workspace, project: str, run: str) -> str:
    """Queues a failed training with the settings that avoid its failure, and saves them in the form.

    Returns:
        The name of the new run.

    Raises:
        TrainerError: there are no such settings.
    """
    changes = retry_changes(workspace, run)
    if not changes:
        raise TrainerError("this training needs another change; read its message, then press Train")
    fields = saved_fields(workspace, project)
    new_run = workspace.runs.retry(run, changes)
    main = {name: value for name, value in changes.items() if name in fields.main}
    advanced = {name: value for name, value in changes.items() if name not in fields.main}
    save_fields(workspace, project, main=main, advanced=advanced)
    return new_run


def retry_changes(workspace: Workspace, run: str) -> dict[str, Any]:
    """Returns the changes with which to retry a failed or killed training; {} if the artist must choose."""
    status = workspace.runs.status(run)
    if status.was_killed:
        from trainer.runs.failures import reduced_memory_settings

        return reduced_memory_settings(workspace.runs.run(run).config)
    remedy = status.view.remedy if status.state == "failed" else {}
    return {} if None in remedy.values() else remedy


def shown_run(workspace: Workspace, project: str | None) -> str | None:
    """Returns the run that the Train tab shows: the one that is training, or waiting, or else the newest."""
    return (workspace.runs.active(project) or workspace.runs.latest(project)) if project else None


def can_continue(status: RunStatus) -> bool:
    """Returns whether Continue makes sense, which it does not where the same failure would follow at once."""
    if status.state in ("stopped", "interrupted"):
        return True
    return status.state == "failed" and (status.view.step > 0 or status.view.cause in ("disk", "fault"))


def new_token() -> str:
    """Returns a token for one click of Train."""
    return uuid.uuid4().hex


def alert_html(message: str) -> str:
    """Returns an alert, which ui/script/page.js focuses once."""
    return text_element(
        "div", message, role="alert", class_="alert", tabindex=-1, data_focus=uuid.uuid4().hex
    )


def queue_html(jobs: list[Job], others: int, words: Words) -> str:
    """Returns the trainings that run or wait, with buttons that ui/script/train.js sends to `/line`.

    Args:
        jobs: of this user, in the order of the queue.
        others: number of other users' trainings.
    """
    waiting = [job for job in jobs if job.state == "waiting"]
    rows = []
    for job in jobs:
        if job.state == "running":
            state, actions = words("train.queue_running"), ["stop"]
        else:
            state = words("train.queue_waiting", place=job.queue_position)
            actions = ["up"] * (job not in waiting[:1]) + ["down"] * (job not in waiting[-1:]) + ["remove"]
        rows.append(_queue_row(job.folder.name, state, actions, words))
    if others:
        rows.append(text_element("li", words("train.queue_others", n=others)))
    if not rows:
        return text_element("p", words("train.queue_empty"), class_="hint")
    return element("ol", "".join(rows), class_="queue")


def _queue_row(name: str, state: str, actions: list[str], words: Words) -> str:
    buttons = "".join(
        text_element(
            "button",
            _ICONS[action],
            type="button",
            data_queue_action=action,
            data_run=name,
            aria_label=words(f"train.queue_{action}", name=name),
        )
        for action in actions
    )
    title = element("span", f"{text_element('strong', name)} · {escape(state)}")
    return element("li", title + element("span", buttons, class_="queue-buttons"))
