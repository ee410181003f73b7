"""Settings to form fields and back: the page's Advanced section is made from the fields of `TrainConfig`. No gradio.

It is HTML of our own: a hundred and fifty of Gradio's components would make every event of the page slow.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config import TrainConfig, kind_of
from trainer.errors import ConfigError
from ui.text import Words, sentences

# Asked for elsewhere on the page.
_ABOVE = {"name", "trigger", "preset", "pace", "base"}
# Names of Python classes and what they are called with: for the one who has the machine, not for everyone with the page.
TERMINAL_ONLY = {"optimizer_class", "optimizer_args"}
FOLDERS, FILES = (
    ("prior_folder", "validation_folder"),
    ("start_from",),
)  # chosen by name: a browser knows no paths
_LONGEST = {tuple: 4000, str: 2000}  # characters

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
def fields() -> tuple[dataclasses.Field, ...]:
    """The settings of the form, in the order of their groups."""
    shown = [
        declared
        for declared in dataclasses.fields(TrainConfig)
        if declared.name not in _ABOVE | TERMINAL_ONLY
    ]
    return tuple(declared for group in TITLES for declared in shown if declared.metadata["group"] == group)


@functools.cache
def declared_sentences() -> dict[str, str]:
    """`settings.<key>` -> English sentence: titles, labels with units, and help, as the config declares them."""
    said = {f"settings.group_{group}": title for group, title in TITLES.items()}
    for declared in fields():
        facts = declared.metadata
        said[f"settings.{declared.name}"] = facts["label"] + (f" ({facts['unit']})" if facts["unit"] else "")
        said[f"settings.{declared.name}_help"] = facts["help"]
    return said


def form_html(
    words: Words, project: str, values: dict[str, Any], choices: Mapping[str, Sequence[str]]
) -> str:
    """Every field in its folded group. Left empty, a setting is what the preset says.

    Args:
        values: setting -> what it holds.
        choices: setting -> names to choose from, of those that a browser knows by name only.
    """
    groups = []
    for group in TITLES:
        shown = "".join(
            _field(words, declared, values.get(declared.name, ""), choices.get(declared.name))
            for declared in fields()
            if declared.metadata["group"] == group
        )
        title = _escaped(_said(words, f"group_{group}"))
        groups.append(
            f'<details class="settings"><summary>{title}</summary><div class="fields">{shown}</div></details>'
        )
    return f'<div class="advanced" data-of="{_escaped(project)}">{"".join(groups)}</div>'


def _said(words: Words, key: str) -> str:
    key = f"settings.{key}"
    return sentences(words.language).get(key) or declared_sentences()[key]


def _field(words: Words, declared: dataclasses.Field, value: Any, choices: Sequence[str] | None) -> str:
    name = declared.name
    shared = f'id="set-{name}" name="{name}" aria-describedby="help-{name}"'
    control = _control(words, declared, value, choices, shared)
    label, told = _escaped(_said(words, name)), _escaped(_said(words, f"{name}_help"))
    return f'<div class="field"><label for="set-{name}">{label}</label>{control}<p class="hint" id="help-{name}">{told}</p></div>'


def _control(
    words: Words, declared: dataclasses.Field, value: Any, choices: Sequence[str] | None, shared: str
) -> str:
    facts, kind = declared.metadata, kind_of(declared)
    offered: list[tuple[str, str]] = []
    if choices is not None:
        offered = [("", words("train.none")), *((choice, choice) for choice in choices)]
    elif facts["choices"]:
        offered = [("", words("train.as_preset")), *((choice, choice) for choice in facts["choices"])]
    elif kind is bool:
        offered = [("", words("train.as_preset")), ("yes", words("train.yes")), ("no", words("train.no"))]
    if offered:
        if str(value) not in dict(
            offered
        ):  # a project or a file that is gone; the checks beside the button say so
            offered.append((str(value), str(value)))
        options = "".join(
            f'<option value="{_escaped(key)}"{" selected" if key == str(value) else ""}>{_escaped(said)}</option>'
            for key, said in offered
        )
        return f"<select {shared}>{options}</select>"
    if kind in (int, float):
        bounds = "".join(
            f' {side}="{facts[end]:g}"'
            for side, end in (("min", "low"), ("max", "high"))
            if facts[end] is not None
        )
        step = "1" if kind is int else "any"
        number = f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
        hint = _escaped(words("train.as_preset"))
        return f'<input type="number" inputmode="decimal" step="{step}"{bounds} value="{_escaped(number)}" placeholder="{hint}" {shared}>'
    length = f'maxlength="{_LONGEST[tuple if kind is tuple else str]}"'
    if kind is tuple:
        hint = _escaped(words("train.one_a_line"))
        return (
            f'<textarea rows="2" {length} placeholder="{hint}" {shared}>\n{_escaped(str(value))}</textarea>'
        )
    return f'<input type="text" {length} value="{_escaped(str(value))}" {shared}>'


def typed(name: str, value: Any) -> Any:
    """One field as the browser sent it: a number where the setting is one, "" where nothing was said. Raises ConfigError."""
    declared = next((field for field in fields() if field.name == name), None)
    if declared is None or not isinstance(value, str):
        raise ConfigError(["the form holds something that is no setting; reload the page"])
    kind, label = kind_of(declared), declared.metadata["label"]
    if len(value) > _LONGEST[tuple] or "\0" in value:
        raise ConfigError([f"{label}: write at most {_LONGEST[tuple]} letters"])
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
        return tuple(
            int(part) if part.isdigit() else part for line in lines for part in line.replace(",", " ").split()
        )
    return tuple(lines)


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)
