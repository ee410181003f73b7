"""Captions of pictures from sidecar files, metadata.jsonl and folder names, and the trigger word in them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import DatasetError

SIDECARS = (".txt", ".caption")
MAX_WEIGHT = 100.0
_KOHYA_FOLDER = re.compile(r"(\d{1,4})_(.+)")


def sidecar_caption(picture: Path) -> str | None:
    """Returns all lines of a picture's caption file as one; None without a file. Raises DatasetError."""
    lines = sidecar_lines(picture)
    return None if lines is None else " ".join(lines)


def sidecar_lines(picture: Path) -> list[str] | None:
    """Returns the non-empty lines of `art.txt` or `art.caption` beside `art.png`; None without such a file.

    Raises DatasetError if the file can't be read.
    """
    for suffix in SIDECARS:
        sidecar = picture.with_suffix(suffix)
        if sidecar.is_file():
            return caption_lines(_decode(sidecar))
    return None


@dataclass(frozen=True)
class MetadataRow:
    """A picture's line of metadata.jsonl."""

    caption: str = ""
    weight: float = 1.0  # of the picture's loss


def metadata_captions(folder: Path) -> tuple[dict[str, MetadataRow], list[str]]:
    """Returns ({file name: row}, problems) of a folder's metadata.jsonl; both are empty without such a file.

    Each line is {"file_name": "a.png", "text": "a cat", "weight": 0.5}; text and weight are optional. Raises
    DatasetError if the file can't be read.
    """
    rows: dict[str, MetadataRow] = {}
    problems: list[str] = []
    path = folder / "metadata.jsonl"
    if not path.is_file():
        return rows, problems
    for number, line in enumerate(_decode(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            name, caption = str(content["file_name"]), one_line(str(content.get("text") or ""))
            weight = float(content.get("weight", 1.0))
        except (ValueError, KeyError, TypeError):
            problems.append(
                f'metadata.jsonl line {number} is not {{"file_name": "...", "text": "..."}}; '
                "correct or remove it"
            )
            continue
        if not (math.isfinite(weight) and 0 <= weight <= MAX_WEIGHT):
            weight = 1.0
            problems.append(f"metadata.jsonl line {number}: weight must be from 0 to 100, so 1 is used")
        rows[name] = MetadataRow(caption, weight)
    return rows, problems


def kohya_folder(name: str) -> tuple[int, str] | None:
    """Returns (repeats, token) of a folder named `NN_token`, as kohya's trainers use it; None for other
    names.
    """
    match = _KOHYA_FOLDER.fullmatch(name)
    return (max(1, int(match[1])), match[2].strip()) if match else None


def with_trigger(caption: str, trigger: str) -> str:
    """Returns the caption with the trigger word in front, unless it contains the trigger as a whole word."""
    trigger, caption = trigger.strip(), caption.strip()
    if not trigger:
        return caption
    if not caption:
        return trigger
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}"


def without_trigger(caption: str, trigger: str) -> str:
    """Returns the caption without the trigger word, wherever it stands as a whole word."""
    if not trigger.strip():
        return caption
    rest = re.sub(rf"(?<!\w){re.escape(trigger.strip())}(?!\w)", "", caption, flags=re.IGNORECASE)
    return ", ".join(part for part in (" ".join(part.split()) for part in rest.split(",")) if part)


def one_line(text: str) -> str:
    """Replaces white space and control characters by single spaces."""
    if not text.isprintable():  # most texts are printable, and the loop over characters is slow
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(text.split())


def caption_lines(text: str) -> list[str]:
    """Returns the non-empty lines of a caption; with the setting `caption_lines`, each is a caption of its own."""
    return [line for line in map(one_line, text.splitlines()) if line]


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DatasetError(f"{path.name} can't be read ({error.strerror}); check its permissions") from None
