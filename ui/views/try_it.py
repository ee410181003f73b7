"""What Try it shows and asks, as plain values: no gradio, no HTML."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from trainer.errors import TrainerError
from ui.store.library import Library, LoraEntry
from ui.workspace import Workspace


class Wish(NamedTuple):
    """A drawing that a page waits for, and what the page shows of it."""

    id: str
    state: str = ""
    done: int = -1


def choices(workspace: Workspace, project: str | None) -> list[tuple[str, str]]:
    """(words, key) of every LoRA to try: the project's trainings first, also those that run, then all others."""
    own = workspace.runs.names(project) if project else []
    others = [key for key in Library(workspace.runs).all() if key not in own]
    return [(key.removeprefix("library:"), key) for key in (*own, *others)]


def entry_of(workspace: Workspace, key: str) -> LoraEntry | None:
    """The finished LoRA; None while a training has no file."""
    with contextlib.suppress(TrainerError):
        return Library(workspace.runs).entry(key)
    return None


def shown_strip(workspace: Workspace, key: str) -> tuple[Sequence[dict[str, Any]], bool]:
    """(pictures that a training ended with, whether it runs now)."""
    if key not in workspace.runs.names():
        return (), False
    view, alive = workspace.runs.view(key)
    return view.strip, alive


def form_values(said: dict[str, Any]) -> dict[str, Any]:
    """Values for `Drawings.ask` from the form's components; their ranges are checked there."""
    prompts = [line.strip() for line in str(said["prompts"] or "").splitlines() if line.strip()]
    values = {
        "prompts": prompts,
        "negative": str(said["negative"] or "").strip(),
        "shape": said["shape"],
        "sampler": said["sampler"],
    }
    values["fast"] = said.get("fast") is True
    for name, kind in (("steps", int), ("seed", int), ("guidance", float)):
        number = said[name]
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or number != number
            or abs(number) > 2**40
        ):
            raise TrainerError(f"{name} must be a number")
        values[name] = kind(number)
    return values


def mixed_files(key: str, weight: Any, others: Sequence[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    """The chosen LoRA and those mixed in, without weights where none is."""
    more = [(which, much) for which, much in others if which]
    return [(key, weight if more else 1.0), *more]
