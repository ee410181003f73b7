"""Atomic writes of files and folders that survive a power cut."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or none of it, also after a power cut."""
    # Of this thread alone: two may write the same file at once, and the last one wins.
    half_written = path.with_name(f".tmp-{os.getpid()}-{threading.get_native_id()}")
    try:
        with half_written.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        half_written.replace(path)
    except BaseException:
        half_written.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes renames and new names in a folder survive a power cut (Windows does so by itself)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
