"""What the Train tab does, without its components: the form's fields to settings, what is told before, and how it goes. No gradio."""

from __future__ import annotations

import html
import uuid
from dataclasses import dataclass
from typing import Any

from trainer.errors import TrainerError
from trainer.runs.job import Job
from ui.store.library import Library
from ui.store.project_settings import read_settings, write_settings
from ui.store.runs import RunStatus
from ui.text import Words
from ui.views.preflight import Wish, checks, checks_html, estimate_html, wish
from ui.views.settings_form import FILES, FOLDERS, form_html, settings_from, typed
from ui.workspace import Workspace


@dataclass(frozen=True)
class Fields:
    """What the form holds, as the browser sent it."""

    above: dict[str, Any]  # beside the button
    advanced: dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What stands beside the button."""

    estimate: str
    checks: str
    asked: dict[str, str] | None  # what to ask again for, while the estimate is not there


def settings_of(workspace: Workspace, fields: Fields) -> dict[str, Any]:
    """Settings of a training, each name looked up. Raises TrainerError."""
    said = settings_from(fields.advanced)
    said.update(
        {name: str(workspace.projects.folder(said[name]).resolve()) for name in FOLDERS if name in said}
    )
    said.update({name: Library(workspace.runs).path(said[name]) for name in FILES if name in said})
    above = {name: value for name, value in fields.above.items() if value not in (None, "")}
    if not all(isinstance(value, str) for value in above.values()):
        raise TrainerError("the form holds something that is no text; reload the page")
    if "base" in above and above["base"] not in workspace.runs.bases():  # a browser knows no paths
        raise TrainerError(f"the base model “{above['base']}” is not there any more; choose another")
    return {**said, **{name: value.strip() for name, value in above.items()}}


def kept(workspace: Workspace, project: str) -> Fields:
    """A project's fields; for a new project, its name is the file's."""
    found = read_settings(workspace.projects.folder(project))
    bases = workspace.runs.bases()
    above = {
        "name": project,
        "trigger": "",
        "preset": "style",
        "pace": "balanced",
        **{k: v for k, v in found.items() if k != "advanced"},
    }
    above["base"] = found["base"] if found.get("base") in bases else bases[0]
    return Fields(above, found.get("advanced", {}))


def form_of(workspace: Workspace, project: str, fields: Fields) -> str:
    """The Advanced section; what is chosen by name is one's own."""
    files = Library(workspace.runs).all()
    choices = {**dict.fromkeys(FOLDERS, workspace.projects.names()), **dict.fromkeys(FILES, files)}
    return form_html(workspace.words, project, fields.advanced, choices)


def keep_advanced(workspace: Workspace, project: str, said: dict[str, Any]) -> None:
    """Keeps single fields of Advanced as they were left. Raises TrainerError for what no field can hold."""
    keep(workspace, project, advanced={name: typed(name, value) for name, value in said.items()})


def keep(
    workspace: Workspace,
    project: str,
    *,
    above: dict[str, Any] | None = None,
    advanced: dict[str, Any] | None = None,
) -> Fields:
    """Keeps what was said beside what was not; all that is then kept. To open a project changes nothing."""
    with workspace.runs.queue.lock:
        before = kept(workspace, project)
        now = Fields({**before.above, **(above or {})}, {**before.advanced, **(advanced or {})})
        said, had = (
            {name: value for name, value in one.items() if value not in (None, "")}
            for one in (now.advanced, before.advanced)
        )
        if now.above != before.above or said != had:
            write_settings(workspace.projects.folder(project), now.above, now.advanced)
        return Fields(now.above, said)


def wished(workspace: Workspace, project: str, fields: Fields) -> Wish:
    folder = workspace.projects.folder(project)
    try:
        return wish(folder, settings_of(workspace, fields), workspace.runs.models)
    except TrainerError as error:
        return Wish(folder, {}, None, str(error))


def told_before(workspace: Workspace, project: str, fields: Fields) -> Told:
    """What a training of this form would take, and what to mend first."""
    wanted, estimates = wished(workspace, project, fields), workspace.runs.estimates
    key = estimates.ask(wanted.folder, wanted.values) if wanted.values is not None else ""
    answer = estimates.answer(key) if key else None
    is_coming = bool(key) and answer is None and estimates.is_pending(key)
    line = estimate_html(wanted, answer, workspace.words, is_coming=is_coming, is_busy=estimates.is_busy())
    said = checks_html(checks(wanted, workspace.runs.models, answer), workspace.words, answer)
    return Told(line, said, {"project": project, "key": key} if is_coming else None)


