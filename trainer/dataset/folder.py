"""Pictures of a dataset folder with their captions and masks, as `layout` assigns them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.captions import MetadataRow, caption_lines, read_metadata
from trainer.dataset.layout import (
    MASK_FOLDER,
    Layout,
    NameIndex,
    PictureFiles,
    folded,
    is_hidden,
    layout,
)
from trainer.errors import DatasetError
from trainer.text_files import encoding_notes


@dataclass(frozen=True)
class FoundPicture:
    """One picture of a folder."""

    folder: Path  # of the dataset
    files: PictureFiles
    row: MetadataRow  # of metadata.jsonl; without one, the token of a kohya folder is its caption
    has_row: bool = False  # whether metadata.jsonl names it

    @property
    def name(self) -> str:
        """The path in the folder of the dataset, with /."""
        return self.files.name

    @property
    def path(self) -> Path:
        """The file of the picture."""
        return self.folder / self.files.name

    @property
    def mask_file(self) -> Path | None:
        """The file of the mask; None without one."""
        return self.folder / self.files.mask if self.files.mask else None

    @property
    def caption_file(self) -> Path:
        """The caption file, or the one to create."""
        return self.folder / self.files.caption if self.files.caption else self.path.with_suffix(".txt")

    def caption_lines(self) -> list[str] | None:
        """Returns the non-empty lines of the caption file; None without one. Raises DatasetError."""
        return caption_lines(self.folder / self.files.caption) if self.files.caption else None

    def caption(self) -> str:
        """Returns the caption in one line, "" without one. Raises DatasetError."""
        return " ".join(self.lines())

    def lines(self) -> list[str]:
        """Returns the lines of the caption, which is that of metadata.jsonl where no caption file exists.

        Raises DatasetError.
        """
        lines = self.caption_lines()
        return [self.row.caption] if lines is None else lines


@dataclass(frozen=True)
class PictureFolder:
    """All pictures of a folder, and sentences on files that are not used."""

    pictures: tuple[FoundPicture, ...]
    problems: tuple[str, ...] = ()
    metadata: tuple[tuple[str, Path], ...] = ()  # (relative name, path) of each metadata.jsonl

    def notes(self) -> list[str]:
        """Returns sentences on caption files that are not Unicode, with the encodings that were guessed."""
        captions = [(one.files.caption, one.caption_file) for one in self.pictures if one.files.caption]
        return encoding_notes((*captions, *self.metadata))


def read_folder(folder: Path) -> PictureFolder:
    """Returns the pictures of a folder and its sub-folders, without opening them.

    Raises:
        DatasetError: a folder or metadata.jsonl can't be read.
    """
    files = layout(names_in(folder))
    rows, problems = metadata_rows(files, lambda name: folder / name)
    pictures = tuple(
        FoundPicture(folder, one, rows.get(one.name, MetadataRow(one.token)), one.name in rows)
        for one in files.pictures
    )
    metadata = tuple((name, folder / name) for name in files.metadata)
    return PictureFolder(pictures, (*problems, *files.problems()), metadata)


def names_in(folder: Path) -> list[str]:
    """Returns the relative names of the files in a folder and its sub-folders, except hidden folders.

    Links to folders are followed, each target once. Raises DatasetError if a folder can't be read.
    """
    names: list[str] = []
    waiting, seen = [""], {os.path.realpath(folder)}
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    if entry.is_file():
                        names.append(prefix + entry.name)
                    elif entry.is_dir() and not is_hidden(entry.name):
                        target = os.path.realpath(entry.path)
                        if target not in seen:
                            seen.add(target)
                            waiting.append(f"{prefix}{entry.name}/")
        except OSError as error:
            place = prefix.rstrip("/") or folder.name
            raise DatasetError(f"{place} can't be read ({error.strerror}); check its permissions") from None
    return names


def metadata_rows(
    files: Layout, path_of: Callable[[str], Path | None]
) -> tuple[dict[str, MetadataRow], list[str]]:
    """Returns ({picture: its row of metadata.jsonl}, problems). A row of an inner folder replaces one of an
    outer folder.

    Args:
        path_of: returns the file with a name of the layout; None if there is none.

    Raises:
        DatasetError: a metadata.jsonl can't be read.
    """
    rows: dict[str, MetadataRow] = {}
    problems: list[str] = []
    index = NameIndex()
    for picture in files.pictures:
        index.add("", picture.name, picture.name)
    for name in files.metadata:
        path = path_of(name)
        if path is None:
            continue
        own_rows, own_problems = read_metadata(path)
        problems += [f"{name} {problem}" for problem in own_problems]
        prefix = name.rpartition("/")[0]
        for file_name, row in own_rows.items():
            location = "/".join(part for part in (prefix, file_name.replace("\\", "/")) if part)
            _, pictures = index.find("", location.removeprefix("./"))
            rows.update(dict.fromkeys(pictures, row))
            if not pictures:
                problems.append(f"{name} names {file_name}, which does not exist")
    return rows, problems


def picture_files(picture: Path) -> PictureFiles:
    """Returns the caption and the mask of one picture, with names relative to its folder.

    Only files with a similar name are looked through, so that this stays quick in a folder of thousands.
    """
    start = folded(picture.stem)
    names = [picture.name]
    for prefix in ("", *_mask_folders(picture.parent)):
        try:
            with os.scandir(picture.parent / prefix) as entries:
                similar = (entry for entry in entries if folded(entry.name).startswith(start))
                names += [prefix + entry.name for entry in similar if entry.is_file()]
        except OSError:  # reported when the picture itself is read
            continue
    found = layout(names).pictures
    return next((one for one in found if one.name == picture.name), PictureFiles(picture.name))


def _mask_folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [
                f"{entry.name}/" for entry in entries if entry.name.lower() == MASK_FOLDER and entry.is_dir()
            ]
    except OSError:
        return []


def caption_file(picture: Path) -> Path:
    """Returns the file with a picture's caption, or the one to create."""
    return picture.parent / (picture_files(picture).caption or f"{picture.stem}.txt")


def sidecar_lines(picture: Path) -> list[str] | None:
    """Returns the non-empty lines of a picture's caption file; None without one. Raises DatasetError."""
    name = picture_files(picture).caption
    return caption_lines(picture.parent / name) if name else None


def sidecar_caption(picture: Path) -> str | None:
    """Returns all lines of a picture's caption file as one; None without a file. Raises DatasetError."""
    lines = sidecar_lines(picture)
    return None if lines is None else " ".join(lines)


def mask_file(picture: Path) -> Path | None:
    """Returns the file of a picture's mask; None without one."""
    name = picture_files(picture).mask
    return picture.parent / name if name else None
