"""Settings to components and back: the page's Advanced section is made from the fields of `TrainConfig`."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr

from trainer.config import TrainConfig, kind_of

# Asked for elsewhere on the page.
_ABOVE = {"name", "trigger", "preset", "base"}
# Names of Python classes and what they are called with: for the one who has the machine, not for everyone with the page.
_TERMINAL_ONLY = {"optimizer_class", "optimizer_args"}
FOLDERS, FILES = ("prior_folder", "validation_folder"), ("start_from",)  # chosen by name: a browser knows no paths

TITLES = {
    "run": "Seed", "training": "Training", "adapter": "Network", "optimizer": "Optimizer and schedule", "objective": "Noise and loss",
    "captions": "Captions", "dataset": "Pictures and buckets", "output": "Samples and files", "validation": "Validation",
    "file": "What the file says of itself",
}  # fmt: skip


def fields() -> list[dataclasses.Field]:
    """The settings of the form, in the order of their groups."""
    shown = [declared for declared in dataclasses.fields(TrainConfig) if declared.name not in _ABOVE | _TERMINAL_ONLY]
    return [declared for group in TITLES for declared in shown if declared.metadata["group"] == group]


def build_form(folders: list[str], files: list[str]) -> dict[str, Any]:
    """Setting -> component, in folded groups. Left empty, a setting is what the preset says."""
    components: dict[str, Any] = {}
    for group, title in TITLES.items():
        with gr.Accordion(title, open=False), gr.Row():
            for declared in fields():
                if declared.metadata["group"] == group:
                    components[declared.name] = _component(declared, folders, files)
    return components


def _component(declared: dataclasses.Field, folders: list[str], files: list[str]) -> Any:
    facts, kind = declared.metadata, kind_of(declared)
    label = facts["label"] + (f" ({facts['unit']})" if facts["unit"] else "")
    shared: dict[str, Any] = {"label": label, "info": facts["help"], "elem_id": f"set-{declared.name}", "min_width": 240}
    unset = ("as the preset says", "")
    if declared.name in FOLDERS:
        return gr.Dropdown([("none", ""), *folders], value="", **shared)
    if declared.name in FILES:
        return gr.Dropdown([("none", ""), *files], value="", **shared)
    if facts["choices"]:
        return gr.Dropdown([unset, *facts["choices"]], value="", **shared)
    if kind is bool:
        return gr.Dropdown([unset, ("yes", "yes"), ("no", "no")], value="", **shared)
    if kind in (int, float):
        return gr.Number(None, precision=0 if kind is int else None, minimum=facts["low"], maximum=facts["high"], **shared)
    if kind is tuple:
        return gr.Textbox("", lines=2, placeholder="one a line", max_length=4000, **shared)
    return gr.Textbox("", max_length=2000, **shared)


def settings_from(values: dict[str, Any]) -> dict[str, Any]:
    """Loose settings for `config_from`, of what was filled in."""
    declared = {field.name: field for field in fields()}
    said: dict[str, Any] = {}
    for name, value in values.items():
        kind = kind_of(declared[name])
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if kind is bool:
            said[name] = value == "yes"
        elif kind is tuple:
            said[name] = _listed(declared[name], value)
        elif kind is float:
            said[name] = float(value)
        elif kind is int:
            said[name] = int(value)
        else:
            said[name] = value.strip()
    return said


def _listed(declared: dataclasses.Field, text: str) -> tuple[Any, ...]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if declared.name == "resolutions":
        return tuple(int(part) if part.isdigit() else part for line in lines for part in line.replace(",", " ").split())
    return tuple(lines)
