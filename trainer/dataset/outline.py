"""A picture folder at a glance: sizes from the files' headers, captions, how often each counts. A thousand pictures in a moment.

What is read so may still be damaged inside; `scan` finds out.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from pathlib import Path

from PIL import Image

from trainer.dataset.captions import Listed, metadata_captions, sidecar_caption, with_trigger
from trainer.dataset.choices import Choice, read_choices
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.pictures import FORMATS
from trainer.dataset.scan import pictures_in, places

_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112


def outline(folder: Path, *, trigger: str = "") -> Manifest:
    """A manifest without digests; pictures whose header can't be read are left out, and an empty folder has no items."""
    items: list[Item] = []
    choices = read_choices(folder)
    for place, repeats, token in places(folder) if folder.is_dir() else ():
        listed, _ = metadata_captions(place)
        for path in pictures_in(place)[0]:
            try:
                facts = path.stat()
                size = _size(os.fspath(path), facts.st_mtime_ns, facts.st_size)
            except OSError:
                continue
            if size is None:
                continue
            line, choice = listed.get(path.name, Listed(token)), choices.get(path.relative_to(folder).as_posix(), Choice())
            said = sidecar_caption(path)
            caption = with_trigger(line.caption if said is None else said, trigger)
            items.append(
                Item(
                    path=os.path.abspath(path), caption=caption, width=size[0], height=size[1], digest="",
                    repeats=repeats * choice.repeats, weight=line.weight, crop=choice.crop,
                )
            )  # fmt: skip
    return Manifest(folder=os.path.abspath(folder), items=tuple(items))


@functools.lru_cache(maxsize=20_000)
def _size(path: str, made: int, size_bytes: int) -> tuple[int, int] | None:
    """Width and height, turned upright, of the picture that a file held when it was `made`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
                with contextlib.suppress(Exception):  # a PNG may hold it behind its pixels, which `scan` reads
                    if picture.getexif().get(_ORIENTATION) in _TURNED:
                        return height, width
                return width, height
    except Exception:  # as in open_picture: Pillow's readers raise nearly anything
        return None
