"""The Try it tab: images at any strength, own prompts, mixes of LoRAs, and the choice of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from trainer.errors import TrainerError
from trainer.sampling_config import SAMPLERS
from ui.store.drawings import MAX_PROMPT_CHARACTERS, MAX_PROMPTS, SHAPES, Drawing, Drawings
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
from ui.views.strips import (
    compare_html,
    download_html,
    drawing_html,
    drawn_pictures,
    grid_html,
    run_pictures,
    strip_html,
)
from ui.views.try_it import ShownDrawing, choices, entry_of, form_values, mixed_files, shown_strip
from ui.workspace import Workspace


@dataclass(frozen=True)
class StripPanel:
    """The images at the end of the training; `shown` is the state that the page shows."""

    strip: gr.HTML
    compare: gr.HTML
    download: gr.HTML
    shown: gr.State


@dataclass(frozen=True)
class DrawingPanel:
    """Images that are generated on request, and their progress.

    Attributes:
        kind: "draw" or "grid", as `Drawings` names them.
        drawing: the `ShownDrawing` that the page follows, None if nothing is being generated.
    """

    kind: str
    start: gr.Button
    cancel: gr.Button
    progress: gr.HTML
    images: gr.HTML
    drawing: gr.State

    @property
    def outputs(self) -> list[Component]:
        """Components that `update` updates."""
        return [self.drawing, self.progress, self.images, self.cancel]

    def images_html(self, workspace: Workspace, drawing: Drawing) -> str:
        """Returns the images of a finished drawing."""
        if drawing.kind == "draw":
            return strip_html(workspace.words, drawn_pictures(drawing))
        key = drawing.files[0][0]
        return grid_html(workspace.words, drawn_pictures(drawing), key, _choice(workspace, key))

    def update(self, workspace: Workspace, shown: ShownDrawing | None) -> Updates:
        """Shows the progress of the drawing, and its images when they are there."""
        if not shown:
            return gr.skip()
        drawing = Drawings(workspace.runs).status(shown.id)
        current = ShownDrawing(shown.id, drawing.state, drawing.done)
        if current == shown:
            return gr.skip()
        updates: Updates = {
            self.drawing: current if drawing.is_open else None,
            self.progress: drawing_html(workspace.words, drawing),
            self.cancel: gr.update(interactive=drawing.is_open),
        }
        if drawing.state == "drawn":
            updates[self.images] = self.images_html(workspace, drawing)
        return updates

    def cancel_drawing(self, workspace: Workspace, shown: ShownDrawing | None) -> None:
        """Cancels the drawing."""
        if shown:
            Drawings(workspace.runs).cancel(shown.id)


@dataclass(frozen=True)
class TryItTab:
    """All components of the tab; its methods are the callbacks.

    Attributes:
        fields: setting of `ui.views.try_it.form_values` -> its component; also "weight" and "base".
        when: whether to generate after or during a running training.
    """

    lora: gr.Dropdown
    strip: StripPanel
    fields: dict[str, Component]
    others: list[OtherLora]
    when: gr.Radio
    own: DrawingPanel
    grid: DrawingPanel

    @property
    def form_inputs(self) -> set[Block]:
        """Components that are read when images are generated."""
        others = {component for row in self.others for component in row}
        return {self.lora, self.when, *self.fields.values(), *others}

    @property
    def strip_outputs(self) -> list[Component]:
        """Components that `update_strip` updates."""
        strip = self.strip
        return [strip.strip, strip.compare, strip.download, strip.shown, self.when]

    def list_loras(self, workspace: Workspace, project: str | None, current: str | None) -> Updates:
        """Updates the choices of all lists of LoRAs."""
        found = choices(workspace, project)
        others = gr.update(choices=[("—", ""), *found])
        return {self.lora: choice_update(found, current), **{row.lora: others for row in self.others}}

    def open_lora(self, workspace: Workspace, key: str | None) -> Updates:
        """Shows the newest drawings of a LoRA and follows those that are not finished."""
        drawings = Drawings(workspace.runs)
        updates: Updates = {}
        for panel in (self.own, self.grid):
            name = drawings.newest(key, panel.kind) if key else None
            drawing = drawings.status(name) if name else None
            is_drawn = drawing is not None and drawing.state == "drawn"
            updates[panel.drawing] = ShownDrawing(drawing.id) if drawing and drawing.is_open else None
            updates[panel.images] = panel.images_html(workspace, drawing) if drawing and is_drawn else ""
        return updates

    def update_strip(self, workspace: Workspace, key: str | None, shown: tuple[str, str, str]) -> Updates:
        """Shows what has changed of a LoRA: its images, or only its file and whether it is being trained."""
        if not key:
            return gr.skip()
        pictures, is_training = shown_strip(workspace, key)
        entry = entry_of(workspace, key)
        version = entry.file.stat().st_mtime_ns if entry else ""
        state = (key, repr(pictures), f"{is_training} {version} {workspace.words.language}")
        before = tuple(shown)
        if before == state:
            return gr.skip()
        updates: Updates = {
            self.strip.download: download_html(workspace.words, entry),
            self.strip.shown: state,
            self.when: gr.update(visible=is_training),
        }
        if before[:2] != state[:2]:
            images = run_pictures(key, pictures)
            updates[self.strip.strip] = strip_html(workspace.words, images, prefer=key if entry else "")
            updates[self.strip.compare] = compare_html(workspace.words, images)
        return updates

    def generate(self, workspace: Workspace, values: dict[Component, Any]) -> Updates:
        """Starts a drawing of the own prompts."""
        key = self._chosen(workspace, values)
        files = mixed_files(key, values[self.fields["weight"]], other_loras(self.others, values))
        during_training = values[self.when] == "between" and shown_strip(workspace, key)[1]
        base = values[self.fields["base"]] or ""
        drawing = Drawings(workspace.runs).submit(
            files, self._form(values), during_training=during_training, base=base
        )
        return {self.own.drawing: ShownDrawing(drawing)}

    def generate_grid(self, workspace: Workspace, values: dict[Component, Any]) -> Updates:
        """Starts a drawing of the first prompt, or of the training's first prompt, with each checkpoint."""
        key = self._chosen(workspace, values)
        settings = self._form(values)
        if not settings["prompts"]:
            settings["prompts"] = [picture["prompt"] for picture in shown_strip(workspace, key)[0]][:1]
        return {self.grid.drawing: ShownDrawing(Drawings(workspace.runs).grid(key, settings))}

    def _chosen(self, workspace: Workspace, values: dict[Component, Any]) -> str:
        if not values[self.lora]:
            raise TrainerError(workspace.words("try_it.choose_first"))
        return values[self.lora]

    def _form(self, values: dict[Component, Any]) -> dict[str, Any]:
        return form_values({name: values[component] for name, component in self.fields.items()})


