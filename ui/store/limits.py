"""Limits of uploads: set by flags of `app.py`, shown beside the upload box, enforced by the server."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import TrainerError

MB, GB = 1_000_000, 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits in bytes, unless the name has another unit."""

    picture_bytes: int = 200 * MB  # one uploaded picture
    picture_pixels: int = 50_000_000  # one picture; read from its header before it is decoded
    file_bytes: int = 4 * GB  # one zip of pictures, or one LoRA file
    project_bytes: int = 20 * GB  # all pictures of a project
    project_pictures: int = 5_000
    studio_bytes: int = 200 * GB  # all projects of all users
    free_bytes: int = 2 * GB  # that stay free on the disk

    def check_free_space(self, folder: Path, incoming_bytes: int = 0) -> None:
        """Checks that `incoming_bytes` fit on the disk of a folder, which may not exist yet.

        Raises:
            TrainerError: less than `free_bytes` would stay free.
        """
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if shutil.disk_usage(existing).free - incoming_bytes < self.free_bytes:
            raise TrainerError(
                f"the studio's disk is nearly full ({self.free_bytes / GB:g} GB must stay free); "
                "remove what you no longer need"
            )


def size_bytes(folder: Path) -> int:
    """Returns the size of all files in a folder and its subfolders; 0 if the folder does not exist."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # removed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
