"""TOML files of settings: `config.toml` of a run, and the user's own of `train --config`."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import tomlkit

from trainer.config.train_config import TrainConfig
from trainer.errors import ConfigError
from trainer.text_files import read_toml_file


def read_toml(path: Path) -> dict[str, Any]:
    """Values of a TOML file, not validated yet. Raises ConfigError."""
    try:
        return read_toml_file(path)
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist; give the path of a TOML file"]) from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path.name} can't be read as TOML: {error}"]) from None


def to_toml(config: TrainConfig) -> str:
    """All settings as TOML, with a comment above each group."""
    document, group = tomlkit.document(), None
    for declared in dataclasses.fields(config):
        if declared.metadata["group"] != group:
            group = declared.metadata["group"]
            document.add(tomlkit.comment(group))
        value = getattr(config, declared.name)
        document.add(declared.name, tomlkit.item(list(value) if isinstance(value, tuple) else value))
    return tomlkit.dumps(document)
