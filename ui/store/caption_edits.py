"""Changes of captions: one typed by hand, or many at once. Every change can be undone (caption_undo.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.captions import non_empty_lines, one_line
from trainer.dataset.folder import caption_file, read_folder, sidecar_lines
from trainer.errors import DatasetError
from ui.store.caption_text import WINDOW_TOKENS, estimate_tokens
from ui.store.caption_undo import write_captions
from ui.store.naming import MAX_CAPTION
from ui.store.projects import Projects, locked

KINDS = ("replace", "prepend", "append", "remove", "apart")
_PUNCTUATION = ",.;:!?"


@dataclass(frozen=True)
class CaptionEdit:
    """One change of many captions.

    Its kind is "replace" (find and replace), "prepend" or "append" (add a text), "remove" (a tag), or "apart" (make the
    trigger word a tag of its own).
    """

    kind: str
    find: str = ""  # for "remove" the tag, for "apart" the trigger word
    text: str = ""

    def __post_init__(self) -> None:
        """Raises DatasetError for an unknown kind or a text that is too long."""
        if self.kind not in KINDS:
            raise DatasetError("choose what to change in the captions")
        if any(len(part) > MAX_CAPTION for part in (self.find, self.text)):
            raise DatasetError(f"that is longer than {MAX_CAPTION} characters; shorten it")

    @property
    def does_nothing(self) -> bool:
        """True if the necessary text is empty."""
        return not (self.text.strip() if self.kind in ("prepend", "append") else self.find.strip())

    def of(self, caption: str) -> str:
        """Returns one caption after the edit."""
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
            removed = one_line(self.find).casefold()
            changed = [tag for tag in tags if tag.casefold() != removed]
        else:
            changed = [part for tag in tags for part in _split_at_trigger(tag, one_line(self.find))]
        return caption if changed == tags else ", ".join(tag for tag in changed if tag)


def _joined(first: str, second: str) -> str:
    """Joins two texts with a comma, unless one has punctuation there already."""
    first, second = first.strip(), second.strip()
    if not first or not second:
        return first or second
    has_punctuation = first[-1] in _PUNCTUATION or second[0] in _PUNCTUATION
    return f"{first} {second}" if has_punctuation else f"{first}, {second}"


def _split_at_trigger(tag: str, trigger: str) -> list[str]:
    """Splits `inkstyle cat`, `inkstylecat` and `cat inkstyle` into the trigger word and the rest."""
    low, word = tag.casefold(), trigger.casefold()
    # For a few letters, such as ß, casefold changes the length; positions in `low` are then not those in `tag`.
    if low == word or not word or len(low) != len(tag):
        return [tag]
    if low.startswith(word):
        return [tag[: len(trigger)], tag[len(trigger) :].strip(" -_")]
    if low.endswith(word):
        return [tag[: -len(trigger)].strip(" -_"), tag[-len(trigger) :]]
    return [tag]


@dataclass(frozen=True)
class CaptionChange:
    """The effect of an edit on one caption file."""

    name: str  # of the picture
    file: Path
    before: tuple[str, ...]  # lines
    after: tuple[str, ...]


def changes(projects: Projects, project: str, edit: CaptionEdit) -> list[CaptionChange]:
    """Returns what an edit would change, by picture.

    Raises:
        DatasetError: there is no such project, or a caption would be too long.
    """
    root = projects.folder(project)
    if edit.does_nothing:
        return []
    changed: list[CaptionChange] = []
    seen: set[Path] = set()
    for picture in read_folder(root).pictures:
        file = picture.caption_file
        if file in seen:  # pictures such as art.png and art.jpg share a caption
            continue
        seen.add(file)
        lines = picture.caption_lines()
        if lines is None:
            lines = [picture.row.caption]
        before, after = tuple(lines), tuple(edit.of(line) for line in lines or [""])
        if after != (before or ("",)):
            changed.append(CaptionChange(picture.name, file, before, after))
    for change in changed:
        if len(" ".join(change.after)) > MAX_CAPTION:
            raise DatasetError(
                f"the caption of {change.name} would have more than {MAX_CAPTION} characters; shorten it first"
            )
    return changed


def apply_edit(projects: Projects, project: str, edit: CaptionEdit) -> int:
    """Applies an edit and returns the number of changed captions. Raises DatasetError."""
    folder = projects.folder(project)
    with locked(folder):
        changed = changes(projects, project, edit)
        files = [(change.file, "\n".join(line for line in change.after if line) + "\n") for change in changed]
        write_captions(folder, {"kind": edit.kind, "find": edit.find, "text": edit.text}, files)
    return len(changed)


def save_caption(projects: Projects, project: str, name: str, caption: str) -> int:
    """Stores a caption typed by hand with its lines; returns its estimated tokens if they don't fit one window, otherwise 0.

    Raises:
        DatasetError: there is no such picture, or the caption is too long.
    """
    if len(caption) > MAX_CAPTION:
        raise DatasetError(f"a caption has at most {MAX_CAPTION} characters; shorten it")
    picture, lines = projects.picture(project, name), non_empty_lines(caption)
    folder = projects.folder(project)
    with locked(folder):
        if sidecar_lines(picture) != lines:
            entry = {"kind": "typed", "find": "", "text": name}
            write_captions(folder, entry, [(caption_file(picture), "\n".join(lines) + "\n")])
    tokens = estimate_tokens(" ".join(lines))
    return tokens if tokens > WINDOW_TOKENS else 0
