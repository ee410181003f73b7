"""The Train tab: settings, estimate, buttons, progress, the queue, and the comparison of two trainings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from trainer.errors import TrainerError
from ui.tabs import QUIET, PageContext, Updates
from ui.tabs.train_panels import (
    ComparisonPanel,
    Controls,
    PreflightPanel,
    ProgressPanel,
    QueuePanel,
    SettingsForm,
    comparison_panel,
    controls,
    progress_panel,
    queue_panel,
    settings_form,
)
from ui.views import training
from ui.views.comparison import comparison_html
from ui.views.curves import curve_html
from ui.views.progress import notes_html, remedy_words, samples_html
from ui.workspace import Workspace


@dataclass(frozen=True)
class TrainTab:
    """All components of the tab; its methods are the callbacks."""

    project: gr.Dropdown
    form: SettingsForm
    preflight: PreflightPanel
    controls: Controls
    progress: ProgressPanel
    queue: QueuePanel
    comparison: ComparisonPanel

    @property
    def form_inputs(self) -> set[Block]:
        """Components that are read when a training starts."""
        return {self.project, self.form.loaded, self.controls.token, *self.form.main.values()}

    @property
    def form_outputs(self) -> list[Component]:
        """Components that `load_settings` updates."""
        form, controls = self.form, self.controls
        components = [*form.main.values(), form.advanced, form.loaded, *self.preflight.outputs]
        return [*components, controls.message, controls.token]

    @property
    def run_outputs(self) -> list[Component]:
        """Components that show a run."""
        controls, progress = self.controls, self.progress
        buttons = [controls.train, controls.stop, controls.resume, controls.retry, controls.another]
        return [*buttons, progress.notes, progress.samples, progress.curve, progress.shown]

    def _fields(self, workspace: Workspace, values: dict[Component, Any]) -> training.Fields:
        """Returns the fields of the page and the saved advanced settings."""
        main = {name: values[component] for name, component in self.form.main.items()}
        project = values[self.project]
        advanced = training.saved_fields(workspace, project).advanced if project else {}
        return training.Fields(main, advanced)

    def load_settings(self, workspace: Workspace, project: str | None) -> Updates:
        """Shows the saved settings of a project."""
        if not project:
            return gr.skip()
        saved = training.saved_fields(workspace, project)
        main = self.form.main
        updates: Updates = {
            component: gr.update(value=saved.main[name], interactive=True) for name, component in main.items()
        }
        updates[main["base"]] = gr.update(
            choices=workspace.runs.bases(), value=saved.main["base"], interactive=True
        )
        return {
            **updates,
            **self.preflight.updates(training.preflight(workspace, project, saved)),
            self.form.advanced: training.advanced_html(workspace, project, saved),
            self.form.loaded: project,
            self.controls.message: "",
            self.controls.token: training.new_token(),
        }

    def open_project(self, workspace: Workspace, project: str | None, loaded: str) -> Updates:
        """Shows the settings once for each choice of a project: text that was typed since then stays."""
        return gr.skip() if project == loaded else self.load_settings(workspace, project)

    def save_settings(self, workspace: Workspace, values: dict[Component, Any]) -> Updates:
        """Saves the main fields and shows the new estimate."""
        project = values[self.project]
        # The fields of another project are still shown while its own are being loaded.
        if not project or values[self.form.loaded] != project:
            return gr.skip()
        fields = training.save_fields(workspace, project, main=self._fields(workspace, values).main)
        preflight = training.preflight(workspace, project, fields)
        return {**self.preflight.updates(preflight), self.controls.message: ""}

    def update_preflight(self, workspace: Workspace, project: str | None) -> Updates:
        """Shows the estimate of the saved settings."""
        if not project:
            return gr.skip()
        saved = training.saved_fields(workspace, project)
        return self.preflight.updates(training.preflight(workspace, project, saved))

    def start(self, workspace: Workspace, values: dict[Component, Any]) -> Updates:
        """Queues a training."""
        return self._start(workspace, values, another=False)

    def start_another(self, workspace: Workspace, values: dict[Component, Any]) -> Updates:
        """Queues a training although one of the project is active."""
        return self._start(workspace, values, another=True)

    def _start(self, workspace: Workspace, values: dict[Component, Any], *, another: bool) -> Updates:
        controls = self.controls
        fields = self._fields(workspace, values)
        try:
            training.start(
                workspace, values[self.project], fields, token=values[controls.token], another=another
            )
        except TrainerError as error:
            return {controls.message: training.alert_html(str(error))}
        return {
            controls.message: "",
            controls.token: training.new_token(),
            controls.train: gr.update(interactive=False),
            controls.stop: gr.update(visible=True),
        }

    def resume(self, workspace: Workspace, project: str | None) -> None:
        """Queues a stopped training again."""
        run = training.shown_run(workspace, project)
        if run:
            workspace.runs.resume(run)

    def retry(self, workspace: Workspace, project: str | None) -> None:
        """Queues a failed training again with changed settings."""
        run = training.shown_run(workspace, project)
        if run and project:
            training.retry(workspace, project, run)

    def update_run(self, workspace: Workspace, project: str | None, shown: tuple[Any, ...]) -> Updates:
        """Shows the state of the project's run, if it is another one than `shown`."""
        return self._run_updates(workspace, project, shown) or gr.skip()

    def _run_updates(self, workspace: Workspace, project: str | None, shown: tuple[Any, ...]) -> Updates:
        controls, progress, words = self.controls, self.progress, workspace.words
        run = training.shown_run(workspace, project)
        if run is None:
            return {} if tuple(shown) == (project, "") else self._empty_run(project)
        status = workspace.runs.status(run)
        state = (project, run, *status.key)
        if tuple(shown) == state:
            return {}
        changes = training.retry_changes(workspace, run)
        dataset = workspace.runs.project_of(run) or ""
        return {
            controls.train: gr.update(interactive=not status.is_active),
            controls.stop: gr.update(visible=status.is_active),
            controls.resume: gr.update(visible=training.can_continue(status)),
            controls.retry: gr.update(visible=bool(changes), value=remedy_words(changes, words) or " "),
            controls.another: gr.update(visible=status.is_active),
            progress.notes: notes_html(status, words),
            progress.samples: samples_html(workspace.runs.run(run), status, words, dataset),
            progress.curve: curve_html(status.view, words),
            progress.shown: state,
        }

    def _empty_run(self, project: str | None) -> Updates:
        controls, progress = self.controls, self.progress
        hidden = [controls.stop, controls.resume, controls.retry, controls.another]
        return {
            controls.train: gr.update(interactive=True),
            **{button: gr.update(visible=False) for button in hidden},
            progress.notes: "",
            progress.samples: "",
            progress.curve: "",
            progress.shown: (project, ""),
        }

    def _queue_updates(self, workspace: Workspace, shown: str) -> Updates:
        queue = workspace.runs.queue
        own, everyone, paused = workspace.runs.queued(), queue.active(), queue.is_paused
        positions = [(job.folder.name, job.state, job.queue_position) for job in own]
        state = repr((*positions, len(everyone), paused))
        if shown == state:
            return {}
        others = sum(job.kind == "train" for job in everyone) - len(own)
        label = workspace.words("train.queue_resume" if paused else "train.queue_pause")
        return {
            self.queue.jobs: training.queue_html(own, others, workspace.words),
            self.queue.pause: gr.update(visible=not workspace.user, value=label),
            self.queue.shown: state,
        }

    def update_all(
        self,
        workspace: Workspace,
        project: str | None,
        shown_run: tuple[Any, ...],
        shown_queue: str,
        pending: dict[str, str] | None,
    ) -> Updates:
        """Shows all changes that happen without the user, in one request."""
        updates = {
            **self._run_updates(workspace, project, shown_run),
            **self._queue_updates(workspace, shown_queue),
            **self.preflight.updates(training.finished_preflight(workspace, pending)),
        }
        return updates or gr.skip()

    def pause_queue(self, workspace: Workspace) -> None:
        """Pauses or resumes the queue. With accounts the queue is shared, and nobody can pause it."""
        if not workspace.user:
            queue = workspace.runs.queue
            queue.pause(not queue.is_paused)

    def list_runs(self, workspace: Workspace) -> Updates:
        """Updates the choices of runs to compare."""
        names = workspace.runs.names()
        return {
            self.comparison.left: gr.update(choices=names),
            self.comparison.right: gr.update(choices=names),
        }

    def compare(self, workspace: Workspace, left: str | None, right: str | None) -> Updates:
        """Shows the comparison of two runs."""
        html = comparison_html(workspace.runs, left, right, workspace.words)
        return {self.comparison.comparison: html}


