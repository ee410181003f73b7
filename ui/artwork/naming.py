"""What names and captions from a browser become."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.dataset.captions import one_line
from trainer.dataset.pictures import SUFFIXES
from trainer.errors import DatasetError

MAX_CAPTION = 2000  # characters


def clean_name(text: str) -> str:
    """A safe file or folder name in any script: letters, digits, space, dot, dash and underscore; at most 200 bytes,
    so that a suffix still fits what file systems take."""
    kept = re.sub(r"[^\w .\-]", "", one_line(text)).strip(" .")
    return kept[:80].encode()[:200].decode(errors="ignore").strip(" .")


def free_stem(place: Path, wanted: str) -> str:
    """`wanted`, or `wanted-2` ... when a picture of that stem is there: captions and masks go by stems."""
    taken = {path.stem.casefold() for path in place.iterdir() if path.suffix.lower() in SUFFIXES}
    for stem in (wanted, *(f"{wanted}-{i}" for i in range(2, 10_000))):
        if stem.casefold() not in taken:
            return stem
    raise DatasetError(f"this project holds too many pictures called {wanted}; rename some")
