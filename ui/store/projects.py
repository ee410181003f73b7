"""An artist's picture folders under `datasets/`: listed, made, deleted; their pictures looked up, removed, restored, shown small.

ink/
  art.png art.txt        pictures and their captions
  masks/art.png          where a picture counts
  .impasto/              what is ours: pictures.json (repeats and crops), settings.json, captions-undo.json
  .impasto/removed/      pictures taken out, with what belongs to them
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.atomic_files import write_atomically
from trainer.dataset.augmentations import mask_file
from trainer.dataset.captions import SIDECARS, MetadataRow, kohya_folder, metadata_captions, sidecar_caption
from trainer.dataset.overrides import IMPASTO_FOLDER, Override, read_overrides
from trainer.dataset.scan import is_displayable_name, is_picture_name, picture_folders, pictures_in
from trainer.errors import DatasetError
from ui.store.naming import clean_name, free_stem, numbered
from ui.store.thumbnails import LARGE, Thumbnails

SAMPLES = ("ink-emoji",)  # come with Impasto; an artist's own pictures do not go in there


@dataclass(frozen=True)
class ProjectPicture:
    name: str  # `art.png`, or `10_sks cat/art.png` in a kohya-style sub-folder
    caption: str
    version: int  # another one when the picture has been replaced
    size_bytes: int = 0
    choice: Override = field(default_factory=Override)
    mask: int = 0  # another one when the mask has been replaced; 0: there is none


@dataclass(frozen=True)
class Projects:
    """`datasets` holds one folder a project; `cache` their thumbnails."""

    datasets: Path
    cache: Path

    @property
    def thumbnails(self) -> Thumbnails:
        return Thumbnails(self.cache / "thumbnails")

    def names(self) -> list[str]:
        """Projects, newest first."""
        if not self.datasets.is_dir():
            return []
        folders = [p for p in self.datasets.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))]
        return [p.name for p in sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True)]

    def folder(self, name: str) -> Path:
        """The folder of a project. Raises DatasetError for a name that is none of ours, paths included."""
        if name not in self.names():
            raise DatasetError("that picture folder is not there any more; choose another")
        return self.datasets / name

    def latest(self) -> str | None:
        """The project an artist worked on last; the sample set when there is none."""
        names = self.names()
        return next((name for name in names if name not in SAMPLES), names[0] if names else None)

    def free_name(self, name: str) -> str:
        """`name`, or `name-2` ... when that is taken."""
        taken = {existing.casefold() for existing in self.names()}
        return next(n for n in numbered(name) if n.casefold() not in taken)

    def create(self, name: str) -> str:
        """A new empty project; its name, made safe and free."""
        made = self.free_name(clean_name(name).lstrip("_") or "my-pictures")
        (self.datasets / made).mkdir(parents=True)
        return made

    def delete(self, name: str) -> int:
        """Removes a project with all that was made of its pictures for looking at; the number of files. Raises DatasetError."""
        folder = self.folder(name)
        if folder.is_symlink():  # what a link points at is not ours
            raise DatasetError("that project is a link to another folder; remove the link yourself")
        count = sum(
            len(files) for place in (folder, self.thumbnails.folder / name) for _, _, files in os.walk(place)
        )
        # Out of sight first: whoever lists projects meanwhile sees it whole or not at all.
        aside = folder.with_name(f".deleted-{os.getpid()}-{time.time_ns()}")
        folder.rename(aside)
        for place in (aside, self.thumbnails.folder / name):
            shutil.rmtree(place, ignore_errors=True)
        (self.cache / "doctor" / f"{name}.jsonl").unlink(missing_ok=True)
        if aside.exists():
            raise DatasetError(
                "some files could not be deleted; another program may hold them: close it and remove them by hand"
            )
        return count

    def pictures(self, name: str) -> list[ProjectPicture]:
        folder, cards = self.folder(name), []
        choices = read_overrides(folder)
        for place, _, token in picture_folders(folder):
            listed, _ = metadata_captions(place)
            within = "" if place == folder else f"{place.name}/"
            for path in pictures_in(place)[0]:
                caption = sidecar_caption(path)
                if caption is None:
                    caption = listed.get(path.name, MetadataRow(token)).caption
                stat, shown, mask = path.stat(), within + path.name, mask_file(path)
                drawn = mask.stat().st_mtime_ns if mask else 0
                cards.append(
                    ProjectPicture(
                        shown, caption, stat.st_mtime_ns, stat.st_size, choices.get(shown, Override()), drawn
                    )
                )
        return cards

    def picture(self, project: str, name: str) -> Path:
        """A picture of a project. Raises DatasetError for anything else, paths and links out of it included."""
        return self._looked_up(self.folder(project), name)

    def _looked_up(self, root: Path, name: str) -> Path:
        path, parts = root / name, name.split("/")
        is_ours = len(parts) == 1 or (len(parts) == 2 and kohya_folder(parts[0]) is not None)
        is_plain = "\\" not in name and is_displayable_name(name) and is_picture_name(parts[-1])
        if not (is_ours and is_plain and path.is_file() and path.resolve().is_relative_to(root.resolve())):
            raise DatasetError("that picture is not there any more; reload the page")
        return path

    def thumbnail(self, project: str, name: str) -> Path:
        """A small WebP of a picture; at most 60 kB."""
        return self.thumbnails.of(project, self.picture(project, name))

    def large(self, project: str, name: str) -> Path:
        """A WebP to look closely at."""
        return self.thumbnails.of(project, self.picture(project, name), LARGE)

    def removed_thumbnail(self, project: str, name: str) -> Path:
        return self.thumbnails.of(
            project, self._looked_up(self.folder(project) / IMPASTO_FOLDER / "removed", name)
        )

    def set_choice(self, project: str, name: str, choice: Override) -> None:
        """Keeps what was chosen for one picture. Raises DatasetError."""
        folder = self.folder(project)
        self._looked_up(folder, name)
        with locked(folder):
            choices = {**read_overrides(folder), name: choice}
            facts = {key: value.to_json() for key, value in sorted(choices.items()) if value != Override()}
            write_atomically(
                folder / IMPASTO_FOLDER / "pictures.json",
                json.dumps(facts, ensure_ascii=False, indent=1).encode(),
            )

    def removed(self, project: str) -> list[str]:
        """Names of the pictures that were taken out."""
        place = self.folder(project) / IMPASTO_FOLDER / "removed"
        return (
            [
                path.relative_to(place).as_posix()
                for part, _, _ in picture_folders(place)
                for path in pictures_in(part)[0]
            ]
            if place.is_dir()
            else []
        )

    def remove(self, project: str, name: str) -> None:
        """Takes a picture out of a project, with its caption and mask; `restore` brings it back. Raises DatasetError."""
        folder = self.folder(project)
        with locked(folder):
            _moved(self._looked_up(folder, name), folder, folder / IMPASTO_FOLDER / "removed")

    def restore(self, project: str, name: str) -> str:
        """Brings a removed picture back; its name, another one when the old one is taken. Raises DatasetError."""
        folder = self.folder(project)
        with locked(folder):
            place = folder / IMPASTO_FOLDER / "removed"
            return _moved(self._looked_up(place, name), place, folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer at a time in a project's own files, whichever page or process it belongs to."""
    lock = folder / IMPASTO_FOLDER / ".lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(1000):
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            with contextlib.suppress(OSError):
                if time.time() - lock.stat().st_mtime > 30:  # of a process that was killed
                    lock.unlink()
            time.sleep(0.01)
    else:
        raise DatasetError("this project is being changed elsewhere; try again in a moment")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _moved(picture: Path, root: Path, target: Path) -> str:
    """Moves a picture and what belongs to it from under one root to another; its name there."""
    place = target / picture.parent.relative_to(root)
    place.mkdir(parents=True, exist_ok=True)
    stem = free_stem(place, picture.stem)
    shares = any(path != picture and path.stem == picture.stem for path in pictures_in(picture.parent)[0])
    mask = mask_file(picture)
    if mask and not shares:
        kept = place / "masks" / f"{stem}.png" if mask.parent.name == "masks" else place / f"{stem}.mask.png"
        kept.parent.mkdir(parents=True, exist_ok=True)
        mask.replace(kept)
    for suffix in SIDECARS:
        sidecar = picture.with_suffix(suffix)
        if sidecar.is_file():
            (shutil.copyfile if shares else os.replace)(sidecar, place / f"{stem}{suffix}")
    moved = place / f"{stem}{picture.suffix}"
    picture.replace(moved)
    return moved.relative_to(target).as_posix()
