"""Try it: pictures at any strength, own prompts, mixes, and the checkpoint that is the one."""

from __future__ import annotations

from typing import Any

import gradio as gr

from trainer.errors import TrainerError
from trainer.sampling_config import SAMPLERS
from ui.store.drawings import MOST_LETTERS, MOST_PROMPTS, SHAPES, Drawings
from ui.tabs import PRIVATE, QUIET, Shared, rows_of_others
from ui.views.strips import (
    compare_html,
    download_html,
    drawing_html,
    drawn_pictures,
    grid_html,
    run_pictures,
    strip_html,
)
from ui.views.try_it import Wish, choices, entry_of, form_values, mixed_files, shown_strip
from ui.workspace import Workspace


def build(shared: Shared) -> None:
    label = shared.label
    run = gr.Dropdown([], label=label("try_it.run"), allow_custom_value=True, elem_id="run")
    strip = gr.HTML(elem_id="strip")
    with gr.Accordion(label("try_it.compare"), open=False, elem_id="compare-box"):
        compare = gr.HTML(elem_id="compare")
    download = gr.HTML(elem_id="download")
    with gr.Accordion(label("try_it.own"), elem_id="own-box"):
        form = _form(shared)
        form["weight"], others = _mix(shared)
        when = gr.Radio(
            [(label("try_it.waits"), "waits"), (label("try_it.between"), "between")],
            value="waits",
            label=label("try_it.when"),
            visible=False,
            elem_id="when",
        )
        with gr.Row():
            draw = gr.Button(label("try_it.draw"), variant="primary", elem_id="draw")
            cancel = gr.Button(label("try_it.cancel"), interactive=False, elem_id="cancel")
        drawing = gr.HTML(elem_id="drawing")
        own = gr.HTML(elem_id="own")
    with gr.Accordion(label("try_it.grid"), open=False, elem_id="grid-box"):
        gr.Markdown(label("try_it.grid_info"))
        with gr.Row():
            draw_grid = gr.Button(label("try_it.draw_grid"), elem_id="draw-grid")
            cancel_grid = gr.Button(label("try_it.cancel"), interactive=False, elem_id="cancel-grid")
        grid_drawing = gr.HTML(elem_id="grid-drawing")
        grid = gr.HTML(elem_id="grid")
    seen, wish, grid_wish = gr.State(("", "", "")), gr.State(None), gr.State(None)
    everything = {run, when, *form.values(), *(part for pair in others for part in pair)}

    def list_all(workspace: Workspace, chosen: str | None, current: str | None):
        found = choices(workspace, chosen)
        keys = [key for _, key in found]
        more = [("—", ""), *found]
        # A choice that holds is not sent back: another one may have been made meanwhile.
        first = (
            gr.update(choices=found)
            if current in keys
            else gr.update(choices=found, value=next(iter(keys), None))
        )
        return [first, *(gr.update(choices=more) for _ in others)]

    def open_lora(workspace: Workspace, key: str | None):
        """What was drawn of a LoRA before is found again, and goes on where it does."""
        drawings, words = Drawings(workspace.runs), workspace.words
        if not key:
            return [None, None, "", ""]
        found = [drawings.newest(key, kind) for kind in ("draw", "grid")]
        drawn = [drawings.follow(name) if name else None for name in found]
        wishes = [Wish(one.id) if one and one.is_open else None for one in drawn]
        strips = [one if one and one.state == "drawn" else None for one in drawn]
        picture_grid = (
            grid_html(words, drawn_pictures(strips[1]), key, desk_choice(workspace, key)) if strips[1] else ""
        )
        return [*wishes, strip_html(words, drawn_pictures(strips[0])) if strips[0] else "", picture_grid]

    def follow(workspace: Workspace, key: str | None, last: tuple[str, str, str]):
        if not key:
            return [gr.skip()] * 5
        pictures, trains = shown_strip(workspace, key)
        entry = entry_of(workspace, key)
        now = (
            key,
            repr(pictures),
            f"{trains} {entry.file.stat().st_mtime_ns if entry else ''} {workspace.words.language}",
        )
        before = tuple(last)
        if before == now:
            return [gr.skip()] * 5
        shown = run_pictures(key, pictures)
        same = before[:2] == now[:2]
        prefer = key if entry else ""
        return [
            gr.skip() if same else strip_html(workspace.words, shown, prefer=prefer),
            gr.skip() if same else compare_html(workspace.words, shown),
            download_html(workspace.words, entry),
            gr.update(visible=trains),
            now,
        ]

    def ask(workspace: Workspace, values: dict[Any, Any]):
        key = values[run]
        if not key:
            raise TrainerError(workspace.words("try_it.choose_first"))
        files = mixed_files(
            key, values[form["weight"]], [(values[which], values[weight]) for which, weight in others]
        )
        between = values[when] == "between" and shown_strip(workspace, key)[1]
        base = values[form["base"]] or ""
        return Wish(
            Drawings(workspace.runs).ask(
                files,
                form_values({name: values[part] for name, part in form.items()}),
                between=between,
                base=base,
            )
        )

    def ask_grid(workspace: Workspace, values: dict[Any, Any]):
        if not values[run]:
            raise TrainerError(workspace.words("try_it.choose_first"))
        told = form_values({name: values[part] for name, part in form.items()})
        if not told["prompts"]:
            told["prompts"] = [picture["prompt"] for picture in shown_strip(workspace, values[run])[0]][:1]
        return Wish(Drawings(workspace.runs).grid(values[run], told))

    def answered(workspace: Workspace, wanted: Wish | None, key: str | None):
        """For either kind of drawing: (wish, progress, pictures, cancel button)."""
        if not wanted:
            return [gr.skip()] * 4
        found = Drawings(workspace.runs).follow(wanted.id)
        now = Wish(wanted.id, found.state, found.done)
        if now == wanted:
            return [gr.skip()] * 4
        told = drawing_html(workspace.words, found)
        if found.is_open:
            return [now, told, gr.skip(), gr.update(interactive=True)]
        pictures: Any = gr.skip()
        if found.state == "drawn" and found.kind == "draw":
            pictures = strip_html(workspace.words, drawn_pictures(found))
        elif found.state == "drawn":
            pictures = grid_html(
                workspace.words,
                drawn_pictures(found),
                found.files[0][0],
                desk_choice(workspace, found.files[0][0]),
            )
        return [None, told, pictures, gr.update(interactive=False)]

    def give_up(workspace: Workspace, wanted: Wish | None) -> None:
        if wanted:
            Drawings(workspace.runs).cancel(wanted.id)

    listed = [run, *(which for which, _ in others)]
    shared.draw([shared.project.change, shared.news["made"].click], list_all, [shared.project, run], listed)
    run.change(shared.on(open_lora), run, [wish, grid_wish, own, grid], **QUIET)
    draw.click(shared.on(ask), everything, wish, **PRIVATE)
    draw_grid.click(shared.on(ask_grid), everything, grid_wish, **PRIVATE)
    cancel.click(shared.on(give_up), wish, None, **PRIVATE)
    cancel_grid.click(shared.on(give_up), grid_wish, None, **PRIVATE)
    news = shared.news["try_it"].click
    shared.draw([news, run.change], follow, [run, seen], [strip, compare, download, when, seen])
    shared.draw([news], answered, [wish, run], [wish, drawing, own, cancel])
    shared.draw([news], answered, [grid_wish, run], [grid_wish, grid_drawing, grid, cancel_grid])


