"""Panels of the Train tab: their components and labels, without behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from trainer.config import PACES, PRESET_NAMES
from ui.tabs import PageContext, Updates, hidden_button
from ui.views import training


@dataclass(frozen=True)
class SettingsForm:
    """The settings of the next training.

    Attributes:
        loaded: name of the project whose settings are shown.
    """

    main: dict[str, Component]  # name of a setting -> its component
    advanced: gr.HTML
    changed: gr.Button
    loaded: gr.State


@dataclass(frozen=True)
class PreflightPanel:
    """The estimate and the checks; `pending` names an estimate that is not there yet."""

    estimate: gr.HTML
    checks: gr.HTML
    pending: gr.State

    @property
    def outputs(self) -> list[Component]:
        """Components that `updates` updates."""
        return [self.estimate, self.checks, self.pending]

    def updates(self, preflight: training.Preflight | None) -> Updates:
        """Returns the updates for a preflight, {} for None."""
        if preflight is None:
            return {}
        return {
            self.estimate: preflight.estimate,
            self.checks: preflight.checks,
            self.pending: preflight.pending,
        }


@dataclass(frozen=True)
class Controls:
    """The buttons, and the message of a training that could not start.

    Attributes:
        token: makes each start of a training unique, so that a click that is sent twice starts one training.
    """

    message: gr.HTML
    train: gr.Button
    stop: gr.Button
    resume: gr.Button
    retry: gr.Button
    another: gr.Button
    token: gr.State


@dataclass(frozen=True)
class ProgressPanel:
    """The progress of the shown run; `shown` is the state that the page shows."""

    notes: gr.HTML
    samples: gr.HTML
    curve: gr.HTML
    shown: gr.State


@dataclass(frozen=True)
class QueuePanel:
    """The queue; `shown` is the state that the page shows."""

    jobs: gr.HTML
    pause: gr.Button
    shown: gr.State


@dataclass(frozen=True)
class ComparisonPanel:
    """Two dropdowns of runs and their comparison."""

    left: gr.Dropdown
    right: gr.Dropdown
    comparison: gr.HTML


def settings_form(page: PageContext) -> SettingsForm:
    """Builds the form: main settings, and all others under Advanced."""
    main = _main_fields(page)
    with gr.Accordion(page.label("train.advanced"), open=False, elem_id="advanced"):
        advanced = gr.HTML(elem_id="form", padding=False)
        changed = hidden_button("changed", "settings-changed")
    return SettingsForm(main, advanced, changed, gr.State(""))


def _main_fields(page: PageContext) -> dict[str, Component]:
    """Returns name -> field. Loading a project enables the fields: it replaces text that is typed before."""
    label, bases = page.label, page.studio.initial.runs.bases()
    disabled: dict[str, Any] = {"interactive": False}
    with gr.Row():
        presets = [(label(f"train.{preset}"), preset) for preset in PRESET_NAMES]
        preset = gr.Radio(presets, value="style", label=label("train.preset"), elem_id="preset", **disabled)
        paces = [(label(f"train.{pace}"), pace) for pace in PACES]
        pace = gr.Radio(paces, value="balanced", label=label("train.pace"), elem_id="pace", **disabled)
    with gr.Row():
        name = gr.Textbox(
            "my-lora",
            label=label("train.name"),
            info=label("train.name_info"),
            max_length=100,
            elem_id="name",
            **disabled,
        )
        trigger = gr.Textbox(
            label=label("train.trigger"),
            info=label("train.trigger_info"),
            max_length=100,
            elem_id="trigger",
            **disabled,
        )
        base = gr.Dropdown(
            bases,
            value=bases[0],
            label=label("train.base"),
            info=label("train.base_info"),
            elem_id="base",
            allow_custom_value=True,
            **disabled,
        )
    return {"name": name, "trigger": trigger, "preset": preset, "pace": pace, "base": base}


def controls(page: PageContext) -> Controls:
    """Builds the buttons that start, stop and continue a training."""
    label = page.label
    message = gr.HTML(elem_id="train-told")
    with gr.Row(elem_id="train-buttons"):
        return Controls(
            message=message,
            train=gr.Button(label("train.train"), variant="primary", elem_id="train"),
            # ui/script/train.js handles Stop, without Gradio.
            stop=gr.Button(label("train.stop"), elem_id="stop", visible=False),
            resume=gr.Button(label("train.continue"), elem_id="continue", visible=False),
            retry=gr.Button("", elem_id="retry", visible=False),
            another=gr.Button(label("train.another"), elem_id="another", visible=False),
            token=gr.State(training.new_token()),
        )


def progress_panel(page: PageContext) -> ProgressPanel:
    """Builds the loss curve, notes and samples of a training."""
    notes = gr.HTML(elem_id="notes")
    samples = gr.HTML(elem_id="samples")
    with gr.Accordion(page.label("train.curve"), open=False, elem_id="curve-fold"):
        curve = gr.HTML(elem_id="curve")
    return ProgressPanel(notes, samples, curve, gr.State(()))


def queue_panel(page: PageContext) -> QueuePanel:
    """Builds the list of waiting and running trainings."""
    with gr.Accordion(page.label("train.queue"), open=False, elem_id="line-fold"):
        jobs = gr.HTML(elem_id="line")
        pause = gr.Button(page.label("train.queue_pause"), elem_id="pause", size="sm", visible=False)
    return QueuePanel(jobs, pause, gr.State(""))


def comparison_panel(page: PageContext) -> ComparisonPanel:
    """Builds the comparison of two trainings."""
    with gr.Accordion(page.label("train.compare"), open=False, elem_id="compare-fold"):
        with gr.Row():
            left, right = (
                gr.Dropdown(
                    [],
                    label=page.label(f"train.compare_{side}"),
                    elem_id=f"compare-{side}",
                    allow_custom_value=True,
                )
                for side in ("left", "right")
            )
        comparison = gr.HTML(elem_id="comparison")
    return ComparisonPanel(left, right, comparison)
