"""Settings to components and back: the page's Advanced section is made from the fields of `TrainConfig`."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr

from trainer.config import TrainConfig, kind_of

# Asked for elsewhere on the page.
_ABOVE = {"name", "trigger", "preset", "pace", "base"}
# Names of Python classes and what they are called with: for the one who has the machine, not for everyone with the page.
TERMINAL_ONLY = {"optimizer_class", "optimizer_args"}
FOLDERS, FILES = ("prior_folder", "validation_folder"), ("start_from",)  # chosen by name: a browser knows no paths

TITLES = {
    "run": "Seed", "training": "Training", "adapter": "Network", "optimizer": "Optimizer and schedule", "objective": "Noise and loss",
    "captions": "Captions", "dataset": "Pictures and buckets", "output": "Samples and files", "validation": "Validation",
    "file": "What the file says of itself",
}  # fmt: skip


def fields() -> list[dataclasses.Field]:
    """The settings of the form, in the order of their groups."""
    shown = [declared for declared in dataclasses.fields(TrainConfig) if declared.name not in _ABOVE | TERMINAL_ONLY]
    return [declared for group in TITLES for declared in shown if declared.metadata["group"] == group]


def declared_sentences() -> dict[str, str]:
    """`settings.<key>` -> English sentence: titles, labels with units, and help, as the config declares them."""
    said = {f"settings.group_{group}": title for group, title in TITLES.items()}
    for declared in fields():
        facts = declared.metadata
        said[f"settings.{declared.name}"] = facts["label"] + (f" ({facts['unit']})" if facts["unit"] else "")
        said[f"settings.{declared.name}_help"] = facts["help"]
    return said


def build_form(label: gr.I18n) -> dict[str, Any]:
    """Setting -> component, in folded groups. Left empty, a setting is what the preset says."""
    components: dict[str, Any] = {}
    for group in TITLES:
        with gr.Accordion(label(f"settings.group_{group}"), open=False), gr.Row():
            for declared in fields():
                if declared.metadata["group"] == group:
                    components[declared.name] = _component(declared, label)
    return components


def _component(declared: dataclasses.Field, label: gr.I18n) -> Any:
    facts, kind, name = declared.metadata, kind_of(declared), declared.name
    shared: dict[str, Any] = {
        "label": label(f"settings.{name}"), "info": label(f"settings.{name}_help"), "elem_id": f"set-{name}", "min_width": 240,
    }  # fmt: skip
    unset = (label("train.as_preset"), "")
    if name in FOLDERS + FILES:  # their choices are everyone's own, and come when the page has loaded
        return gr.Dropdown([(label("train.none"), "")], value="", allow_custom_value=True, **shared)
    if facts["choices"]:
        return gr.Dropdown([unset, *facts["choices"]], value="", **shared)
    if kind is bool:
        return gr.Dropdown([unset, (label("train.yes"), "yes"), (label("train.no"), "no")], value="", **shared)
    if kind in (int, float):
        return gr.Number(None, precision=0 if kind is int else None, minimum=facts["low"], maximum=facts["high"], **shared)
    if kind is tuple:
        return gr.Textbox("", lines=2, placeholder=label("train.one_a_line"), max_length=4000, **shared)
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
