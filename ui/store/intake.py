"""Uploads of an artist: a background thread of the studio works through the files of a project one by one.

Reloading the page loses nothing; the page polls `IntakeProgress`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from pathlib import Path

from trainer.errors import TrainerError
from ui.store.addition import add_files
from ui.store.incoming import IncomingFile, IntakeProgress
from ui.store.limits import Limits
from ui.store.projects import Projects


class Intake:
    """The uploads to one artist's projects. One instance serves all pages and browsers of the artist."""

    def __init__(self, projects: Projects, limits: Limits) -> None:
        self.projects, self.limits = projects, limits
        self._progress: dict[str, IntakeProgress] = {}
        self._waiting: dict[str, deque[list[IncomingFile]]] = {}
        self._lock = threading.Lock()

    def progress(self, project: str) -> IntakeProgress | None:
        """Returns the progress of a project's latest upload since the studio started."""
        return self._progress.get(project)

    def is_busy(self, project: str) -> bool:
        """True while files of a project are being added."""
        progress = self.progress(project)
        return progress is not None and not progress.ended

    def start(self, project: str, files: list[IncomingFile]) -> None:
        """Adds files to a project in the background and removes them from the folder of uploads.

        Raises:
            DatasetError: there is no such project.
        """
        self.projects.folder(project)
        with self._lock:
            progress = self._progress.get(project)
            if progress is None or progress.ended:
                progress = self._progress[project] = IntakeProgress()
                self._waiting[project] = deque()
                threading.Thread(target=self._work, args=(project, progress), daemon=True).start()
            progress.total += len(files)
            progress.rev += 1
            self._waiting[project].append(files)

    def _work(self, project: str, progress: IntakeProgress) -> None:
        while True:
            with self._lock:
                if not self._waiting[project]:
                    progress.ended = True
                    progress.rev += 1
                    return
                files = self._waiting[project].popleft()
            try:
                add_files(self.projects, project, files, self.limits, progress)
            except TrainerError as error:
                progress.report(str(error))
            except OSError:
                progress.report("the studio can't write to its disk; check its free space and permissions")
            finally:
                for file in files:
                    _remove_upload(file.path)


def _remove_upload(path: Path) -> None:
    """Removes an uploaded file with its folder, so that no artist's picture stays in the folder of uploads."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder also holds other files
        path.parent.rmdir()
