"""The undo history of a project's captions: each change can be undone byte for byte, also after a restart.

.impasto/captions-undo.json has the latest changes, newest last:

    {"entries": [{"kind": "replace", "find": "cat", "text": "dog",
                  "files": [{"file": "art.txt", "before": "a cat\\n", "after": "<SHA-256>"}]}]}

`before` is null if there was no file. `after` is null if any content may be replaced (captions that a model wrote).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.dataset.folder import read_folder
from trainer.dataset.layout import SIDECARS
from trainer.dataset.overrides import IMPASTO_FOLDER
from trainer.errors import DatasetError
from trainer.json_files import read_object
from ui.store.projects import Projects, locked

_MAX_ENTRIES, _MAX_BYTES = 50, 8_000_000
# File names and captions need not be UTF-8. Bytes that are not become surrogate escapes, which JSON stores as ASCII.
_ENCODING = ("utf-8", "surrogateescape")


@dataclass(frozen=True)
class UndoEntry:
    """A change of captions, as the Undo button describes it."""

    kind: str  # one of `caption_edits.KINDS`, "typed", "model" or "uploaded"
    find: str
    text: str
    count: int  # captions that it changed, or that were restored
    kept: int = 0  # captions that have changed since and were not restored


def last_edit(projects: Projects, project: str) -> UndoEntry | None:
    """Returns the change that `undo_last` would undo; None if there is none. Raises DatasetError."""
    entries = _entries(projects.folder(project))
    if not entries:
        return None
    entry = entries[-1]
    return UndoEntry(entry["kind"], entry["find"], entry["text"], count=len(entry["files"]))


def undo_last(projects: Projects, project: str) -> UndoEntry:
    """Restores the captions before the latest change, except those that have changed since.

    Raises:
        DatasetError: there is no change to undo, or no such project.
    """
    folder = projects.folder(project)
    with locked(folder):
        entries = _entries(folder)
        if not entries:
            raise DatasetError("there is no change of captions to undo")
        entry, count, kept = entries[-1], 0, 0
        for record in entry["files"]:
            file = folder / record["file"]
            current = _read(file)
            if current == record["before"]:
                continue
            if record["after"] is not None and _digest(current) != record["after"]:
                kept += 1
                continue
            if record["before"] is None:
                file.unlink(missing_ok=True)
            elif file.parent.is_dir():
                write_atomically(file, record["before"].encode(*_ENCODING))
            count += 1
        _store(folder, entries[:-1])
    return UndoEntry(entry["kind"], entry["find"], entry["text"], count, kept)


def record_captions(projects: Projects, project: str) -> None:
    """Records all captions before a model overwrites them, so that Undo can restore them. Raises DatasetError."""
    folder = projects.folder(project)
    with locked(folder):
        files = dict.fromkeys(picture.caption_file for picture in read_folder(folder).pictures)
        records = [
            {"file": file.relative_to(folder).as_posix(), "before": _read(file), "after": None}
            for file in files
        ]
        _store(folder, [*_entries(folder), {"kind": "model", "find": "", "text": "", "files": records}])


def write_captions(folder: Path, entry: dict[str, str], files: list[tuple[Path, str]]) -> None:
    """Writes caption files of a locked project and records the captions before.

    The record is written first: after a crash in between, Undo finds the old content and changes nothing.

    Args:
        entry: "kind", "find" and "text" of the change.
        files: (path, new content).
    """
    if not files:
        return
    records = [
        {"file": file.relative_to(folder).as_posix(), "before": _read(file), "after": _digest(text)}
        for file, text in files
    ]
    _store(folder, [*_entries(folder), {**entry, "files": records}])
    for file, text in files:
        write_atomically(file, text.encode())


def _read(file: Path) -> str | None:
    try:
        return file.read_bytes().decode(*_ENCODING)
    except FileNotFoundError:
        return None


def _digest(text: str | None) -> str:
    return hashlib.sha256((text or "").encode(*_ENCODING)).hexdigest()


def _entries(folder: Path) -> list[dict[str, Any]]:
    """Returns the valid entries: one that was damaged or edited by hand must not write elsewhere."""
    entries = read_object(folder / IMPASTO_FOLDER / "captions-undo.json").get("entries", [])
    return [entry for entry in entries if _is_valid(folder, entry)] if isinstance(entries, list) else []


def _is_valid(folder: Path, entry: Any) -> bool:
    try:
        return all(isinstance(entry[key], str) for key in ("kind", "find", "text")) and all(
            isinstance(record["before"], str | None)
            and isinstance(record["after"], str | None)
            and Path(record["file"]).suffix.lower() in SIDECARS
            and (folder / record["file"]).resolve().is_relative_to(folder.resolve())
            for record in entry["files"]
        )
    except (KeyError, TypeError, ValueError, OSError):
        return False


def _store(folder: Path, entries: list[dict[str, Any]]) -> None:
    entries = entries[-_MAX_ENTRIES:]
    data = json.dumps({"entries": entries})
    while len(data) > _MAX_BYTES and len(entries) > 1:
        entries = entries[1:]
        data = json.dumps({"entries": entries})
    write_atomically(folder / IMPASTO_FOLDER / "captions-undo.json", data.encode())
