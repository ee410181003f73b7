"""Hashes of model files as kohya's scripts and A1111 compute them, without torch.

short hash   SHA-256 of the 64 KiB at 1 MiB, its first eight digits
hash         SHA-256 of the whole file

The whole hash of a checkpoint of 6.9 GB takes 5 to 30 seconds, so it is stored by path, size and
time of the last change:

    <cache>/hashes/<digest of these>      the 64 digits
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from trainer.atomic_files import write_atomically

_WINDOW_START, _WINDOW = 0x100000, 0x10000
_CHUNK = 1 << 20


def short_hash(path: Path) -> str:
    """The hash that A1111 showed before 2023; equal for all files of less than 1 MiB. Raises OSError."""
    with path.open("rb") as file:
        file.seek(_WINDOW_START)
        return hashlib.sha256(file.read(_WINDOW)).hexdigest()[:8]


def file_hash(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a file, 64 digits, from the cache where it is known. Raises OSError.

    Args:
        cache: the folder of caches; None computes the hash and stores nothing.
    """
    state = path.stat()
    key = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
    entry = cache / "hashes" / hashlib.sha256(os.fsencode(key)).hexdigest() if cache else None
    if entry is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            known = entry.read_text(encoding="ascii")
            if re.fullmatch("[0-9a-f]{64}", known):
                return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    if entry is not None:
        with contextlib.suppress(OSError):  # a full disk costs only the time of the next computation
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(entry, digest.hexdigest().encode())
    return digest.hexdigest()


class HashesInBackground:
    """Hashes of some files, computed in a thread while a training runs.

    hashlib and file reads release Python's lock, so the training is not delayed. The thread ends with
    the process.

    Args:
        files: paths by name.
        cache: the folder of caches.
    """

    def __init__(self, files: Mapping[str, Path], cache: Path) -> None:
        self._hashes: dict[str, tuple[str, str]] = {}
        self._thread = threading.Thread(target=self._compute, args=(files, cache), daemon=True)
        self._thread.start()

    def _compute(self, files: Mapping[str, Path], cache: Path) -> None:
        for name, path in files.items():
            with contextlib.suppress(OSError):  # a file that was moved away has no hash
                self._hashes[name] = short_hash(path), file_hash(path, cache)

    def result(self) -> dict[str, tuple[str, str]]:
        """(short hash, hash) by name, when all are computed; a file that can't be read has none."""
        self._thread.join()
        return self._hashes
