"""Atomic writes of files and folders: readers see the old or the whole new content, also after a power cut.

Everything is written to a hidden sibling (`.tmp-*`) and then renamed onto its target, which the file system
does in one step. A killed process leaves its sibling behind; `runs.run.remove_temporary_files` removes those
of a run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
_numbers = itertools.count()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file; it survives a power cut once this function has returned."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(target: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yields a path beside `target` for a new file or folder, which the end of the block renames to `target`.

    If the block raises, the temporary file or folder is removed and `target` stays as it is. The last of
    several concurrent writers wins.

    Args:
        target: an existing file is replaced; a folder can only replace an empty or missing one.
        sync: flushes the content and the name to the disk before returning, which costs up to a second on
            slow disks; False for content that can be created again, such as preview images.
    """
    # Process, thread and number make the name unique: two threads may replace the same file at once.
    name = f"{TEMPORARY_PREFIX}{os.getpid()}-{threading.get_native_id()}-{next(_numbers)}"
    temporary = target.with_name(name)
    try:
        yield temporary
        if sync:
            _sync_content(temporary)
        temporary.replace(target)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(target.parent)


def _sync_content(path: Path) -> None:
    if not path.is_dir():
        with path.open("rb+") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _sync_content(Path(folder, name))
        sync_folder(Path(folder))


def sync_folder(path: Path) -> None:
    """Makes new and renamed entries of a folder survive a power cut; Windows needs no call for that."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
