"""What an artist chose for single pictures: `.impasto/pictures.json` in the picture folder.

{"owl.png": {"repeats": 2}, "10_cats/tom.png": {"crop": [0.5, 0.0]}}

`repeats` is how often an epoch sees the picture, times what its folder's name says. `crop` is where the bucket lies: the
share of the spare room that is cut at the left and at the top, so 0.5 is the centre.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMPASTO_FOLDER = ".impasto"
MAX_REPEATS = 100


@dataclass(frozen=True)
class Override:
    repeats: int = 1
    crop: tuple[float, float] | None = None  # share of the spare room (left, top)

    def to_json(self) -> dict[str, Any]:
        """Without what is as usual."""
        repeats = {"repeats": self.repeats} if self.repeats != 1 else {}
        return repeats if self.crop is None else {**repeats, "crop": list(self.crop)}


def read_overrides(folder: Path) -> dict[str, Override]:
    """name -> choice of a picture folder; what can't be understood in the file is as usual."""
    try:
        found = json.loads((folder / IMPASTO_FOLDER / "pictures.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: override_from(facts) for name, facts in found.items()} if isinstance(found, dict) else {}


def override_from(facts: Any) -> Override:
    """A choice of loose values, each as usual when it can't be."""
    if not isinstance(facts, dict):
        return Override()
    repeats, crop = facts.get("repeats"), facts.get("crop")
    if type(repeats) is not int or not 1 <= repeats <= MAX_REPEATS:
        repeats = 1
    if not (isinstance(crop, list) and len(crop) == 2 and all(_is_share(part) for part in crop)):
        return Override(repeats)
    return Override(repeats, (float(crop[0]), float(crop[1])))


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= 1
