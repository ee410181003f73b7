"""Picture checks: every picture of a project is measured once in the background, and problems are reported.

cache/doctor/<project>.jsonl has one line for each measured picture; the last line of a name is the valid one. A picture whose
time or size has changed since is measured again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.dataset.buckets import Placement
from trainer.dataset.checks import Finding, findings
from trainer.dataset.image_metrics import VERSION, ImageMetrics, measure
from trainer.dataset.pictures import upright_size
from trainer.errors import ConfigError, TrainerError
from trainer.runs import events
from ui.store.projects import ProjectPicture, Projects
from ui.store.training_goal import TrainingGoal

_DELAY_SECONDS = 1.0  # before measuring: the page is built first, and uploads are added first


@dataclass
class CheckProgress:
    """Progress of measuring a project. The page reads it while the thread writes it."""

    total: int = 0
    done: int = 0
    ended: bool = False


@dataclass
class _MeasuresFile:
    """The parsed lines of a project's file. The file grows at its end, so each line is parsed once."""

    offset: int = 0
    lines: dict[str, tuple[list[int], ImageMetrics | None]] = field(
        default_factory=dict
    )  # name -> (stamp, measures)

    def update(self, path: Path) -> None:
        """Reads the lines that were appended since the last call."""
        new_lines, offset = events.read(path, self.offset)
        if offset < self.offset:  # the file was replaced, or deleted with its project
            self.lines.clear()
        self.offset = offset
        for line in new_lines:
            if line.get("version") != VERSION:
                continue
            try:
                measures = ImageMetrics.from_json(line["measures"]) if line.get("measures") else None
                self.lines[line["name"]] = line["stamp"], measures
            except (TypeError, KeyError):  # a line of another version, or edited by hand
                continue


def _never(project: str) -> bool:
    return False


@dataclass
class PictureChecks:
    """ImageMetrics the pictures of one artist's projects, in one thread at a time so that trainings keep the CPU.

    `is_receiving(project)` is True while pictures are still being added; measuring starts afterwards.
    """

    projects: Projects
    is_receiving: Callable[[str], bool] = _never
    _progress: dict[str, CheckProgress] = field(default_factory=dict)
    _files: dict[Path, _MeasuresFile] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def progress(self, project: str) -> CheckProgress | None:
        """Returns the progress of the latest check of a project since the studio started."""
        return self._progress.get(project)

    def measured(self, project: str, pictures: list[ProjectPicture]) -> dict[str, ImageMetrics | None]:
        """Returns the measures of unchanged pictures by name; None for a picture that can't be read."""
        path = self._path(project)
        with self._lock:
            file = self._files.setdefault(path, _MeasuresFile())
            file.update(path)
            lines = {picture.name: file.lines.get(picture.name) for picture in pictures}
        return {
            picture.name: line[1]
            for picture in pictures
            if (line := lines[picture.name]) and line[0] == _stamp(picture)
        }

    def start(self, project: str, pictures: list[ProjectPicture]) -> None:
        """ImageMetrics in the background those of `pictures` that are not measured yet, unless a check is running."""
        known = self.measured(project, pictures)
        waiting = [picture for picture in pictures if picture.name not in known]
        with self._lock:
            running = self._progress.get(project)
            if not waiting or (running is not None and not running.ended):
                return
            progress = self._progress[project] = CheckProgress(total=len(waiting))
        threading.Thread(target=self._work, args=(progress, project, waiting), daemon=True).start()

    def _work(self, progress: CheckProgress, project: str, waiting: list[ProjectPicture]) -> None:
        path = self._path(project)
        path.parent.mkdir(parents=True, exist_ok=True)
        time.sleep(_DELAY_SECONDS)
        while self.is_receiving(project):
            time.sleep(_DELAY_SECONDS)
        with self._turn:
            try:
                for picture in waiting:
                    measures: dict[str, Any] = {}
                    try:
                        measures = measure(self.projects.picture(project, picture.name)).to_json()
                    except (
                        TrainerError,
                        OSError,
                    ):  # removed meanwhile, or damaged: the training reports damage
                        measures = {}
                    if not path.parent.is_dir() or project not in self.projects.names():
                        break  # deleted meanwhile
                    line = {"name": picture.name, "stamp": _stamp(picture), "version": VERSION}
                    events.append(path, "measured", **line, measures=measures)
                    progress.done += 1
            finally:
                progress.ended = True

    def _path(self, project: str) -> Path:
        return self.projects.cache / "doctor" / f"{project}.jsonl"


def _stamp(picture: ProjectPicture) -> list[int]:
    return [picture.version, picture.size_bytes]


@dataclass(frozen=True)
class PictureReport:
    """Sizes, crops and problems of a project's pictures, as far as they are measured."""

    sizes: dict[str, tuple[int, int]]  # (width, height) in px, upright
    placements: dict[str, Placement]  # in the first resolution's buckets, with the artist's crops
    findings: list[Finding]


def picture_report(
    checks: PictureChecks, project: str, pictures: list[ProjectPicture], goal: TrainingGoal
) -> PictureReport:
    """Returns the problems among the pictures that are measured by now, and the crop of every picture."""
    measured = checks.measured(project, pictures)
    measures = {name: values for name, values in measured.items() if values is not None}
    sizes: dict[str, tuple[int, int]] = {}
    for picture in pictures:
        size = _size(checks.projects, project, picture.name, measures)
        if size:
            sizes[picture.name] = size
    crops = {picture.name: picture.override.crop for picture in pictures}
    try:
        placed = goal.plan.place_all(list(sizes.values()), [crops[name] for name in sizes])
    except ConfigError:  # the bucket limits of the form leave no bucket; the Train tab reports that
        placed = []
    placements = dict(zip(sizes, placed, strict=False))
    progress = checks.progress(project)
    is_complete = len(measures) == len(pictures) or progress is None or progress.ended
    # Findings about the whole set, such as too few pictures, wait until every picture is measured.
    found = findings(measures, placements, goal.preset if is_complete and pictures else "")
    return PictureReport(sizes, placements, found)


def _size(
    projects: Projects, project: str, name: str, measures: dict[str, ImageMetrics]
) -> tuple[int, int] | None:
    """Returns (width, height) upright from the measures or the file's header; None if the file can't be read."""
    if name in measures:
        return measures[name].width, measures[name].height
    try:
        return upright_size(projects.picture(project, name))
    except TrainerError:
        return None
