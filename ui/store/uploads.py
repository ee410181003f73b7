"""Files on their way in: Gradio keeps what a browser sends under one folder of the studio's, whoever sent it.

A path that comes back from a browser is used only where that user's browser has sent the file: whose it is is noted when
it arrives. The same file sent by two users lies at one path, so a path has a set of owners.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError

KEPT_SECONDS = 3600  # a file that no handler has taken by then was left behind


class Uploads:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._owners: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def arrived(self, user: str, path: str) -> None:
        with self._lock:
            self._owners.setdefault(path, set()).add(user)

    def owns(self, user: str, path: str) -> bool:
        with self._lock:
            return user in self._owners.get(path, ())

    def take(self, user: str, said: Any) -> list[Path]:
        """The files of a component's value (with `preprocess=False`), each one sent by this user. Raises TrainerError."""
        values = getattr(said, "root", said) or []
        found: list[Path] = []
        for value in values if isinstance(values, (list, tuple)) else [values]:
            path = value.get("path") if isinstance(value, dict) else getattr(value, "path", None)
            if not isinstance(path, str) or not self.owns(user, path) or not Path(path).is_file():
                raise TrainerError("a file did not arrive; drop it again")
            found.append(Path(path))
        return found

    def sweep(self, older_than_seconds: float = KEPT_SECONDS) -> int:
        """Removes what was left behind: aborted uploads, and files that nobody took; how many."""
        removed, oldest = 0, time.time() - older_than_seconds
        for path in sorted(self.folder.rglob("*"), reverse=True) if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):  # taken meanwhile; a folder that is not empty stays
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
