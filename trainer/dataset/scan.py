"""Scan of a picture folder into a manifest: every picture is decoded once, and captions are found.

FOLDER/
  owl.png  owl.txt       a picture and its caption (also .caption)
  metadata.jsonl         captions of pictures without a caption file
  owl.mask.png           a mask (trainer/dataset/augmentations.py), which is no picture
  10_sks cat/            kohya's layout: 10 repeats of each picture, "sks cat" where a caption is missing
  .impasto/              settings of single pictures (trainer/dataset/overrides.py); never scanned
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path

from trainer.dataset.captions import (
    MetadataRow,
    caption_file_notes,
    kohya_folder,
    metadata_captions,
    sidecar_lines,
    with_trigger,
)
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.overrides import Override, read_overrides
from trainer.dataset.pictures import SUFFIXES, UNSUPPORTED_SUFFIXES, open_picture
from trainer.errors import DatasetError


def scan(folder: Path, *, trigger: str = "") -> Manifest:
    """Returns the pictures of a folder and of its `NN_name` subfolders.

    A picture that can't be read is left out and becomes a problem of the manifest.

    Raises:
        DatasetError: the folder is missing or holds no readable picture.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder.name or folder} is not a folder; give the folder that holds your pictures"
        )
    items: list[Item] = []
    problems: list[str] = []
    notes: list[str] = []
    overrides = read_overrides(folder)
    for subfolder, repeats, token in picture_folders(folder):
        rows, bad_rows = metadata_captions(subfolder)
        pictures, bad_names = pictures_in(subfolder)
        names = {path.name for path in pictures}
        absent = [f"metadata.jsonl names {name}, which does not exist" for name in rows if name not in names]
        problems += bad_rows + bad_names + absent
        notes += caption_file_notes(subfolder, pictures)
        for path in pictures:
            override = overrides.get(path.relative_to(folder).as_posix(), Override())
            row = rows.get(path.name, MetadataRow(token))
            try:
                items.append(_item(path, row, override, repeats, trigger))
            except DatasetError as error:
                problems.append(str(error))
            except OSError:
                problems.append(f"{path.name} can't be read")
    if not items:
        reason = f": {problems[0]}" if problems else ""
        kinds = "png, jpg, webp, bmp, tiff, gif or avif"
        raise DatasetError(f"{folder.name or folder} holds no picture to train on ({kinds}){reason}")
    return Manifest(
        folder=os.path.abspath(folder), items=tuple(items), problems=tuple(problems), notes=tuple(notes)
    )


def _item(path: Path, row: MetadataRow, override: Override, repeats: int, trigger: str) -> Item:
    picture = open_picture(path)
    lines = sidecar_lines(path)
    caption = row.caption if lines is None else " ".join(lines)
    several = lines if lines and len(lines) > 1 else ()
    return Item(
        path=os.path.abspath(path),
        caption=with_trigger(caption, trigger),
        width=picture.width,
        height=picture.height,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        repeats=repeats * override.repeats,
        weight=row.weight,
        captions=tuple(with_trigger(line, trigger) for line in several),
        crop=override.crop,
    )


def picture_folders(folder: Path) -> list[tuple[Path, int, str]]:
    """Returns (folder, repeats, token) of the folder itself and of its `NN_name` subfolders."""
    with os.scandir(folder) as entries:
        subfolders = sorted(folder / entry.name for entry in entries if entry.is_dir())
    kohya = [(path, named) for path in subfolders if (named := kohya_folder(path.name))]
    return [(folder, 1, ""), *((path, repeats, token) for path, (repeats, token) in kohya)]


def pictures_in(folder: Path) -> tuple[list[Path], list[str]]:
    """Returns (files that can be pictures, sorted by name; problems with unsupported formats and names)."""
    pictures, problems = [], []
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    for name in names:
        if _suffix(name) in UNSUPPORTED_SUFFIXES:
            problems.append(f"{name} has a format that is not supported; save it as png or jpg")
        elif is_picture_name(name):
            if is_displayable_name(name):
                pictures.append(folder / name)
            else:
                problems.append(f"{name!a} has a name that can't be read; rename it")
    return pictures, problems


def is_picture_name(name: str) -> bool:
    """Returns whether a file name has the suffix of a picture and is no mask."""
    return _suffix(name) in SUFFIXES and not name.lower().endswith(".mask.png")


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def is_displayable_name(name: str) -> bool:
    """Returns whether a file name can be shown and stored as UTF-8.

    Such a name has no control characters and no undecodable bytes.
    """
    # Undecodable bytes of file names are surrogates in Python, category Cs.
    return name.isprintable() or all(unicodedata.category(letter) not in ("Cc", "Cs") for letter in name)
