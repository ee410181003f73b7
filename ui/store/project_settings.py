"""The training settings that an artist chose for a project, stored with its pictures and completed for a run. No gradio.

datasets/ink/.impasto/settings.json    {"name": "ink", "trigger": "...", "preset": "style", "advanced": {"rank": 8}}
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.config import PRESET_NAMES, config_from
from trainer.config.presets import preset_values
from trainer.dataset.exposures import EpochLength
from trainer.dataset.folder import mask_file
from trainer.dataset.overrides import IMPASTO_FOLDER
from trainer.dataset.quick_scan import quick_scan
from trainer.dataset.sources import with_class_and_validation
from trainer.errors import DatasetError
from trainer.headers.base_model import bucket_geometry, is_small
from trainer.json_files import read_object

# From one or two pictures a LoRA memorises everything, since nothing separates the subject from its background.
MIN_PICTURES = 3
MAIN_FIELDS = (
    "name",
    "trigger",
    "preset",
    "pace",
    "base",
)  # beside the Train button; all others are under Advanced
_MAX_CHARACTERS = 4000  # of one field
_PREVIEWS = 5  # about this many during a training, unless the artist chose otherwise


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the main fields and, under "advanced", the others; {} without a readable file."""
    settings = read_object(folder / IMPASTO_FOLDER / "settings.json")
    advanced = settings.get("advanced", {})
    if not settings or not isinstance(advanced, dict):
        return {}
    main = {name: settings[name] for name in MAIN_FIELDS if isinstance(settings.get(name), str)}
    return {**main, "advanced": {name: value for name, value in advanced.items() if _is_plain(value)}}


def write_settings(folder: Path, above: dict[str, Any], advanced: dict[str, Any]) -> None:
    """Stores the form's fields as they are, half-typed ones too. Values that no field can hold are left out.

    Args:
        above: the main fields.
        advanced: the fields under Advanced.
    """
    settings: dict[str, Any] = {
        name: above[name]
        for name in MAIN_FIELDS
        if isinstance(above.get(name), str) and _is_plain(above[name])
    }
    settings["advanced"] = {
        name: value for name, value in advanced.items() if value not in (None, "") and _is_plain(value)
    }
    (folder / IMPASTO_FOLDER).mkdir(exist_ok=True)
    text = json.dumps(settings, ensure_ascii=False, indent=1)
    write_atomically(folder / IMPASTO_FOLDER / "settings.json", text.encode())


def _is_plain(value: Any) -> bool:
    """True for a text, a finite number or None; False for True and False."""
    if isinstance(value, str):
        return len(value) <= _MAX_CHARACTERS and "\0" not in value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and math.isfinite(value))


def training_values(folder: Path, settings: dict[str, Any], models: Path) -> dict[str, Any]:
    """Returns every setting of a training for `config_from`: the artist's, the preset's, and defaults of the page.

    Raises:
        TrainerError: invalid settings, or fewer than MIN_PICTURES pictures.
    """
    preset = settings.get("preset", PRESET_NAMES[0])
    own = config_from({**settings, "preset": preset})
    manifest = quick_scan(folder)
    items = manifest.items
    if not items:
        raise DatasetError(
            f"{folder.name} has no pictures to train on; add at least {MIN_PICTURES} in the Artwork tab"
        )
    if len(items) < MIN_PICTURES:
        pictures = "1 picture" if len(items) == 1 else f"{len(items)} pictures"
        raise DatasetError(
            f"{folder.name} has {pictures}, and a training needs at least {MIN_PICTURES} "
            "(from fewer, a LoRA memorises everything, backgrounds too); add some in the Artwork tab"
        )
    trained = with_class_and_validation(manifest, own, quick_scan).items
    values = preset_values(
        preset,
        sum(item.repeats for item in trained if item.role == "train"),
        settings,
        small=is_small(own.base, models),
        epoch_length=EpochLength(trained, *bucket_geometry(own.base, models)),
    )
    values.setdefault("sample_every", max(10, -(-values["steps"] // _PREVIEWS)))
    values.setdefault("sample_at_start", True)
    if any(
        mask_file(Path(item.path)) for item in items
    ):  # a drawn mask is used unless the artist turned masks off
        values.setdefault("mask", "file")
    return values
