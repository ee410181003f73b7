"""What an artist chose for a project's training: kept with its pictures, checked, and made whole. No gradio.

datasets/ink/.impasto/settings.json    {"name": "ink", "trigger": "...", "preset": "style", "advanced": {"rank": 8}}
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.config import PRESET_NAMES, TrainConfig, config_from
from trainer.config.presets import preset_values
from trainer.dataset.augmentations import mask_file
from trainer.dataset.overrides import IMPASTO_FOLDER
from trainer.dataset.quick_scan import quick_scan
from trainer.errors import DatasetError
from trainer.headers.base_model import is_small

MIN_PICTURES = 3  # of one or two pictures, everything is learnt by heart: the subject can't be told from what is around it
MAIN_FIELDS = (
    "name",
    "trigger",
    "preset",
    "pace",
    "base",
)  # beside the button; everything else is under Advanced
_LONGEST = 4000  # characters of one field


def read_settings(folder: Path) -> dict[str, Any]:
    """Form field -> what it held; {} for a project that has none, or whose file can't be read."""
    try:
        found = json.loads((folder / IMPASTO_FOLDER / "settings.json").read_text(encoding="utf-8"))
        advanced = found.get("advanced", {})
        kept = {name: found[name] for name in MAIN_FIELDS if isinstance(found.get(name), str)}
        return {**kept, "advanced": {name: value for name, value in advanced.items() if _is_plain(value)}}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def write_settings(folder: Path, above: dict[str, Any], advanced: dict[str, Any]) -> None:
    """Keeps the form's fields as they are, half-typed ones too; what no field can hold is left out."""
    kept: dict[str, Any] = {
        name: above[name]
        for name in MAIN_FIELDS
        if isinstance(above.get(name), str) and _is_plain(above[name])
    }
    kept["advanced"] = {
        name: value for name, value in advanced.items() if value not in (None, "") and _is_plain(value)
    }
    (folder / IMPASTO_FOLDER).mkdir(exist_ok=True)
    write_atomically(
        folder / IMPASTO_FOLDER / "settings.json", json.dumps(kept, ensure_ascii=False, indent=1).encode()
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST and "\0" not in value
    return value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )


def training_values(folder: Path, settings: dict[str, Any], models: Path) -> dict[str, Any]:
    """Every setting of a training of these pictures, for `config_from`: what was said, the preset's, and the page's own.

    Raises TrainerError: for too few pictures, too.
    """
    preset = settings.get("preset", PRESET_NAMES[0])
    config_from({**settings, "preset": preset})
    items = quick_scan(folder).items
    if not items:
        raise DatasetError(
            f"{folder.name} holds no picture to train on; add some under Artwork (at least {MIN_PICTURES})"
        )
    if len(items) < MIN_PICTURES:
        raise DatasetError(
            f"{folder.name} has {len(items)} picture{'s' if len(items) > 1 else ''}, and a training needs at least {MIN_PICTURES}: "
            "of fewer, everything is learnt by heart, background and all; add some under Artwork"
        )
    small = is_small(settings.get("base", TrainConfig.base), models)
    values = preset_values(preset, sum(item.repeats for item in items), settings, small=small)
    # The page shows a training's pictures from its start on, some five times.
    values.setdefault("sample_every", max(10, -(-values["steps"] // 5)))
    values.setdefault("sample_at_start", True)
    if any(mask_file(Path(item.path)) for item in items):  # whoever drew a mask wants it to count
        values.setdefault("mask", "file")
    return values
