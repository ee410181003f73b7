"""The page's tabs, one file each: components first, then events. Their callbacks take a Workspace and hold no logic of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ui.callbacks import handler
from ui.workspace import Studio

# An answer comes with the request that asks: on a busy machine Gradio's queue, which answers by a stream that it opens and
# closes, now and then leaves a press without one. What takes long is done by child processes, so nothing waits in a queue.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False}
QUIET: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
OTHERS = 3  # LoRAs beside the chosen one: four in all
TOUCH = "() => String(Math.random())"  # what `touch` returns, by the browser alone
# Of a drawing's bell, by `ui/script/page.js`: it rings now, or is owed until its tab is turned to.
_RING = "(now) => impasto.ring('{tab}', '{bell}', now)"
_SETTLE = "(now) => impasto.settle('{bell}', now)"


def touch() -> str:
    """Another word at each call. It is written where it changes, as states change nothing in events that no queue answers."""
    return str(time.time_ns())


@dataclass(frozen=True)
class Shared:
    """What all tabs know, and which tab is built."""

    studio: Studio
    label: gr.I18n  # `label("artwork.drop")`: translated in the browser
    project: gr.Dropdown  # the chosen project's name; its `change` also fires when the page has loaded
    touched: (
        gr.Textbox
    )  # out of sight; a tab writes `touch()` when it has changed the project's pictures or captions
    news: dict[
        str, gr.Button
    ]  # by section of `ui/updates.py`: pressed by the page's script when there is something new
    bells: gr.Column  # out of sight, in every tab
    tab: str = ""
    turned: gr.Button | None = (
        None  # pressed by the page's script when the tab comes into sight and drawings are owed
    )
    turn: threading.Lock = field(
        default_factory=threading.Lock
    )  # drawings wait for each other: the first is seen soonest

    def on(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """`callback(workspace, *values)` for Gradio's events."""
        return handler(self.studio, callback)

    def draw(
        self,
        events: list[Callable[..., Any]],
        callback: Callable[..., Any],
        inputs: Any,
        outputs: Any,
        *,
        keeps: bool = False,
    ) -> None:
        """`outputs` by `callback(workspace, *inputs)` at each of `events`, and once more when others came meanwhile.

        Out of sight nothing is drawn: it waits until the tab is turned to, unless the callback `keeps` what was written.

        Each drawing hears on a bell of its own. What Gradio puts off while a function runs, it makes good by raising the
        whole event anew: two functions on one event would raise it for each other without end.
        """

        def in_turn(request: gr.Request, *values: Any) -> Any:
            with self.turn:
                return drawing(request, *values)

        drawing = self.on(callback)
        in_turn.__name__ = drawing.__name__
        with self.bells:
            bell = gr.Textbox(elem_classes="unseen", show_label=False)
        name = f"{self.tab}-{bell._id}"
        ring = TOUCH if keeps else _RING.format(tab=self.tab, bell=name)
        gr.on(events, None, None if keeps else bell, bell, js=ring, trigger_mode="multiple", **QUIET)
        if self.turned is not None and not keeps:
            self.turned.click(
                None, bell, bell, js=_SETTLE.format(bell=name), trigger_mode="multiple", **QUIET
            )
        bell.change(in_turn, inputs, outputs, trigger_mode="always_last", **QUIET)


def rows_of_others(
    shared: Shared, tab: str, *, prefix: str = "", least: float = -1, visible: bool = True
) -> list[tuple[Any, Any]]:
    """A row of (which, weight) for each LoRA beside the chosen one, labelled `<tab>.other_2` and `<tab>.weight_2`."""
    rows = []
    for number in range(2, 2 + OTHERS):
        with gr.Row():
            which = gr.Dropdown(
                [("—", "")],
                value="",
                label=shared.label(f"{tab}.other_{number}"),
                allow_custom_value=True,
                visible=visible,
                elem_id=f"{prefix}other-{number}",
                scale=2,
            )
            weight = gr.Slider(
                least,
                2,
                1,
                step=0.05,
                label=shared.label(f"{tab}.weight_{number}"),
                visible=visible,
                elem_id=f"{prefix}weight-{number}",
                scale=3,
            )
        rows.append((which, weight))
    return rows
