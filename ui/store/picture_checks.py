"""The doctor's visit: every picture of a project measured once, in the background, and its findings told.

cache/doctor/<project>.jsonl holds one line a measured picture, the last line of a name counts; a picture that has changed
since (time or size) is measured anew.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.dataset.buckets import Placement
from trainer.dataset.checks import Finding, findings
from trainer.dataset.image_metrics import VERSION, ImageMetrics, measure
from trainer.dataset.pictures import upright_size
from trainer.errors import ConfigError, TrainerError
from trainer.runs import events
from ui.store.training_goal import Aims

if TYPE_CHECKING:
    from ui.store.projects import Card, Projects


_HEAD_START = 1.0  # s: the page that asks is drawn first, and pictures that are dropped come in first


@dataclass
class Visit:
    """How far the measuring of a project is; a page reads it while the thread writes it."""

    total: int = 0
    done: int = 0
    ended: bool = False


@dataclass
class _Read:
    """What has been read of a project's file, which grows at its end: a line is parsed once."""

    offset: int = 0
    lines: dict[str, tuple[list[int], ImageMetrics | None]] = field(
        default_factory=dict
    )  # name -> stamp and measures

    def go_on(self, kept: Path) -> None:
        said, offset = events.read(kept, self.offset)
        if offset < self.offset:  # it was written anew, or is gone with its project
            self.lines.clear()
        self.offset = offset
        for line in said:
            if line.get("version") != VERSION:
                continue
            try:
                measures = ImageMetrics.from_json(line["measures"]) if line.get("measures") else None
                self.lines[line["name"]] = line["stamp"], measures
            except (TypeError, KeyError):
                continue


@dataclass
class Checkup:
    """The visits of one artist's projects. One thread at a time: looking at pictures must not take the machine from a training."""

    _visits: dict[Path, Visit] = field(default_factory=dict)
    _read: dict[Path, _Read] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def visit(self, folder: Path) -> Visit | None:
        return self._visits.get(folder)

    def measured(self, projects: Projects, project: str, cards: list[Card]) -> dict[str, ImageMetrics | None]:
        """ImageMetrics of the pictures as they are now, by name; None for one that can't be read."""
        kept = kept_file(projects, project)
        with self._lock:
            known = self._read.setdefault(kept, _Read())
            known.go_on(kept)
            found = {card.name: known.lines.get(card.name) for card in cards}
        return {
            card.name: seen[1] for card in cards if (seen := found[card.name]) and seen[0] == _stamp(card)
        }

    def start(self, projects: Projects, project: str, cards: list[Card]) -> None:
        """ImageMetrics what is not measured yet of `cards`, unless that goes on already."""
        folder, known = projects.folder(project), self.measured(projects, project, cards)
        waiting = [card for card in cards if card.name not in known]
        with self._lock:
            now = self._visits.get(folder)
            if not waiting or (now is not None and not now.ended):
                return
            visit = self._visits[folder] = Visit(total=len(waiting))
        threading.Thread(target=self._work, args=(visit, projects, project, waiting), daemon=True).start()

    def _work(self, visit: Visit, projects: Projects, project: str, waiting: list[Card]) -> None:
        kept = kept_file(projects, project)
        kept.parent.mkdir(parents=True, exist_ok=True)
        time.sleep(_HEAD_START)
        while (drop := projects.intake.arrivals(projects.datasets / project)) and not drop.ended:
            time.sleep(_HEAD_START)
        with self._turn:
            try:
                for card in waiting:
                    facts: dict[str, Any] = {}
                    try:
                        facts = measure(projects.picture(project, card.name)).to_json()
                    except (TrainerError, OSError):  # removed meanwhile, or damaged, which the training tells
                        facts = {}
                    if not kept.parent.is_dir() or project not in projects.names():
                        break
                    events.append(
                        kept, "measured", name=card.name, stamp=_stamp(card), version=VERSION, measures=facts
                    )
                    visit.done += 1
            finally:
                visit.ended = True


def kept_file(projects: Projects, project: str) -> Path:
    return projects.cache / "doctor" / f"{project}.jsonl"


def _stamp(card: Card) -> list[int]:
    return [card.version, card.size_bytes]


@dataclass(frozen=True)
class Told:
    """What is known of a project's pictures."""

    sizes: dict[str, tuple[int, int]]
    placements: dict[str, Placement]  # in the first resolution's buckets, with the artist's crops
    findings: list[Finding]


def told(projects: Projects, project: str, cards: list[Card], aims: Aims) -> Told:
    """Findings of what is measured by now, and the crop of every picture."""
    measures = {
        name: seen
        for name, seen in projects.checkup.measured(projects, project, cards).items()
        if seen is not None
    }
    sizes = {card.name: _size(projects, project, card.name, measures) for card in cards}
    sizes = {name: size for name, size in sizes.items() if size}
    crops = {card.name: card.choice.crop for card in cards}
    try:
        placed = aims.plan.place_all(list(sizes.values()), [crops[name] for name in sizes])
    except ConfigError:  # the form's own limits leave no bucket, which the Train tab tells
        placed = []
    placements = dict(zip(sizes, placed, strict=False))
    visit = projects.checkup.visit(projects.folder(project))
    whole = len(measures) == len(cards) or visit is None or visit.ended
    found = findings(measures, placements, aims.preset if whole and cards else "")
    return Told(sizes, placements, found)


def _size(
    projects: Projects, project: str, name: str, measures: dict[str, ImageMetrics]
) -> tuple[int, int] | None:
    """(width, height) upright, of the measures or of the file's header; None when it can't be told."""
    if name in measures:
        return measures[name].width, measures[name].height
    try:
        return upright_size(projects.picture(project, name))
    except TrainerError:
        return None