def build(page: PageContext) -> None:
    """Builds the tab and connects its components to their callbacks."""
    tab = TrainTab(
        project=page.project,
        form=settings_form(page),
        preflight=PreflightPanel(
            estimate=gr.HTML(elem_id="estimate"), checks=gr.HTML(elem_id="checks"), pending=gr.State(None)
        ),
        controls=controls(page),
        progress=progress_panel(page),
        queue=queue_panel(page),
        comparison=comparison_panel(page),
    )
    _connect_form(page, tab)
    _connect_runs(page, tab)


def _connect_form(page: PageContext, tab: TrainTab) -> None:
    form, preflight, controls = tab.form, tab.preflight, tab.controls
    page.refresh([page.project.change], tab.open_project, [page.project, form.loaded], tab.form_outputs)
    page.refresh(
        [component.change for component in form.main.values()],  # pyright: ignore[reportAttributeAccessIssue]
        tab.save_settings,
        tab.form_inputs,
        [*preflight.outputs, controls.message],
        even_if_hidden=True,
    )
    changes = [page.data_changed.change, form.changed.click]
    page.refresh(changes, tab.update_preflight, page.project, preflight.outputs)
    started = [controls.message, controls.token, controls.train, controls.stop]
    controls.train.click(page.on(tab.start), tab.form_inputs, started, **QUIET)
    controls.another.click(page.on(tab.start_another), tab.form_inputs, started, **QUIET)
    controls.resume.click(page.on(tab.resume), page.project, None, **QUIET)
    retried = controls.retry.click(page.on(tab.retry), page.project, None, **QUIET)
    retried.then(page.on(tab.load_settings), page.project, tab.form_outputs, **QUIET)


def _connect_runs(page: PageContext, tab: TrainTab) -> None:
    queue, comparison = tab.queue, tab.comparison
    page.refresh(
        [page.stale("train")],
        tab.update_all,
        [page.project, tab.progress.shown, queue.shown, tab.preflight.pending],
        [*tab.run_outputs, queue.jobs, queue.pause, queue.shown, *tab.preflight.outputs],
    )
    changes = [page.project.change, page.stale("made")]
    page.refresh(changes, tab.update_run, [page.project, tab.progress.shown], tab.run_outputs)
    page.refresh(changes, tab.list_runs, None, [comparison.left, comparison.right])
    queue.pause.click(page.on(tab.pause_queue), None, None, **QUIET)
    for dropdown in (comparison.left, comparison.right):
        inputs = [comparison.left, comparison.right]
        dropdown.input(page.on(tab.compare), inputs, comparison.comparison, **QUIET)
