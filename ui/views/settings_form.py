"""HTML of the advanced settings, made from the fields of `TrainConfig`, and its parser. No gradio.

It is plain HTML because Gradio sets the state of every output component at each event: a hundred and fifty
components more would make every event of the page slow.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config import TrainConfig, kind_of
from trainer.errors import ConfigError
from ui.text import Words, sentences
from ui.views.html import element, escape, text_element

_MAIN = {"name", "trigger", "preset", "pace", "base"}  # have their own components beside the Train button
# They name Python classes and their arguments, which run code: only the owner of the machine may set them.
TERMINAL_ONLY = {"optimizer_class", "optimizer_args"}
# Chosen from a list of names, because a browser must not name paths.
FOLDERS = ("prior_folder", "validation_folder")
FILES = ("start_from",)
_MAX_LENGTH = {tuple: 4000, str: 2000}  # characters

TITLES = {
    "run": "Seed",
    "training": "Training",
    "adapter": "Network",
    "optimizer": "Optimizer and schedule",
    "objective": "Noise and loss",
    "captions": "Captions",
    "dataset": "Pictures and buckets",
    "output": "Samples and files",
    "validation": "Validation",
    "file": "File details",
}


@functools.cache
def fields() -> tuple[dataclasses.Field[Any], ...]:
    """Returns the settings of the form in the order of their groups."""
    shown = [
        declared for declared in dataclasses.fields(TrainConfig) if declared.name not in _MAIN | TERMINAL_ONLY
    ]
    return tuple(declared for group in TITLES for declared in shown if declared.metadata["group"] == group)


@functools.cache
def declared_sentences() -> dict[str, str]:
    """Returns `settings.<key>` -> English title, label with unit, or help, as the config declares them."""
    texts = {f"settings.group_{group}": title for group, title in TITLES.items()}
    for declared in fields():
        metadata = declared.metadata
        unit = f" ({metadata['unit']})" if metadata["unit"] else ""
        texts[f"settings.{declared.name}"] = metadata["label"] + unit
        texts[f"settings.{declared.name}_help"] = metadata["help"]
    return texts


def form_html(
    words: Words, project: str, values: dict[str, Any], choices: Mapping[str, Sequence[str]]
) -> str:
    """Returns every field in its folded group. An empty field leaves its setting to the preset.

    Args:
        values: setting -> content of its field.
        choices: setting -> names to choose from, for FOLDERS and FILES.
    """
    groups = []
    for group in TITLES:
        shown = "".join(
            _field(words, declared, values.get(declared.name, ""), choices.get(declared.name))
            for declared in fields()
            if declared.metadata["group"] == group
        )
        summary = text_element("summary", _text(words, f"group_{group}"))
        groups.append(element("details", summary + element("div", shown, class_="fields"), class_="settings"))
    return element("div", "".join(groups), class_="advanced", data_of=project)


def _text(words: Words, key: str) -> str:
    key = f"settings.{key}"
    return sentences(words.language).get(key) or declared_sentences()[key]


def _field(words: Words, declared: dataclasses.Field[Any], value: Any, choices: Sequence[str] | None) -> str:
    name = declared.name
    label = text_element("label", _text(words, name), for_=f"set-{name}")
    hint = text_element("p", _text(words, f"{name}_help"), class_="hint", id=f"help-{name}")
    return element("div", label + _control(words, declared, value, choices) + hint, class_="field")


def _control(
    words: Words, declared: dataclasses.Field[Any], value: Any, choices: Sequence[str] | None
) -> str:
    name, metadata, kind = declared.name, declared.metadata, kind_of(declared)
    common = {"id": f"set-{name}", "name": name, "aria_describedby": f"help-{name}"}
    options = _options(words, declared, choices)
    if options:
        if str(value) not in options:  # a project or file that has been deleted; the checks report it
            options[str(value)] = str(value)
        content = "".join(
            text_element("option", label, value=key, selected=key == str(value))
            for key, label in options.items()
        )
        return element("select", content, **common)
    if kind in (int, float):
        return element(
            "input",
            type="number",
            inputmode="decimal",
            step="1" if kind is int else "any",
            min=_bound(metadata["low"]),
            max=_bound(metadata["high"]),
            value=_number(value),
            placeholder=words("train.as_preset"),
            **common,
        )
    if kind is tuple:
        # A browser drops the first line break in a textarea.
        return element(
            "textarea",
            f"\n{escape(str(value))}",
            rows=2,
            maxlength=_MAX_LENGTH[tuple],
            placeholder=words("train.one_a_line"),
            **common,
        )
    return element("input", type="text", maxlength=_MAX_LENGTH[str], value=str(value), **common)


def _options(words: Words, declared: dataclasses.Field[Any], choices: Sequence[str] | None) -> dict[str, str]:
    """Returns value -> label of a setting that is chosen from a list; {} for all others."""
    if choices is not None:
        return {"": words("train.none"), **{choice: choice for choice in choices}}
    if declared.metadata["choices"]:
        return {"": words("train.as_preset"), **{choice: choice for choice in declared.metadata["choices"]}}
    if kind_of(declared) is bool:
        return {"": words("train.as_preset"), "yes": words("train.yes"), "no": words("train.no")}
    return {}


def _bound(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"


def _number(value: Any) -> str:
    """Returns a number in its short form where that loses nothing."""
    if isinstance(value, float) and value == float(f"{value:g}"):
        return f"{value:g}"
    return str(value)


def parsed_field(name: str, value: Any) -> Any:
    """Returns one field as its setting's type: a number for a number, "" for an empty field.

    Raises:
        ConfigError: there is no such field, or its value has the wrong form.
    """
    declared = next((field for field in fields() if field.name == name), None)
    if declared is None or not isinstance(value, str):
        raise ConfigError(["the form has a field that is not a setting; reload the page"])
    kind, label = kind_of(declared), declared.metadata["label"]
    if len(value) > _MAX_LENGTH[tuple] or "\0" in value:
        raise ConfigError([f"{label}: write at most {_MAX_LENGTH[tuple]} letters"])
    if kind not in (int, float) or not value.strip():
        return value if value.strip() else ""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ConfigError([f"{label}: write a {'whole ' if kind is int else ''}number"])
    return int(number) if kind is int else number


def settings_from(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of all fields that are not empty, for `config_from`."""
    declared = {field.name: field for field in fields()}
    settings: dict[str, Any] = {}
    for name, value in values.items():
        kind = kind_of(declared[name])
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if kind is bool:
            settings[name] = value == "yes"
        elif kind is tuple:
            settings[name] = _lines(name, value)
        elif kind in (int, float):
            settings[name] = kind(value)
        else:
            settings[name] = value.strip()
    return settings


def _lines(name: str, text: str) -> tuple[Any, ...]:
    """Returns the lines of a field; for `resolutions` also numbers that are separated by commas or spaces."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if name != "resolutions":
        return tuple(lines)
    parts = [part for line in lines for part in line.replace(",", " ").split()]
    return tuple(int(part) if part.isdigit() else part for part in parts)
