"""A folder of pictures becomes a manifest: each picture opened once, bad ones named, captions found."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from trainer.dataset.captions import kohya_folder, metadata_captions, sidecar_caption, with_trigger
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.pictures import SUFFIXES, open_picture
from trainer.errors import DatasetError


def scan(folder: Path, *, trigger: str = "") -> Manifest:
    """Pictures of a folder, or of its kohya-style `NN_name` sub-folders.

    Raises DatasetError when there is nothing to train on; a bad picture is a problem of the manifest instead.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; give the folder that holds your pictures")
    items: list[Item] = []
    problems: list[str] = []
    for place, repeats, token in _places(folder):
        listed, unreadable = metadata_captions(place)
        problems += unreadable
        pictures = [path for path in sorted(place.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
        names = {path.name for path in pictures}
        problems += [f"metadata.jsonl names {name}, which is not there" for name in listed if name not in names]
        for path in pictures:
            try:
                picture = open_picture(path)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            except (DatasetError, OSError) as error:
                problems.append(str(error) if isinstance(error, DatasetError) else f"{path.name} can't be read")
                continue
            caption = sidecar_caption(path)
            if caption is None:
                caption = listed.get(path.name, token)
            items.append(
                Item(
                    path=os.path.abspath(path),
                    caption=with_trigger(caption, trigger),
                    width=picture.width,
                    height=picture.height,
                    digest=digest,
                    repeats=repeats,
                )
            )
    if not items:
        reason = f": {problems[0]}" if problems else ""
        kinds = "png, jpg, webp, bmp, tiff, gif or avif"
        raise DatasetError(f"{folder} holds no picture to train on ({kinds}){reason}")
    return Manifest(folder=os.path.abspath(folder), items=tuple(items), problems=tuple(problems))


def _places(folder: Path) -> list[tuple[Path, int, str]]:
    """(folder, repeats, token): the folder itself, and its `NN_name` sub-folders."""
    places = [(folder, 1, "")]
    for sub in sorted(path for path in folder.iterdir() if path.is_dir()):
        named = kohya_folder(sub.name)
        if named:
            places.append((sub, *named))
    return places
