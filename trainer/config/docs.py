"""The Markdown table of all settings in `docs/settings.md`."""

from __future__ import annotations

import dataclasses
from typing import Any

import tomlkit

from trainer.config.train_config import TrainConfig
from trainer.config.validation import format_number


def settings_table() -> str:
    """One row for each setting, in the order of `config.toml`; defaults are written as TOML writes them."""
    rows = ["| setting | default | range | what it does |", "|---|---|---|---|"]
    rows += [_row(declared) for declared in dataclasses.fields(TrainConfig)]
    return "\n".join(rows) + "\n"


def _row(declared: dataclasses.Field[Any]) -> str:
    metadata = declared.metadata
    allowed = ", ".join(metadata["choices"])
    if metadata["low"] is not None:
        allowed = f"{format_number(metadata['low'])} – {format_number(metadata['high'])}"
    default: Any = list(declared.default) if isinstance(declared.default, tuple) else declared.default
    unit = f" {metadata['unit']}" if metadata["unit"] else ""
    help_text = metadata["help"].replace("|", "\\|")
    return f"| `{declared.name}` | `{tomlkit.item(default).as_string()}`{unit} | {allowed} | {help_text} |"
