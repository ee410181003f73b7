"""Captions of pictures from sidecar files, metadata.jsonl and folder names, and the trigger word in them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import DatasetError
from trainer.text_files import read_text

MAX_WEIGHT = 100.0


def caption_lines(path: Path) -> list[str]:
    """Returns the non-empty lines of a caption file. Raises DatasetError if the file can't be read."""
    return non_empty_lines(_decode(path))


@dataclass(frozen=True)
class MetadataRow:
    """A picture's line of metadata.jsonl."""

    caption: str = ""
    weight: float = 1.0  # of the picture's loss


def read_metadata(path: Path) -> tuple[dict[str, MetadataRow], list[str]]:
    """Returns ({file name: row}, problems) of a metadata.jsonl; a problem continues a sentence that begins
    with the name of the file.

    Each line is {"file_name": "a.png", "text": "a cat", "weight": 0.5}; text and weight are optional. The
    file name may have folders, relative to that of metadata.jsonl. Raises DatasetError if the file can't be
    read.
    """
    rows: dict[str, MetadataRow] = {}
    problems: list[str] = []
    for number, line in enumerate(_decode(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            name, caption = str(content["file_name"]), one_line(str(content.get("text") or ""))
            weight = float(content.get("weight", 1.0))
        except (ValueError, KeyError, TypeError):
            problems.append(
                f'line {number} is not {{"file_name": "...", "text": "..."}}; correct or remove it'
            )
            continue
        if not (math.isfinite(weight) and 0 <= weight <= MAX_WEIGHT):
            weight = 1.0
            problems.append(f"line {number}: weight must be from 0 to 100, so 1 is used")
        rows[name] = MetadataRow(caption, weight)
    return rows, problems


def with_trigger(caption: str, trigger: str) -> str:
    """Returns the caption with the trigger in front, unless it contains each tag of the trigger as whole words."""
    trigger, caption = trigger.strip(), caption.strip()
    if not trigger:
        return caption
    if not caption:
        return trigger
    tags = trigger_tags(trigger)
    if all(has_words(caption, tag) for tag in tags):
        return caption
    # A tag of the trigger that the caption has already moves to the front with the others.
    own = {tag.casefold() for tag in tags} if len(tags) > 1 else set()
    rest = [tag for tag in caption.split(",") if tag.strip().casefold() not in own]
    return f"{trigger}, {','.join(rest).strip()}" if rest else trigger


def trigger_tags(trigger: str) -> list[str]:
    """Returns the tags of a trigger, which may be several, such as `inkzz, ink drawing`."""
    return [tag.strip() for tag in trigger.split(",") if tag.strip()]


def has_words(text: str, words: str) -> bool:
    """Returns whether a text contains some words as whole words, in any case."""
    return bool(re.search(_whole(words), text, re.IGNORECASE))


def _whole(words: str) -> str:
    return rf"(?<!\w){re.escape(words)}(?!\w)"


def without_trigger(caption: str, trigger: str) -> str:
    """Returns the caption without the tags of the trigger, wherever they stand as whole words."""
    if not trigger.strip():
        return caption
    for words in (trigger.strip(), *trigger_tags(trigger)):
        caption = re.sub(_whole(words), "", caption, flags=re.IGNORECASE)
    return ", ".join(part for part in (" ".join(part.split()) for part in caption.split(",")) if part)


def one_line(text: str) -> str:
    """Replaces white space and control characters by single spaces."""
    if not text.isprintable():  # most texts are printable, and the loop over characters is slow
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(text.split())


def non_empty_lines(text: str) -> list[str]:
    """Returns the non-empty lines of a caption; with the setting `caption_lines`, each is a caption of its own."""
    return [line for line in map(one_line, text.splitlines()) if line]


def _decode(path: Path) -> str:
    try:
        return read_text(path).text
    except OSError as error:
        raise DatasetError(f"{path.name} can't be read ({error.strerror}); check its permissions") from None