def _choice(workspace: Workspace, key: str) -> dict[str, Any]:
    """Returns the checkpoint and the strength that were chosen as the file of a LoRA; {} if none were."""
    return Drawings(workspace.runs).library.choice(key) if entry_of(workspace, key) else {}


def build(page: PageContext) -> None:
    """Builds the tab and connects its components to their callbacks."""
    label = page.label
    lora = gr.Dropdown([], label=label("try_it.run"), allow_custom_value=True, elem_id="run")
    strip = _strip_panel(page)
    with gr.Accordion(label("try_it.own"), elem_id="own-box"):
        fields = _fields(page)
        fields["weight"], others = _mix(page)
        options = [(label("try_it.waits"), "waits"), (label("try_it.between"), "between")]
        when = gr.Radio(options, value="waits", label=label("try_it.when"), visible=False, elem_id="when")
        own = _own_panel(page)
    with gr.Accordion(label("try_it.grid"), open=False, elem_id="grid-box"):
        grid = _grid_panel(page)
    _connect(page, TryItTab(lora, strip, fields, others, when, own, grid))


def _strip_panel(page: PageContext) -> StripPanel:
    strip = gr.HTML(elem_id="strip")
    with gr.Accordion(page.label("try_it.compare"), open=False, elem_id="compare-box"):
        compare = gr.HTML(elem_id="compare")
    return StripPanel(strip, compare, gr.HTML(elem_id="download"), gr.State(("", "", "")))


def _own_panel(page: PageContext) -> DrawingPanel:
    with gr.Row():
        start = gr.Button(page.label("try_it.draw"), variant="primary", elem_id="draw")
        cancel = gr.Button(page.label("try_it.cancel"), interactive=False, elem_id="cancel")
    progress, images = gr.HTML(elem_id="drawing"), gr.HTML(elem_id="own")
    return DrawingPanel("draw", start, cancel, progress, images, gr.State(None))


