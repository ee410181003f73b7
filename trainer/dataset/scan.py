"""A folder of pictures becomes a manifest: each picture opened once, bad ones named, captions found."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path

from trainer.dataset.captions import MetadataRow, kohya_folder, metadata_captions, sidecar_lines, with_trigger
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.overrides import Override, read_overrides
from trainer.dataset.pictures import SUFFIXES, UNSUPPORTED_SUFFIXES, open_picture
from trainer.errors import DatasetError


def scan(folder: Path, *, trigger: str = "") -> Manifest:
    """Pictures of a folder, or of its kohya-style `NN_name` sub-folders.

    Raises DatasetError when there is nothing to train on; a bad picture is a problem of the manifest instead.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder.name or folder} is not a folder; give the folder that holds your pictures"
        )
    items: list[Item] = []
    problems: list[str] = []
    choices = read_overrides(folder)
    for place, repeats, token in picture_folders(folder):
        listed, unreadable = metadata_captions(place)
        problems += unreadable
        pictures, odd = pictures_in(place)
        problems += odd
        names = {path.name for path in pictures}
        problems += [
            f"metadata.jsonl names {name}, which is not there" for name in listed if name not in names
        ]
        for path in pictures:
            try:
                picture = open_picture(path)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                lines = sidecar_lines(path)
            except (DatasetError, OSError) as error:
                problems.append(
                    str(error) if isinstance(error, DatasetError) else f"{path.name} can't be read"
                )
                continue
            line, choice = (
                listed.get(path.name, MetadataRow(token)),
                choices.get(path.relative_to(folder).as_posix(), Override()),
            )
            caption = line.caption if lines is None else " ".join(lines)
            items.append(
                Item(
                    path=os.path.abspath(path),
                    caption=with_trigger(caption, trigger),
                    width=picture.width,
                    height=picture.height,
                    digest=digest,
                    repeats=repeats * choice.repeats,
                    weight=line.weight,
                    captions=tuple(with_trigger(text, trigger) for text in lines)
                    if lines and len(lines) > 1
                    else (),
                    crop=choice.crop,
                )
            )
    if not items:
        reason = f": {problems[0]}" if problems else ""
        kinds = "png, jpg, webp, bmp, tiff, gif or avif"
        raise DatasetError(f"{folder.name or folder} holds no picture to train on ({kinds}){reason}")
    return Manifest(folder=os.path.abspath(folder), items=tuple(items), problems=tuple(problems))


def picture_folders(folder: Path) -> list[tuple[Path, int, str]]:
    """(folder, repeats, token): the folder itself, and its `NN_name` sub-folders."""
    found = [(folder, 1, "")]
    with os.scandir(folder) as entries:
        subs = sorted(folder / entry.name for entry in entries if entry.is_dir())
    for sub in subs:
        named = kohya_folder(sub.name)
        if named:
            found.append((sub, *named))
    return found


def pictures_in(place: Path) -> tuple[list[Path], list[str]]:
    """Files of one folder that may be pictures, by name, and pictures of kinds that are not read."""
    found, problems = [], []
    with os.scandir(place) as entries:
        files = sorted(entry.name for entry in entries if entry.is_file())
    for name in files:
        if _suffix(name) in UNSUPPORTED_SUFFIXES:
            problems.append(f"{name} is a kind of picture that is not read; save it as png or jpg")
        elif is_picture_name(name):
            if is_displayable_name(name):
                found.append(place / name)
            else:
                problems.append(f"{name!a} has a name that can't be read; rename it")
    return found, problems


def is_picture_name(name: str) -> bool:
    """Whether a file of this name may be a picture, and is no mask."""
    return _suffix(name) in SUFFIXES and not name.lower().endswith(".mask.png")


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def is_displayable_name(name: str) -> bool:
    """False for control characters, or bytes that are no text: such a name can't be shown or written down."""
    return name.isprintable() or all(unicodedata.category(c) not in ("Cc", "Cs") for c in name)
