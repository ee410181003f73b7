"""Captions of one upload: new ones are written at once, those that replace others together, so that Undo restores them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trainer.atomic_files import write_atomically
from trainer.dataset.captions import caption_lines, non_empty_lines
from trainer.errors import DatasetError
from ui.store.caption_undo import write_captions
from ui.store.naming import MAX_CAPTION
from ui.store.projects import locked


@dataclass
class UploadedCaptions:
    """The captions of one upload to the project in `folder`."""

    folder: Path
    _replacing: dict[Path, str] = field(default_factory=dict)  # file -> text, where the file has another text

    def add(self, file: Path, text: str) -> bool:
        """Stores a caption in its file, or for `finish` if the file has another one.

        Returns:
            False if the caption was too long and lost its end.
        """
        lines = non_empty_lines(text)
        whole = "\n".join(lines)
        content = whole[:MAX_CAPTION].rstrip() + "\n"
        if not file.exists():
            write_atomically(file, content.encode())
        elif _has_lines(file, non_empty_lines(content)):
            self._replacing.pop(file, None)
        else:
            self._replacing[file] = content
        return len(whole) <= MAX_CAPTION

    def finish(self) -> list[str]:
        """Writes the captions that replace others as one step of Undo; returns the names of their files."""
        files, self._replacing = list(self._replacing.items()), {}
        with locked(self.folder):
            write_captions(self.folder, {"kind": "uploaded", "find": "", "text": ""}, files)
        return [file.relative_to(self.folder).as_posix() for file, _ in files]


def _has_lines(file: Path, lines: list[str]) -> bool:
    try:
        return caption_lines(file) == lines
    except DatasetError:  # it can't be read
        return False
