"""The page's tabs, one file each.

A file has frozen dataclasses of components, whose methods are the callbacks, and a `build` that connects them
to events. Callbacks take a `Workspace` and return `{component: update}`, or `gr.skip()` where nothing
changes; a component that is missing in the dictionary stays as it is. Their logic is in `ui/views` and
`ui/store`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component

from ui.callbacks import handler
from ui.workspace import Studio

Updates = dict[Any, Any]  # component -> new value or `gr.update`; also `gr.skip()`

# Without the queue the response comes with the request. On a busy machine Gradio's queue, which responds by a
# stream that it opens and closes, now and then loses the response to a click. Child processes do what takes
# long, so no request waits.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False}
QUIET: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
OTHER_LORAS = 3  # LoRAs that can be mixed with the chosen one

NEW_VALUE = "() => String(Math.random())"  # `new_value()` in the browser, without a request
# Of ui/script/refresh.js: the next value of a trigger at an event, and when its tab is shown.
_TRIGGER = "(value) => impasto.trigger('{tab}', '{name}', value)"
_FLUSH = "(value) => impasto.flush('{name}', value)"


def new_value() -> str:
    """Returns another text at each call. Written into a hidden field, it fires the field's `change` event.

    The fields are textboxes because a `gr.State` fires no `change` where an event without the queue writes it
    (Gradio 6.31).
    """
    return str(time.time_ns())


def hidden_field(**attributes: Any) -> gr.Textbox:
    """Returns a field out of sight. With `visible=False` it would be missing in the document."""
    return gr.Textbox(elem_classes="unseen", show_label=False, **attributes)


def hidden_button(name: str, elem_id: str) -> gr.Button:
    """Returns a button out of sight, which the page's script presses."""
    return gr.Button(name, elem_id=elem_id, elem_classes="unseen")


@dataclass(frozen=True)
class PageContext:
    """Context that all tabs share, and the tab that is being built.

    Attributes:
        label: `label("artwork.drop")` is translated in the browser.
        project: name of the chosen project; its `change` also fires when the page has loaded.
        data_changed: a hidden field. A tab writes `new_value()` into it when it has changed the project's
            pictures or captions.
        refresh_buttons: section of `ui/updates.py` -> hidden button that the script presses when that section
            is stale.
        triggers: a hidden column outside the tabs. Gradio renders the components of a tab when it is first
            shown, and a trigger must exist before that.
        tab: name of the tab.
        shown_button: hidden button that the script presses when the tab is shown and has pending refreshes.
        lock: refreshes run one after another, so that the first one is visible soonest.
        numbers: make the names of triggers unique.
    """

    studio: Studio
    label: gr.I18n
    project: gr.Dropdown
    data_changed: gr.Textbox
    refresh_buttons: dict[str, gr.Button]
    triggers: gr.Column
    tab: str = ""
    shown_button: gr.Button | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def on(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `callback(workspace, *values)` as a function for Gradio's events."""
        return handler(self.studio, callback)

    def stale(self, section: str) -> Callable[..., Any]:
        """Returns the event that fires when a section of `ui/updates.py` has changed."""
        return self.refresh_buttons[section].click

    def refresh(
        self,
        events: Sequence[Callable[..., Any]],
        callback: Callable[..., Any],
        inputs: Any,
        outputs: Any,
        *,
        even_if_hidden: bool = False,
    ) -> None:
        """Updates `outputs` by `callback(workspace, *inputs)` at each of `events`.

        Events that come while the callback runs lead to one more run. While the tab is hidden, the
        refresh is pending until the tab is shown. docs/engineers/page.md describes the steps.

        Args:
            even_if_hidden: runs the callback at once in any case, because it saves what was typed.
        """
        # Each refresh has a trigger component of its own. Gradio fires a postponed event ("always_last")
        # again for all listeners of the component: two such listeners on one component would postpone and
        # fire each other for ever.
        callback = self.on(callback)

        def one_at_a_time(request: gr.Request, *values: Any) -> Any:
            with self.lock:
                return callback(request, *values)

        one_at_a_time.__name__ = callback.__name__
        name = f"{self.tab}-{next(self.numbers)}"
        with self.triggers:
            trigger = hidden_field()
        quiet = {"trigger_mode": "multiple", **QUIET}
        if even_if_hidden:
            gr.on(events, None, None, trigger, js=NEW_VALUE, **quiet)
        else:
            gr.on(events, None, trigger, trigger, js=_TRIGGER.format(tab=self.tab, name=name), **quiet)
            if self.shown_button is not None:
                self.shown_button.click(None, trigger, trigger, js=_FLUSH.format(name=name), **quiet)
        trigger.change(one_at_a_time, inputs, outputs, trigger_mode="always_last", **QUIET)


def choice_update(choices: list[tuple[str, str]], current: str | None) -> dict[str, Any]:
    """Returns the update of a dropdown whose choices have changed.

    A choice that still exists is not sent back: the user may have chosen another one meanwhile.
    """
    keys = [key for _, key in choices]
    if current in keys:
        return gr.update(choices=choices)
    return gr.update(choices=choices, value=next(iter(keys), None))


class OtherLora(NamedTuple):
    """The row of a LoRA that is mixed or merged with the chosen one."""

    lora: gr.Dropdown
    weight: gr.Slider


def other_lora_rows(
    page: PageContext, tab: str, *, prefix: str = "", min_weight: float = -1
) -> list[OtherLora]:
    """Returns a row for each other LoRA, labelled by `<tab>.other_2`, `<tab>.weight_2` and so on."""
    rows = []
    for number in range(2, 2 + OTHER_LORAS):
        with gr.Row():
            lora = gr.Dropdown(
                [("—", "")],
                value="",
                label=page.label(f"{tab}.other_{number}"),
                allow_custom_value=True,
                elem_id=f"{prefix}other-{number}",
                scale=2,
            )
            weight = gr.Slider(
                min_weight,
                2,
                1,
                step=0.05,
                label=page.label(f"{tab}.weight_{number}"),
                elem_id=f"{prefix}weight-{number}",
                scale=3,
            )
        rows.append(OtherLora(lora, weight))
    return rows


def other_loras(rows: Sequence[OtherLora], values: dict[Component, Any]) -> list[tuple[Any, Any]]:
    """Returns (key, weight) of the other LoRAs that are chosen."""
    return [(values[row.lora], values[row.weight]) for row in rows if values[row.lora]]
