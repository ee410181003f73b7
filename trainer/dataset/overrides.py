"""Settings of single pictures, chosen by the artist: `.impasto/pictures.json` in the picture folder.

{"owl.png": {"repeats": 2}, "10_cats/tom.png": {"crop": [0.5, 0.0]}}

"repeats" multiplies the repeats of the picture's folder. "crop" is the share of the excess that is cut off at
the left and at the top; 0.5 is the centre. A value that can't be understood is replaced by its default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.json_files import read_object

IMPASTO_FOLDER = ".impasto"  # in each picture folder, for files of Impasto
MAX_REPEATS = 100


@dataclass(frozen=True)
class Override:
    """Settings of one picture."""

    repeats: int = 1
    crop: tuple[float, float] | None = None  # share of the excess cut at the left and top; None: centred

    def to_json(self) -> dict[str, Any]:
        """Returns the values that differ from the defaults."""
        repeats = {"repeats": self.repeats} if self.repeats != 1 else {}
        return repeats if self.crop is None else {**repeats, "crop": list(self.crop)}


def read_overrides(folder: Path) -> dict[str, Override]:
    """Returns {path in the folder, with /: override} of a picture folder; {} if the file is missing or
    damaged.
    """
    content = read_object(folder / IMPASTO_FOLDER / "pictures.json")
    return {name: override_from(values) for name, values in content.items()}


def override_from(values: Any) -> Override:
    """Returns the override of untrusted JSON values."""
    if not isinstance(values, dict):
        return Override()
    repeats, crop = values.get("repeats"), values.get("crop")
    if type(repeats) is not int or not 1 <= repeats <= MAX_REPEATS:
        repeats = 1
    if not (isinstance(crop, list) and len(crop) == 2 and all(_is_share(part) for part in crop)):
        return Override(repeats)
    return Override(repeats, (float(crop[0]), float(crop[1])))


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= 1
