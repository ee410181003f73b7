"""Settings of the metadata in the LoRA file, which model browsers show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trainer.config import declaration

setting = partial(declaration.setting, group="file")


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """Settings of the file's metadata."""

    title: str = setting("", "Title", help="Title in model browsers; empty takes the name.")
    author: str = setting("", "Author", help="Author in model browsers.")
    licence: str = setting("", "Licence", help="Licence under which others may use the file.")
    description: str = setting("", "Description", help="Description in model browsers.")
    tags: str = setting(
        "", "Tags", help="Tags in model browsers, separated by commas; empty takes the preset's name."
    )
    thumbnail: str = setting(
        "picture",
        "Thumbnail",
        choices=("picture", "none"),
        help="Picture that model browsers show. picture stores your first picture in the file, at most 256 "
        "px wide and high; none stores no picture.",
    )
    save_captions: bool = setting(
        False,
        "Save captions in metadata",
        help="Stores folder names and tag counts in the file, where everyone can read them.",
    )