def _grid_panel(page: PageContext) -> DrawingPanel:
    gr.Markdown(page.label("try_it.grid_info"))
    with gr.Row():
        start = gr.Button(page.label("try_it.draw_grid"), elem_id="draw-grid")
        cancel = gr.Button(page.label("try_it.cancel"), interactive=False, elem_id="cancel-grid")
    progress, images = gr.HTML(elem_id="grid-drawing"), gr.HTML(elem_id="grid")
    return DrawingPanel("grid", start, cancel, progress, images, gr.State(None))


def _fields(page: PageContext) -> dict[str, Component]:
    label = page.label
    max_length = MAX_PROMPTS * (MAX_PROMPT_CHARACTERS + 1)
    fields: dict[str, Component] = {
        "prompts": gr.Textbox(label=label("try_it.prompt"), lines=2, max_length=max_length, elem_id="prompt"),
        "negative": gr.Textbox(
            label=label("try_it.negative"), max_length=MAX_PROMPT_CHARACTERS, elem_id="negative"
        ),
    }
    with gr.Row():
        shapes = [(label(f"try_it.{shape}"), shape) for shape in SHAPES]
        fields["shape"] = gr.Dropdown(
            shapes, value="square", label=label("try_it.shape"), min_width=140, elem_id="shape"
        )
        samplers = [(f"{spec.label} {spec.schedule}".strip(), name) for name, spec in SAMPLERS.items()]
        fields["sampler"] = gr.Dropdown(
            samplers, value="euler", label=label("try_it.sampler"), min_width=180, elem_id="sampler"
        )
        fields["steps"] = _number(page, "steps", 16, minimum=1, maximum=200, precision=0)
        fields["guidance"] = _number(page, "guidance", 5, minimum=0, maximum=50)
        fields["seed"] = _number(page, "seed", 0, minimum=0, maximum=2**31 - 1, precision=0, min_width=120)
    with gr.Row():
        bases = [
            (label("try_it.as_trained"), ""),
            *((name, name) for name in page.studio.initial.runs.bases()),
        ]
        fields["base"] = gr.Dropdown(
            bases, value="", label=label("try_it.base"), min_width=280, elem_id="draw-base"
        )
        fields["fast"] = gr.Checkbox(
            False, label=label("try_it.fast"), info=label("try_it.fast_info"), min_width=280, elem_id="fast"
        )
    return fields


def _number(
    page: PageContext, name: str, value: float, *, min_width: int = 90, **attributes: Any
) -> gr.Number:
    label = page.label(f"try_it.{name}")
    return gr.Number(value, label=label, min_width=min_width, elem_id=name, **attributes)


def _mix(page: PageContext) -> tuple[gr.Slider, list[OtherLora]]:
    """Returns the weight of the chosen LoRA and the rows of those that are mixed in."""
    label = page.label
    with gr.Accordion(label("try_it.mix"), open=False, elem_id="mix"):
        gr.Markdown(label("try_it.mix_info"))
        weight = gr.Slider(-1, 2, 1, step=0.05, label=label("try_it.weight"), elem_id="weight")
        others = other_lora_rows(page, "try_it")
    return weight, others


def _connect(page: PageContext, tab: TryItTab) -> None:
    lora, strip, own, grid = tab.lora, tab.strip, tab.own, tab.grid
    lists = [lora, *(row.lora for row in tab.others)]
    page.refresh([page.project.change, page.stale("made")], tab.list_loras, [page.project, lora], lists)
    opened = [own.drawing, own.images, grid.drawing, grid.images]
    lora.change(page.on(tab.open_lora), lora, opened, **QUIET)
    own.start.click(page.on(tab.generate), tab.form_inputs, own.drawing, **PRIVATE)
    grid.start.click(page.on(tab.generate_grid), tab.form_inputs, grid.drawing, **PRIVATE)
    changes = [page.stale("try_it"), lora.change]
    page.refresh(changes, tab.update_strip, [lora, strip.shown], tab.strip_outputs)
    for panel in (own, grid):
        panel.cancel.click(page.on(panel.cancel_drawing), panel.drawing, None, **PRIVATE)
        page.refresh([page.stale("try_it")], panel.update, panel.drawing, panel.outputs)
