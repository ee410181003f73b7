"""An artist's projects: picture folders under `datasets/`, and their pictures, found by name and never by path.

ink/
  art.png art.txt        pictures and their captions
  masks/art.png          white where the picture is trained on
  .impasto/              files of Impasto: pictures.json (repeats and crops), settings.json, captions-undo.json
  .impasto/removed/      pictures that were removed, with their captions and masks
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trainer.atomic_files import write_atomically
from trainer.dataset.folder import picture_files, read_folder
from trainer.dataset.layout import is_picture_name
from trainer.dataset.overrides import IMPASTO_FOLDER, Override, read_overrides
from trainer.errors import DatasetError
from ui.store.naming import clean_name, free_stem, numbered
from ui.store.thumbnails import LARGE, Thumbnails

SAMPLES = ("ink-emoji",)  # bundled with Impasto; uploads go to another project
_LOCK_SECONDS = 30  # a lock file that is older was left by a killed process


@dataclass(frozen=True)
class ProjectPicture:
    """A picture of a project as the page lists it."""

    name: str  # `art.png`, or `10_sks cat/art.png` in a sub-folder
    caption: str
    version: int  # modification time in ns: changes when the picture is replaced
    size_bytes: int = 0
    override: Override = field(default_factory=Override)  # the artist's repeats and crop
    mask: int = 0  # modification time of the mask in ns; 0 without a mask
    lines: tuple[str, ...] = ()  # of the caption, which joins them with spaces

    @property
    def text(self) -> str:
        """The caption with its lines, as it is edited."""
        return "\n".join(self.lines) or self.caption


@dataclass(frozen=True)
class Projects:
    """One artist's projects. `datasets` has a folder for each project, `cache` their thumbnails."""

    datasets: Path
    cache: Path

    @property
    def thumbnails(self) -> Thumbnails:
        """The thumbnails of all projects."""
        return Thumbnails(self.cache / "thumbnails")

    def names(self) -> list[str]:
        """Returns the names of all projects, newest first."""
        if not self.datasets.is_dir():
            return []
        folders = [path for path in self.datasets.iterdir() if path.is_dir()]
        folders = [path for path in folders if not path.name.startswith((".", "_"))]
        return [path.name for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)]

    def folder(self, name: str) -> Path:
        """Returns the folder of a project.

        Raises:
            DatasetError: there is no project of this name; a path is not a name.
        """
        if name not in self.names():
            raise DatasetError("that project no longer exists; choose another")
        return self.datasets / name

    def latest(self) -> str | None:
        """Returns the project that was changed last; a sample set only if there is nothing else."""
        names = self.names()
        return next((name for name in names if name not in SAMPLES), names[0] if names else None)

    def free_name(self, name: str) -> str:
        """Returns `name`, or `name-2` and so on if it is taken."""
        taken = {existing.casefold() for existing in self.names()}
        return next(free for free in numbered(name) if free.casefold() not in taken)

    def create(self, name: str) -> str:
        """Creates an empty project and returns its name, which is made safe and free."""
        created = self.free_name(clean_name(name).lstrip("_") or "my-pictures")
        (self.datasets / created).mkdir(parents=True)
        return created

    def delete(self, name: str) -> int:
        """Deletes a project with its thumbnails and check results; returns the number of files.

        Raises:
            DatasetError: there is no such project, it is a link, or files could not be deleted.
        """
        folder = self.folder(name)
        if folder.is_symlink():  # its target may be used by other programs
            raise DatasetError("that project is a link to another folder; delete the link yourself")
        thumbnails = self.thumbnails.folder / name
        count = sum(len(files) for top in (folder, thumbnails) for _, _, files in os.walk(top))
        # Renamed first: a reader sees the project completely or not at all.
        renamed = folder.with_name(f".deleted-{os.getpid()}-{time.time_ns()}")
        folder.rename(renamed)
        for path in (renamed, thumbnails):
            shutil.rmtree(path, ignore_errors=True)
        (self.cache / "doctor" / f"{name}.jsonl").unlink(missing_ok=True)
        if renamed.exists():
            raise DatasetError(
                "some files could not be deleted; close programs that have them open and delete them yourself"
            )
        return count

    def pictures(self, name: str) -> list[ProjectPicture]:
        """Lists the pictures of a project without opening them.

        Raises:
            DatasetError: there is no such project.
        """
        project, pictures = self.folder(name), []
        overrides = read_overrides(project)
        for found in read_folder(project).pictures:
            stat, mask, lines = found.path.stat(), found.mask_file, found.lines()
            picture = ProjectPicture(
                found.name,
                " ".join(lines),
                stat.st_mtime_ns,
                stat.st_size,
                overrides.get(found.name, Override()),
                mask.stat().st_mtime_ns if mask else 0,
                tuple(lines),
            )
            pictures.append(picture)
        return pictures

    def picture(self, project: str, name: str) -> Path:
        """Returns the path of a picture.

        Raises:
            DatasetError: there is no such picture, or its path or link leads out of the project.
        """
        return _find(self.folder(project), name)

    def thumbnail(self, project: str, name: str) -> Path:
        """Returns a WebP of a picture for its card, with at most 60 kB. Raises DatasetError."""
        return self.thumbnails.of(project, self.picture(project, name))

    def large(self, project: str, name: str) -> Path:
        """Returns a WebP of a picture for the mask brush. Raises DatasetError."""
        return self.thumbnails.of(project, self.picture(project, name), LARGE)

    def removed_thumbnail(self, project: str, name: str) -> Path:
        """Returns a WebP of a removed picture. Raises DatasetError."""
        return self.thumbnails.of(project, _find(_removed_folder(self.folder(project)), name))

    def set_override(self, project: str, name: str, override: Override) -> None:
        """Stores the repeats and crop of a picture. Raises DatasetError."""
        folder = self.folder(project)
        _find(folder, name)
        with locked(folder):
            overrides = {**read_overrides(folder), name: override}
            changed = {
                key: value.to_json() for key, value in sorted(overrides.items()) if value != Override()
            }
            text = json.dumps(changed, ensure_ascii=False, indent=1)
            write_atomically(folder / IMPASTO_FOLDER / "pictures.json", text.encode())

    def removed(self, project: str) -> list[str]:
        """Returns the names of the removed pictures. Raises DatasetError."""
        removed = _removed_folder(self.folder(project))
        if not removed.is_dir():
            return []
        return [picture.name for picture in read_folder(removed).pictures]

    def remove(self, project: str, name: str) -> None:
        """Moves a picture with its caption and mask to the removed ones; `restore` undoes it. Raises DatasetError."""
        folder = self.folder(project)
        with locked(folder):
            _move(_find(folder, name), folder, _removed_folder(folder))

    def restore(self, project: str, name: str) -> str:
        """Moves a removed picture back; returns its name, with a number if it is taken. Raises DatasetError."""
        folder = self.folder(project)
        with locked(folder):
            removed = _removed_folder(folder)
            return _move(_find(removed, name), removed, folder)


