"""A picture folder at a glance: sizes from the files' headers, captions, how often each counts. A thousand pictures in a moment.

What is read so may still be damaged inside; `scan` finds out.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from trainer.dataset.captions import MetadataRow, metadata_captions, sidecar_caption, with_trigger
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.overrides import Override, read_overrides
from trainer.dataset.pictures import upright_size
from trainer.dataset.scan import picture_folders, pictures_in
from trainer.errors import DatasetError


def quick_scan(folder: Path, *, trigger: str = "") -> Manifest:
    """A manifest without digests; pictures whose header can't be read are left out, and an empty folder has no items."""
    items: list[Item] = []
    choices = read_overrides(folder)
    for place, repeats, token in picture_folders(folder) if folder.is_dir() else ():
        listed, _ = metadata_captions(place)
        for path in pictures_in(place)[0]:
            try:
                facts = path.stat()
                size = _size(os.fspath(path), facts.st_mtime_ns, facts.st_size)
            except OSError:
                continue
            if size is None:
                continue
            line, choice = (
                listed.get(path.name, MetadataRow(token)),
                choices.get(path.relative_to(folder).as_posix(), Override()),
            )
            said = sidecar_caption(path)
            caption = with_trigger(line.caption if said is None else said, trigger)
            items.append(
                Item(
                    path=os.path.abspath(path),
                    caption=caption,
                    width=size[0],
                    height=size[1],
                    digest="",
                    repeats=repeats * choice.repeats,
                    weight=line.weight,
                    crop=choice.crop,
                )
            )
    return Manifest(folder=os.path.abspath(folder), items=tuple(items))


@functools.lru_cache(maxsize=20_000)
def _size(path: str, made: int, size_bytes: int) -> tuple[int, int] | None:
    """Width and height, turned upright, of the picture that a file held when it was `made`."""
    del made, size_bytes  # they tell one state of the file from another
    try:
        return upright_size(Path(path))
    except DatasetError:
        return None
