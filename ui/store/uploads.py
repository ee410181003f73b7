"""Uploaded files: Gradio stores what browsers send under one folder of the studio, for all users.

A path that a browser sends back is accepted only if the same user uploaded the file: the owner is recorded when the file
arrives. Gradio stores the same file from two users under one path, so a path has a set of owners.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError

MAX_AGE_SECONDS = 3600  # a file that no handler has taken by then was abandoned


class UploadedFiles:
    """The folder of uploads and the owners of its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._owners: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def record(self, user: str, path: str) -> None:
        """Records that a user uploaded a file."""
        with self._lock:
            self._owners.setdefault(path, set()).add(user)

    def owns(self, user: str, path: str) -> bool:
        """True if the user uploaded this file."""
        with self._lock:
            return user in self._owners.get(path, ())

    def resolve(self, user: str, value: Any) -> list[Path]:
        """Returns the paths in the value of a `gr.File` with `preprocess=False`.

        Raises:
            TrainerError: a path that this user did not upload, or whose file is missing.
        """
        files = getattr(value, "root", value) or []
        paths: list[Path] = []
        for file in files if isinstance(files, (list, tuple)) else [files]:
            path = file.get("path") if isinstance(file, dict) else getattr(file, "path", None)
            if not isinstance(path, str) or not self.owns(user, path) or not Path(path).is_file():
                raise TrainerError("a file did not arrive; upload it again")
            paths.append(Path(path))
        return paths

    def remove_abandoned(self, older_than_seconds: float = MAX_AGE_SECONDS) -> int:
        """Removes aborted uploads and files that no handler has taken; returns the number of removed files."""
        removed, oldest = 0, time.time() - older_than_seconds
        for path in sorted(self.folder.rglob("*"), reverse=True) if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):  # moved meanwhile, or a folder that is not empty
                if path.stat().st_mtime > oldest:
                    continue
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink()
                    removed += 1
        with self._lock:
            self._owners = {path: users for path, users in self._owners.items() if Path(path).is_file()}
        return removed
