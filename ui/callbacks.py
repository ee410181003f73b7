"""Adapts callbacks of the tabs to Gradio: finds the workspace, checks the values and reports errors on the page."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

import gradio as gr

from trainer.errors import TrainerError
from ui.workspace import Studio

_PLAIN = {str, int, float, bool, NoneType}
_TEXT_COMPONENTS = (gr.Dropdown, gr.Radio, gr.Textbox)


def handler(studio: Studio, callback: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `callback(workspace, *values)` as a function for Gradio's events.

    A TrainerError becomes a message on the page; any other exception is logged and becomes a general message.

    A browser can send any JSON in place of a component's value. Values that don't have the plain type of the callback's
    hints, or that a text component can't hold, are rejected before the callback runs.
    """
    types = _plain_types(callback)

    def handle(request: gr.Request, *values: Any) -> Any:
        workspace = studio.workspace_of(request)
        try:
            if not all(map(_has_type, values, types)):
                raise TrainerError(workspace.words("refused.bad_request"))
            return callback(workspace, *values)
        except TrainerError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None
        except Exception:  # the edge of the process: whatever a callback raises is logged and reported
            logging.exception("the page's %s failed", callback.__name__)
            raise gr.Error(workspace.words("page.failed"), duration=None, print_exception=False) from None

    # Gradio passes the request to a parameter with this annotation. It reads the annotation without resolving strings.
    handle.__annotations__["request"] = gr.Request
    handle.__name__ = callback.__name__.strip("_<>")
    return handle


def _has_type(value: Any, types: tuple[type, ...] | None) -> bool:
    if types is None and isinstance(value, dict):  # the values of several components: {component: value}
        return all(
            part is None or isinstance(part, str)
            for component, part in value.items()
            if isinstance(component, _TEXT_COMPONENTS)
        )
    return types is None or isinstance(value, types)


def _plain_types(callback: Callable[..., Any]) -> list[tuple[type, ...] | None]:
    """Returns the types in the hint of each parameter after the workspace; None if the hint has more than plain types."""
    hints = get_type_hints(callback)
    parameters = list(inspect.signature(callback).parameters)[1:]
    hinted = [hints.get(name, Any) for name in parameters]
    types = [get_args(hint) if isinstance(hint, UnionType) else (hint,) for hint in hinted]
    return [hint if set(hint) <= _PLAIN else None for hint in types]
