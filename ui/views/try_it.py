"""Logic of the Try it tab: choices, shown images, and the form's values. No gradio, no HTML."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from trainer.errors import TrainerError
from trainer.prompt_syntax import read_prompt
from ui.store.library import Library, LoraEntry
from ui.workspace import Workspace

_MAX_NUMBER = 2**40  # rejects numbers that no setting can hold


class ShownDrawing(NamedTuple):
    """A drawing that a page follows, and the progress that the page shows."""

    id: str
    state: str = ""
    done: int = -1


def choices(workspace: Workspace, project: str | None) -> list[tuple[str, str]]:
    """Returns (label, key) of every LoRA: first the project's runs, finished or not, then all others."""
    own = workspace.runs.names(project) if project else []
    others = [key for key in Library(workspace.runs).all() if key not in own]
    return [(key.removeprefix("library:"), key) for key in (*own, *others)]


def entry_of(workspace: Workspace, key: str) -> LoraEntry | None:
    """Returns a LoRA's entry in the library; None for a training that has no file yet."""
    with contextlib.suppress(TrainerError):
        return Library(workspace.runs).entry(key)
    return None


def shown_strip(workspace: Workspace, key: str) -> tuple[Sequence[dict[str, Any]], bool]:
    """Returns (images at the end of a training, whether it is running)."""
    if key not in workspace.runs.names():
        return (), False
    view, alive = workspace.runs.view(key)
    return view.strip, alive


def form_values(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the form's fields as settings for `Drawings`, which checks their ranges.

    Raises:
        TrainerError: a number is missing or is not finite.
    """
    text = str(fields["prompts"] or "")
    # The `parameters` text of an image has several lines but one prompt.
    lines = [text] if read_prompt(text).has_settings else text.splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    values = {
        "prompts": prompts,
        "negative": str(fields["negative"] or "").strip(),
        "shape": fields["shape"],
        "sampler": fields["sampler"],
        "fast": fields.get("fast") is True,
    }
    for name, kind in (("steps", int), ("seed", int), ("guidance", float)):
        number = fields[name]
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not abs(number) <= _MAX_NUMBER:  # false for NaN
            raise TrainerError(f"{name} must be a number")
        values[name] = kind(number)
    return values


def mixed_files(key: str, weight: Any, others: Sequence[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    """Returns (key, weight) of the chosen LoRA and of those that are mixed in; a LoRA alone has weight 1."""
    mixed = [(key, weight) for key, weight in others if key]
    return [(key, weight if mixed else 1.0), *mixed]