def _removed_folder(project: Path) -> Path:
    return project / IMPASTO_FOLDER / "removed"


def _find(root: Path, name: str) -> Path:
    """Returns the path of a picture in a folder or in a sub-folder of it.

    Raises:
        DatasetError: there is none, or its path or link leads out of the folder.
    """
    path = root / name
    is_plain = "\\" not in name and "" not in name.split("/") and is_picture_name(name)
    if not (is_plain and path.is_file() and path.resolve().is_relative_to(root.resolve())):
        raise DatasetError("that picture no longer exists; reload the page")
    return path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Allows one writer at a time in a project's own files, across threads and processes.

    The lock is a file, since a second server or a command line may have the same project open.

    Raises:
        DatasetError: another writer holds the lock for 10 seconds.
    """
    lock = folder / IMPASTO_FOLDER / ".lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(1000):
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            with contextlib.suppress(OSError):
                if time.time() - lock.stat().st_mtime > _LOCK_SECONDS:
                    lock.unlink()
            time.sleep(0.01)
    else:
        raise DatasetError("this project is being changed elsewhere; try again in a moment")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _move(picture: Path, root: Path, target: Path) -> str:
    """Moves a picture with its caption and mask from one root to another; returns its name there."""
    folder = target / picture.parent.relative_to(root)
    folder.mkdir(parents=True, exist_ok=True)
    stem = free_stem(folder, picture.stem)
    files, source = picture_files(picture), picture.parent
    # Pictures such as art.png and art.jpg share a caption and a mask, which then have to stay.
    shares = any(path != picture and path.stem == picture.stem for path in _pictures_in(source))
    if files.mask and not shares:
        is_beside = "/" not in files.mask
        new_mask = folder / f"{stem}.mask.png" if is_beside else folder / "masks" / f"{stem}.png"
        new_mask.parent.mkdir(parents=True, exist_ok=True)
        (source / files.mask).replace(new_mask)
    if files.caption:
        suffix = PurePosixPath(files.caption).suffix.lower()
        (shutil.copyfile if shares else os.replace)(source / files.caption, folder / f"{stem}{suffix}")
    moved = folder / f"{stem}{picture.suffix}"
    picture.replace(moved)
    return moved.relative_to(target).as_posix()


def _pictures_in(folder: Path) -> Iterator[Path]:
    """Yields the pictures of a folder without those of its sub-folders."""
    return (path for path in folder.iterdir() if is_picture_name(path.name) and path.is_file())
