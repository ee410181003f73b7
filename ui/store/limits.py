"""How much the studio takes in: flags of `app.py`, said beside the drop box, held to on the server."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import TrainerError

MB, GB = 1_000_000, 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """All in bytes, except where the name says otherwise."""

    picture_bytes: int = 200 * MB  # one picture, as it is dropped
    picture_pixels: int = 50_000_000  # one picture, asked of its header before anything is decoded
    file_bytes: int = 4 * GB  # one zip of pictures, or one LoRA file
    project_bytes: int = 20 * GB  # all pictures of a project
    project_pictures: int = 5_000
    studio_bytes: int = 200 * GB  # all projects of all users
    free_bytes: int = 2 * GB  # stay free on the disk

    def check_free_space(self, folder: Path, incoming_bytes: int = 0) -> None:
        """Raises TrainerError where `incoming_bytes` more would fill the disk that holds `folder`."""
        place = next(p for p in (folder, *folder.parents) if p.exists())
        if shutil.disk_usage(place).free - incoming_bytes < self.free_bytes:
            raise TrainerError(
                f"the studio's disk is nearly full ({self.free_bytes / GB:g} GB stay free); remove what you no longer need"
            )


def size_bytes(folder: Path) -> int:
    """What all files under a folder take."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # removed meanwhile
            continue
    return total
