"""What names and captions from a browser become."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.dataset.captions import one_line
from trainer.dataset.pictures import SUFFIXES
from trainer.errors import DatasetError, RunError

MAX_CAPTION = 2000  # characters


def clean_name(text: str) -> str:
    """A safe file or folder name in any script: letters, digits, space, dot, dash and underscore; at most 200 bytes,
    so that a suffix still fits what file systems take."""
    kept = re.sub(r"[^\w .\-]", "", one_line(text)).strip(" .")
    return kept[:80].encode()[:200].decode(errors="ignore").strip(" .")


def numbered(wanted: str) -> Iterator[str]:
    """`wanted`, `wanted-2`, `wanted-3` ...: names to choose a free one from."""
    yield wanted
    yield from (f"{wanted}-{number}" for number in range(2, 10_000))


def new_folder(place: Path, wanted: str) -> Path:
    """A folder of `place` that was not there; two servers may want one at once. Raises RunError."""
    place.mkdir(parents=True, exist_ok=True)
    for name in numbered(wanted):
        with contextlib.suppress(FileExistsError):
            (place / name).mkdir()
            return place / name
    raise RunError(f"there are too many called {wanted}; choose another name")


def free_stem(place: Path, wanted: str) -> str:
    """`wanted`, or `wanted-2` ... when a picture of that stem is there: captions and masks go by stems."""
    taken = {path.stem.casefold() for path in place.iterdir() if path.suffix.lower() in SUFFIXES}
    for stem in numbered(wanted):
        if stem.casefold() not in taken:
            return stem
    raise DatasetError(f"this project holds too many pictures called {wanted}; rename some")
