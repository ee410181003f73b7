"""Quick scan of a picture folder from file headers, which takes a moment for a thousand pictures.

Damaged pixel data is not noticed; `scan` decodes every picture.
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
    """Returns a manifest without digests.

    Pictures whose header can't be read are left out; an empty or missing folder has no items. Raises
    DatasetError if a caption file can't be read.
    """
    items: list[Item] = []
    overrides = read_overrides(folder)
    for subfolder, repeats, token in picture_folders(folder) if folder.is_dir() else ():
        rows, _ = metadata_captions(subfolder)
        for path in pictures_in(subfolder)[0]:
            size = _size(path)
            if size is None:
                continue
            row = rows.get(path.name, MetadataRow(token))
            override = overrides.get(path.relative_to(folder).as_posix(), Override())
            own_caption = sidecar_caption(path)
            items.append(
                Item(
                    path=os.path.abspath(path),
                    caption=with_trigger(row.caption if own_caption is None else own_caption, trigger),
                    width=size[0],
                    height=size[1],
                    digest="",
                    repeats=repeats * override.repeats,
                    weight=row.weight,
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
