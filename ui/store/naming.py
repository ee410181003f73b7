"""Safe file and folder names from the text that a browser sends."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from trainer.dataset.layout import folded, is_picture_name
from trainer.errors import DatasetError, RunError

MAX_CAPTION = 2000  # characters
_JOINERS = "\u200c\u200d"
_EDGES = " ." + _JOINERS
_MAX_NAMES = 10_000  # tried for one name


def clean_name(text: str) -> str:
    """Returns a safe file or folder name in any script, "" if nothing is left.

    It has letters with their accents and vowel signs (combining marks), digits, space, dot, dash and underscore, at most
    80 characters and 200 bytes: file systems limit names to 255 bytes, and suffixes are added. Letters that macOS stores
    as a letter and an accent become one character, so that a name is the same from every system.
    """
    # Invisible joiners shape words of Persian and Indic scripts; `one_line` would replace them by spaces.
    parts = re.split(f"([{_JOINERS}])", unicodedata.normalize("NFC", text))
    line = " ".join("".join(part if part in _JOINERS else _printable(part) for part in parts).split())
    allowed = "".join(letter for letter in line if _is_allowed(letter)).strip(_EDGES)
    return allowed[:80].encode()[:200].decode(errors="ignore").strip(_EDGES)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _is_allowed(letter: str) -> bool:
    return letter in " .-_" or letter in _JOINERS or unicodedata.category(letter)[0] in "LMN"


def numbered(name: str) -> Iterator[str]:
    """Yields `name`, `name-2`, `name-3` and so on, to choose a free one from."""
    yield name
    yield from (f"{name}-{number}" for number in range(2, _MAX_NAMES))


def create_folder(parent: Path, name: str) -> Path:
    """Creates a new folder, with a number if the name is taken. Safe with several servers and threads.

    Raises:
        RunError: every numbered name is taken.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for free_name in numbered(name):
        with contextlib.suppress(FileExistsError):
            (parent / free_name).mkdir()
            return parent / free_name
    raise RunError(f"there are too many entries with the name {name}; choose another name")


def free_stem(folder: Path, stem: str) -> str:
    """Returns `stem`, or a numbered one if a picture has it already: captions and masks are found by stem.

    Raises:
        DatasetError: every numbered stem is taken.
    """
    taken = {folded(path.stem) for path in folder.iterdir() if is_picture_name(path.name)}
    for free in numbered(stem):
        if folded(free) not in taken:
            return free
    raise DatasetError(f"this project has too many pictures with the name {stem}; rename some")
