"""The page's tabs, one file each: components first, then events. Their callbacks take a Desk and hold no logic of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.studio import Studio, handler

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
NEWS: dict[str, Any] = {"trigger_mode": "always_last", **QUIET}  # what comes while the last is still drawn is not lost


@dataclass(frozen=True)
class Shared:
    """What all tabs know."""

    studio: Studio
    label: gr.I18n  # `label("artwork.drop")`: translated in the browser
    project: gr.Dropdown  # the chosen project's name; its `change` also fires when the page has loaded
    touched: gr.State  # a number that a tab raises when it has changed the project's pictures or captions
    news: dict[str, gr.Button]  # by section of `ui/pulse.py`: pressed by the page's script when there is something new

    def on(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """`callback(desk, *values)` for Gradio's events."""
        return handler(self.studio, callback)
