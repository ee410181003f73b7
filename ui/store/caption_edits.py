"""Captions changed, one by hand or many at once, and every change taken back byte for byte.

.impasto/captions-undo.json keeps the last changes, newest last:
{"entries": [{"kind": "replace", "find": "cat", "text": "dog", "files": [{"file": "art.txt", "before": "a cat\\n", "after": "<SHA-256>"}]}]}
`before` is null where there was no file; `after` is null where anything may stand now (captions that a model wrote).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.dataset.captions import SIDECARS, MetadataRow, metadata_captions, one_line, sidecar_lines
from trainer.dataset.overrides import IMPASTO_FOLDER
from trainer.dataset.scan import picture_folders, pictures_in
from trainer.errors import DatasetError
from ui.store.naming import MAX_CAPTION
from ui.store.projects import Projects, locked

KINDS = ("replace", "prepend", "append", "remove", "apart")
TOKENS = 75  # that a training reads of a caption in one window
_LEVELS, _MOST_BYTES = 50, 8_000_000  # of what can be taken back


@dataclass(frozen=True)
class CaptionEdit:
    """One change of many captions: find and replace, text before or after, a tag removed, the trigger word set apart."""

    kind: str
    find: str = ""  # for "remove" the tag, for "apart" the trigger word
    text: str = ""

    def __post_init__(self) -> None:
        """Raises DatasetError."""
        if self.kind not in KINDS:
            raise DatasetError("choose what to change in the captions")
        if any(len(part) > MAX_CAPTION for part in (self.find, self.text)):
            raise DatasetError(f"that is longer than {MAX_CAPTION} characters; shorten it")

    @property
    def does_nothing(self) -> bool:
        return not (self.text.strip() if self.kind in ("prepend", "append") else self.find.strip())

    def of(self, caption: str) -> str:
        """One caption after the edit."""
        if self.does_nothing:
            return caption
        if self.kind == "replace":
            return one_line(caption.replace(self.find, self.text))
        if self.kind == "prepend":
            return one_line(_joined(self.text, caption))
        if self.kind == "append":
            return one_line(_joined(caption, self.text))
        tags = [tag.strip() for tag in caption.split(",")]
        if self.kind == "remove":
            gone = one_line(self.find).casefold()
            kept = [tag for tag in tags if tag.casefold() != gone]
            return caption if len(kept) == len(tags) else ", ".join(tag for tag in kept if tag)
        apart = [part for tag in tags for part in _set_apart(tag, one_line(self.find))]
        return caption if apart == tags else ", ".join(part for part in apart if part)


def _joined(first: str, then: str) -> str:
    """With a comma between, unless the artist ended or began with a mark of their own."""
    first, then = first.strip(), then.strip()
    if not first or not then:
        return first or then
    return f"{first} {then}" if first[-1] in ",.;:!?" or then[0] in ",.;:!?" else f"{first}, {then}"


def _set_apart(tag: str, trigger: str) -> list[str]:
    """`inkstyle cat` -> inkstyle, cat; `inkstylecat` and `cat inkstyle` alike."""
    low, word = tag.casefold(), trigger.casefold()
    if low == word or not word or len(low) != len(tag):
        return [tag]
    if low.startswith(word):
        return [tag[: len(trigger)], tag[len(trigger) :].strip(" -_")]
    if low.endswith(word):
        return [tag[: -len(trigger)].strip(" -_"), tag[-len(trigger) :]]
    return [tag]


@dataclass(frozen=True)
class CaptionChange:
    """What an edit does to one caption file."""

    name: str  # of the picture
    file: Path
    before: tuple[str, ...]  # lines
    after: tuple[str, ...]


def changes(projects: Projects, project: str, edit: CaptionEdit) -> list[CaptionChange]:
    """What an edit would change, by picture. Raises DatasetError."""
    folder, found, seen = projects.folder(project), [], set()
    if edit.does_nothing:
        return []
    for place, _, token in picture_folders(folder):
        listed, _ = metadata_captions(place)
        for picture in pictures_in(place)[0]:
            file = _sidecar(picture)
            if file in seen:  # two pictures of one stem share a caption
                continue
            seen.add(file)
            lines = sidecar_lines(picture)
            before = (
                tuple(lines) if lines is not None else (listed.get(picture.name, MetadataRow(token)).caption,)
            )
            after = tuple(edit.of(line) for line in before or ("",))
            if after != (before or ("",)):
                found.append(CaptionChange(picture.relative_to(folder).as_posix(), file, before, after))
    long = next((change.name for change in found if len(" ".join(change.after)) > MAX_CAPTION), None)
    if long:
        raise DatasetError(
            f"the caption of {long} would have more than {MAX_CAPTION} characters; shorten it first"
        )
    return found


def apply_edit(projects: Projects, project: str, edit: CaptionEdit) -> int:
    """Makes the changes; how many captions are others now. Raises DatasetError."""
    folder = projects.folder(project)
    with locked(folder):
        made = changes(projects, project, edit)
        files = [(change.file, "\n".join(line for line in change.after if line) + "\n") for change in made]
        _write(folder, {"kind": edit.kind, "find": edit.find, "text": edit.text}, files)
    return len(made)


def save_caption(projects: Projects, project: str, name: str, caption: str) -> int:
    """Keeps a caption typed by hand; how many tokens it may have when that is too many, else 0. Raises DatasetError."""
    if len(caption) > MAX_CAPTION:
        raise DatasetError(f"a caption has at most {MAX_CAPTION} characters; shorten it")
    picture, caption = projects.picture(project, name), one_line(caption)
    with locked(projects.folder(project)):
        lines = sidecar_lines(picture)
        if lines is None or " ".join(lines) != caption:
            entry = {"kind": "typed", "find": "", "text": name}
            _write(projects.folder(project), entry, [(_sidecar(picture), caption + "\n")])
    tokens = estimate_tokens(caption)
    return tokens if tokens > TOKENS else 0


def record_captions(projects: Projects, project: str) -> None:
    """Notes all captions before a model writes over them, so that Undo brings them back."""
    folder = projects.folder(project)
    with locked(folder):
        files = dict.fromkeys(
            _sidecar(picture) for place, _, _ in picture_folders(folder) for picture in pictures_in(place)[0]
        )
        noted = [
            {"file": file.relative_to(folder).as_posix(), "before": _read(file), "after": None}
            for file in files
        ]
        _keep(folder, [*_entries(folder), {"kind": "model", "find": "", "text": "", "files": noted}])


@dataclass(frozen=True)
class UndoEntry:
    """What was taken back."""

    kind: str
    find: str
    text: str
    count: int
    kept: int  # captions that had changed since and stay as they are


def last_edit(projects: Projects, project: str) -> UndoEntry | None:
    """What `undo` would take back; None when there is nothing."""
    entries = _entries(projects.folder(project))
    return (
        UndoEntry(entries[-1]["kind"], entries[-1]["find"], entries[-1]["text"], len(entries[-1]["files"]), 0)
        if entries
        else None
    )


def undo_last(projects: Projects, project: str) -> UndoEntry:
    """Takes the last change back. Raises DatasetError when there is none."""
    folder = projects.folder(project)
    with locked(folder):
        entries = _entries(folder)
        if not entries:
            raise DatasetError("there is no change of captions to take back")
        entry, count, kept = entries[-1], 0, 0
        for noted in entry["files"]:
            file = folder / noted["file"]
            now = _read(file)
            if now == noted["before"]:
                continue
            if noted["after"] is not None and _digest(now) != noted["after"]:
                kept += 1
                continue
            if noted["before"] is None:
                file.unlink(missing_ok=True)
            elif file.parent.is_dir():
                write_atomically(file, noted["before"].encode("utf-8", "surrogateescape"))
            count += 1
        _keep(folder, entries[:-1])
    return UndoEntry(entry["kind"], entry["find"], entry["text"], count, kept)


def _sidecar(picture: Path) -> Path:
    """The file that holds a picture's caption, or would."""
    return next(
        (picture.with_suffix(suffix) for suffix in SIDECARS if picture.with_suffix(suffix).is_file()),
        picture.with_suffix(".txt"),
    )


