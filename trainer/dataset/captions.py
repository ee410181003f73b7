"""Where captions come from, and how the trigger word joins them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import DatasetError

SIDECARS = (".txt", ".caption")
_KOHYA_FOLDER = re.compile(r"(\d{1,4})_(.+)")


def sidecar_caption(picture: Path) -> str | None:
    """All of a caption file on one line; None when there is none."""
    lines = sidecar_lines(picture)
    return None if lines is None else " ".join(lines)


def sidecar_lines(picture: Path) -> list[str] | None:
    """Lines of `art.txt` or `art.caption` beside `art.png` that hold text; None when there is no such file."""
    for suffix in SIDECARS:
        sidecar = picture.with_suffix(suffix)
        if sidecar.is_file():
            return [line for line in map(one_line, _decoded(sidecar).splitlines()) if line]
    return None


@dataclass(frozen=True)
class MetadataRow:
    """A picture's line of `metadata.jsonl`."""

    caption: str = ""
    weight: float = (
        1.0  # of its loss, e.g. less for pictures that only keep the base's own knowledge of a class
    )


def metadata_captions(folder: Path) -> tuple[dict[str, MetadataRow], list[str]]:
    """file_name -> text and weight of `metadata.jsonl`, and what couldn't be read in it."""
    captions, problems = {}, []
    path = folder / "metadata.jsonl"
    if not path.is_file():
        return {}, []
    for number, line in enumerate(_decoded(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions[str(row["file_name"])] = MetadataRow(
                one_line(str(row.get("text") or "")), float(row.get("weight", 1.0))
            )
        except (ValueError, KeyError, TypeError):
            problems.append(
                f'metadata.jsonl line {number} is not {{"file_name": ..., "text": ...}}; mend or remove it'
            )
            continue
        weight = captions[str(row["file_name"])].weight
        if not (math.isfinite(weight) and 0 <= weight <= 100):
            captions[str(row["file_name"])] = MetadataRow(captions[str(row["file_name"])].caption)
            problems.append(f"metadata.jsonl line {number}: weight must be from 0 to 100, so 1 is taken")
    return captions, problems


def kohya_folder(name: str) -> tuple[int, str] | None:
    """(repeats, token) of a folder named `NN_token`; None for other names."""
    match = _KOHYA_FOLDER.fullmatch(name)
    return (max(1, int(match[1])), match[2].strip()) if match else None


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word in front, unless it is there as a whole word already."""
    trigger, caption = trigger.strip(), caption.strip()
    if not trigger:
        return caption
    if not caption:
        return trigger
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}"


def without_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word taken out, wherever it stands as a whole word."""
    if not trigger.strip():
        return caption
    rest = re.sub(rf"(?<!\w){re.escape(trigger.strip())}(?!\w)", "", caption, flags=re.IGNORECASE)
    return ", ".join(part for part in (" ".join(part.split()) for part in rest.split(",")) if part)


def one_line(text: str) -> str:
    """White space and control characters folded to single spaces."""
    if not text.isprintable():  # most are, and letter by letter is slow
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(text.split())


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DatasetError(f"{path.name} can't be read ({error.strerror}); check its permissions") from None