def desk_choice(workspace: Workspace, key: str) -> dict[str, Any]:
    return Drawings(workspace.runs).library.choice(key) if entry_of(workspace, key) else {}


def _form(shared: Shared) -> dict[str, Any]:
    """Setting -> component; `ui.views.try_it.form_values` reads them."""
    label, runs = shared.label, shared.studio.initial.runs
    form: dict[str, Any] = {
        "prompts": gr.Textbox(
            label=label("try_it.prompt"),
            lines=2,
            max_length=MOST_PROMPTS * (MOST_LETTERS + 1),
            elem_id="prompt",
        ),
        "negative": gr.Textbox(label=label("try_it.negative"), max_length=MOST_LETTERS, elem_id="negative"),
    }
    with gr.Row():
        shapes = [(label(f"try_it.{shape}"), shape) for shape in SHAPES]
        samplers = [(f"{solver.label} {solver.schedule}".strip(), name) for name, solver in SAMPLERS.items()]
        form["shape"] = gr.Dropdown(
            shapes, value="square", label=label("try_it.shape"), min_width=140, elem_id="shape"
        )
        form["sampler"] = gr.Dropdown(
            samplers, value="euler", label=label("try_it.sampler"), min_width=180, elem_id="sampler"
        )
        form["steps"] = gr.Number(
            16,
            label=label("try_it.steps"),
            precision=0,
            minimum=1,
            maximum=200,
            min_width=90,
            elem_id="steps",
        )
        form["guidance"] = gr.Number(
            5, label=label("try_it.guidance"), minimum=0, maximum=50, min_width=90, elem_id="guidance"
        )
        form["seed"] = gr.Number(
            0,
            label=label("try_it.seed"),
            precision=0,
            minimum=0,
            maximum=2**31 - 1,
            min_width=120,
            elem_id="seed",
        )
        bases = [(label("try_it.as_trained"), ""), *((name, name) for name in runs.bases())]
        form["base"] = gr.Dropdown(
            bases, value="", label=label("try_it.base"), min_width=180, elem_id="draw-base"
        )
    form["fast"] = gr.Checkbox(
        False, label=label("try_it.fast"), info=label("try_it.fast_info"), elem_id="fast"
    )
    return form


def _mix(shared: Shared) -> tuple[Any, list[tuple[Any, Any]]]:
    """The chosen LoRA's weight, and (which, weight) of those that are mixed in."""
    label = shared.label

    with gr.Accordion(label("try_it.mix"), open=False, elem_id="mix"):
        gr.Markdown(label("try_it.mix_info"))
        first = gr.Slider(-1, 2, 1, step=0.05, label=label("try_it.weight"), elem_id="weight")
        others = rows_of_others(shared, "try_it")
    return first, others