def _write(folder: Path, entry: dict[str, Any], files: list[tuple[Path, str]]) -> None:
    """Notes what was there, then writes: a crash between leaves an undo of what did not happen, which does nothing."""
    if not files:
        return
    noted = [
        {"file": file.relative_to(folder).as_posix(), "before": _read(file), "after": _digest(text)}
        for file, text in files
    ]
    _keep(folder, [*_entries(folder), {**entry, "files": noted}])
    for file, text in files:
        write_atomically(file, text.encode())


def _read(file: Path) -> str | None:
    """A file's bytes as text that gives them back; None when there is none."""
    try:
        return file.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def _digest(text: str | None) -> str:
    return hashlib.sha256((text or "").encode("utf-8", "surrogateescape")).hexdigest()


def _entries(folder: Path) -> list[dict[str, Any]]:
    """Those that are whole: a file edited by hand or damaged undoes nothing."""
    try:
        found = json.loads((folder / IMPASTO_FOLDER / "captions-undo.json").read_text(encoding="ascii"))[
            "entries"
        ]
        return [entry for entry in found if _is_entry(folder, entry)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _is_entry(folder: Path, entry: Any) -> bool:
    noted = entry["files"]
    return all(isinstance(entry[key], str) for key in ("kind", "find", "text")) and all(
        isinstance(one["before"], (str, type(None)))
        and isinstance(one["after"], (str, type(None)))
        and Path(one["file"]).suffix in SIDECARS
        and (folder / one["file"]).resolve().is_relative_to(folder.resolve())
        for one in noted
    )


def _keep(folder: Path, entries: list[dict[str, Any]]) -> None:
    entries = entries[-_LEVELS:]
    data = json.dumps({"entries": entries})  # ASCII: bytes that are no UTF-8 survive as escapes
    while len(data) > _MOST_BYTES and len(entries) > 1:
        entries = entries[1:]
        data = json.dumps({"entries": entries})
    write_atomically(folder / IMPASTO_FOLDER / "captions-undo.json", data.encode())


def tag_counts(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Tags (what stands between commas) with how many captions have them, the most frequent first."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update({tag.strip() for tag in caption.split(",")} - {""})
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].casefold()))


def fused_tags(captions: Iterable[str], trigger: str) -> list[tuple[str, int]]:
    """Tags that hold the trigger word and more: `inkstyle cat` without its comma, `inkstylecat`. Sentences may hold it as a word."""
    word = one_line(trigger).casefold()
    if not word:
        return []
    alone = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    fused = []
    for tag, count in tag_counts(captions):
        low = tag.casefold()
        is_sentence = len(low.split()) > len(word.split()) + 4 and alone.search(low)
        if word in low and low != word and not is_sentence:
            fused.append((tag, count))
    return fused


def estimate_tokens(caption: str) -> int:
    """Roughly how many tokens CLIP makes of a caption, by a rule of thumb: a short word is one, a long one two or three,
    a mark or digit one, a letter of a script without spaces about two."""
    tokens = 0
    for part in re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", caption):
        wide = sum(ord(letter) > 0x2E7F for letter in part)
        narrow = len(part) - wide
        tokens += 2 * wide + (max(1, -(-(narrow - 1) // 6)) if narrow else 0)
    return tokens