def told_again(workspace: Workspace, asked: dict[str, str] | None) -> Told | None:
    """The same once the child process has answered; None while it has not."""
    if not asked or (
        workspace.runs.estimates.answer(asked["key"]) is None
        and workspace.runs.estimates.is_pending(asked["key"])
    ):
        return None
    return told_before(workspace, asked["project"], kept(workspace, asked["project"]))


def start(
    workspace: Workspace, project: str | None, fields: Fields, *, token: str, another: bool = False
) -> str:
    """Puts a training into the line; its run's name. Raises TrainerError."""
    if not project:
        raise TrainerError(workspace.words("train.no_project"))
    folder = workspace.projects.folder(project)
    wanted = wished(workspace, project, fields)
    few = next(
        (check for check in checks(wanted, workspace.runs.models) if check.key == "check_fewest"), None
    )
    if few:
        raise TrainerError(workspace.words("train.check_fewest", **few.facts))
    keep(workspace, project, above=fields.above, advanced=fields.advanced)
    return workspace.runs.start(folder, settings_of(workspace, fields), token=token, another=another)


def retry(workspace: Workspace, project: str, run: str) -> str:
    """A failed training again with the change that would mend it, which the form then shows too. Raises TrainerError."""
    change = change_of(workspace, run)
    if not change:
        raise TrainerError("this training needs another change; see what it says, then press Train")
    fields = kept(workspace, project)
    made = workspace.runs.retry(run, change)
    above = {name: value for name, value in change.items() if name in fields.above}
    advanced = {name: value for name, value in change.items() if name not in fields.above}
    keep(workspace, project, above=above, advanced=advanced)
    return made


def change_of(workspace: Workspace, run: str) -> dict[str, Any]:
    """The settings that a failed or killed training should be tried again with; {} where the artist must choose."""
    standing = workspace.runs.status(run)
    if standing.killed:
        from trainer.runs.failures import reduced_memory_settings

        return reduced_memory_settings(workspace.runs.run(run).config)
    remedy = standing.view.remedy if standing.state == "failed" else {}
    return {} if None in remedy.values() else remedy


def shown_run(workspace: Workspace, project: str | None) -> str | None:
    """The run that the Train tab is about: the one that trains, then the one that waits, then the newest."""
    return (workspace.runs.active(project) or workspace.runs.latest(project)) if project else None


def can_go_on(standing: RunStatus) -> bool:
    """Whether Continue makes sense: not where the same fault would come at once."""
    if standing.state in ("stopped", "interrupted"):
        return True
    return standing.state == "failed" and (standing.view.step > 0 or standing.view.cause in ("disk", "fault"))


def new_token() -> str:
    """Of one click."""
    return uuid.uuid4().hex


def alert_html(message: str) -> str:
    """Told at once, and focused by the page's script."""
    return f'<div role="alert" class="alert" tabindex="-1" data-focus="{uuid.uuid4().hex}">{html.escape(message)}</div>'


def line_html(workspace: Workspace, jobs: list[Job], others: int, words: Words) -> str:
    """One's own trainings that run or wait, with buttons that the page's script sends to `/line`."""
    rows = []
    waiting = [job for job in jobs if job.state == "waiting"]
    for job in jobs:
        name = job.folder.name
        state = (
            words("train.queue_running")
            if job.state == "running"
            else words("train.queue_waiting", place=job.queue_position)
        )
        wanted = ["stop"] if job.state == "running" else ["up", "down", "remove"]
        if job in waiting[:1]:
            wanted.remove("up")
        if job in waiting[-1:]:
            wanted.remove("down")
        signs = {"up": "↑", "down": "↓", "remove": "✕", "stop": "■"}
        buttons = "".join(
            f'<button type="button" data-line="{action}" data-run="{_said(name)}" aria-label="{_said(words(f"train.queue_{action}", name=name))}">'
            f"{signs[action]}</button>"
            for action in wanted
        )
        rows.append(
            f'<li><span><strong>{_said(name)}</strong> · {_said(state)}</span><span class="line-buttons">{buttons}</span></li>'
        )
    if others:
        rows.append(f"<li>{_said(words('train.queue_others', n=others))}</li>")
    return (
        f'<ol class="line">{"".join(rows)}</ol>'
        if rows
        else f'<p class="hint">{_said(words("train.queue_empty"))}</p>'
    )


def _said(text: str) -> str:
    return html.escape(text, quote=True)
