"""Scan of a picture folder into a manifest: every picture is decoded once, and captions are found.

trainer/dataset/layout.py describes which files of a folder are read. `.impasto/` has the settings of single
pictures (trainer/dataset/overrides.py).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from trainer.dataset.captions import with_trigger
from trainer.dataset.folder import FoundPicture, read_folder
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.overrides import Override, read_overrides
from trainer.dataset.pictures import SUPPORTED_WORDS, open_picture
from trainer.errors import DatasetError
from trainer.prompt_syntax import caption_notes


def scan(folder: Path, *, trigger: str = "") -> Manifest:
    """Returns the pictures of a folder and of all its sub-folders.

    A picture that can't be read is left out and becomes a problem of the manifest.

    Raises:
        DatasetError: the folder is missing or holds no readable picture.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder.name or folder} is not a folder; give the folder that holds your pictures"
        )
    items: list[Item] = []
    found = read_folder(folder)
    problems = list(found.problems)
    overrides = read_overrides(folder)
    for picture in found.pictures:
        try:
            items.append(_item(picture, overrides.get(picture.name, Override()), trigger))
        except DatasetError as error:
            problems.append(str(error).replace(picture.path.name, picture.name, 1))
        except OSError:
            problems.append(f"{picture.name} can't be read")
    if not items:
        reason = f": {problems[0]}" if problems else ""
        raise DatasetError(
            f"{folder.name or folder} holds no picture to train on ({SUPPORTED_WORDS}){reason}"
        )
    return Manifest(
        folder=os.path.abspath(folder),
        items=tuple(items),
        problems=tuple(problems),
        notes=(*found.notes(), *caption_notes((Path(item.path).name, item.caption) for item in items)),
    )


def _item(found: FoundPicture, override: Override, trigger: str) -> Item:
    picture = open_picture(found.path)
    lines = found.caption_lines()
    caption = found.row.caption if lines is None else " ".join(lines)
    several = lines if lines and len(lines) > 1 else ()
    return Item(
        path=os.path.abspath(found.path),
        caption=with_trigger(caption, trigger),
        width=picture.width,
        height=picture.height,
        digest=hashlib.sha256(found.path.read_bytes()).hexdigest(),
        repeats=found.files.repeats * override.repeats,
        weight=found.row.weight,
        captions=tuple(with_trigger(line, trigger) for line in several),
        crop=override.crop,
    )
