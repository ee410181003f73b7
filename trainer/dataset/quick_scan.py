"""Quick scan of a picture folder from file headers, which takes a moment for a thousand pictures.

Damaged pixel data is not noticed; `scan` decodes every picture.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from trainer.dataset.captions import with_trigger
from trainer.dataset.folder import read_folder
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.overrides import Override, read_overrides
from trainer.dataset.pictures import upright_size
from trainer.errors import DatasetError


def quick_scan(folder: Path, *, trigger: str = "") -> Manifest:
    """Returns a manifest without digests.

    Pictures whose header can't be read are left out; an empty or missing folder has no items. Raises
    DatasetError if a caption file can't be read.
    """
    items: list[Item] = []
    overrides = read_overrides(folder)
    for picture in read_folder(folder).pictures if folder.is_dir() else ():
        size = _size(picture.path)
        if size is None:
            continue
        override = overrides.get(picture.name, Override())
        items.append(
            Item(
                path=os.path.abspath(picture.path),
                caption=with_trigger(picture.caption(), trigger),
                width=size[0],
                height=size[1],
                digest="",
                repeats=picture.files.repeats * override.repeats,
                weight=picture.row.weight,
                crop=override.crop,
            )
        )
    return Manifest(folder=os.path.abspath(folder), items=tuple(items))


def _size(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _cached_size(os.fspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=20_000)
def _cached_size(path: str, modified_ns: int, size_bytes: int) -> tuple[int, int] | None:
    """Returns the upright (width, height) of a picture; None if its header can't be read.

    Args:
        modified_ns, size_bytes: identify the state of the file, so that a changed file is read again.
    """
    del modified_ns, size_bytes  # only keys of the cache
    try:
        return upright_size(Path(path))
    except DatasetError:
        return None
