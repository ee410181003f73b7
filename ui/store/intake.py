"""What an artist drops becomes pictures of a project: each file checked, given a safe name, moved in, and seen at once.

A drop is worked off by a thread of the studio's own, file after file, so that a reloaded page loses nothing of it; pages
look at its `Arrivals`. Captions (`.txt`, `.caption`) and masks go where the picture of the same stem went.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image

from trainer.atomic_files import replacing, write_atomically
from trainer.dataset.archives import ARCHIVES, ArchiveLimits, display_name, extract_members
from trainer.dataset.captions import SIDECARS, kohya_folder, one_line
from trainer.dataset.overrides import IMPASTO_FOLDER, MAX_REPEATS, Override
from trainer.dataset.pictures import UNSUPPORTED_SUFFIXES, small_picture
from trainer.dataset.scan import is_picture_name
from trainer.errors import TrainerError
from ui.store.limits import MB, Limits, size_bytes
from ui.store.masks import save_mask
from ui.store.naming import MAX_CAPTION, clean_name, free_stem, numbered
from ui.store.thumbnails import THUMBNAIL

if TYPE_CHECKING:
    from ui.store.projects import Projects

MOST_TOLD = 200  # problems of one drop; a zip may hold thousands of files that are no pictures
_KINDS = "png, jpg, webp, bmp, tiff, gif or avif"


@dataclass
class Arrivals:
    """How a project's drops stand; a page reads it while the thread writes it."""

    total: int = 0  # files, those of a zip once it has been looked into
    done: int = 0
    kept: int = 0
    problems: list[str] = field(default_factory=list)
    ended: bool = False
    rev: int = 0

    def tell(self, problem: str) -> None:
        if len(self.problems) < MOST_TOLD:
            self.problems.append(problem)
        self.rev += 1


@dataclass(frozen=True)
class Dropped:
    """One file that came, alone or out of a zip."""

    name: str  # as the artist calls it, with folders where there are some
    path: Path

    @property
    def stem(self) -> tuple[str, str]:
        """(folder, stem): what a caption and its picture have in common."""
        name = PurePosixPath(self.name.replace("\\", "/"))
        folder = name.parent.as_posix()
        return folder, name.stem.removesuffix(".mask") if self.is_mask else name.stem

    @property
    def parent(self) -> str:
        return PurePosixPath(self.name.replace("\\", "/")).parent.name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    @property
    def is_mask(self) -> bool:
        return self.suffix == ".png" and (self.parent == "masks" or self.name.lower().endswith(".mask.png"))


class Intake:
    """The drops of all projects. Held once by the studio."""

    def __init__(self) -> None:
        self._arrivals: dict[Path, Arrivals] = {}
        self._waiting: dict[Path, deque[tuple[Projects, str, list[Dropped]]]] = {}
        self._lock = threading.Lock()

    def arrivals(self, folder: Path) -> Arrivals | None:
        """Of a project's last drop since the studio started."""
        return self._arrivals.get(folder)

    def start(
        self,
        projects: Projects,
        project: str,
        files: list[Dropped],
        limits: Limits,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes files into a project, in the background; the files are gone from where they were afterwards."""
        folder = projects.folder(project)
        with self._lock:
            now = self._arrivals.get(folder)
            if now is None or now.ended:
                now = self._arrivals[folder] = Arrivals()
                self._waiting[folder] = deque()
                threading.Thread(target=self._work, args=(folder, limits, then), daemon=True).start()
            now.total += len(files)
            now.rev += 1
            self._waiting[folder].append((projects, project, files))

    def _work(self, folder: Path, limits: Limits, then: Callable[[], None]) -> None:
        arrivals = self._arrivals[folder]
        while True:
            with self._lock:
                if not self._waiting[folder]:
                    arrivals.ended = True
                    arrivals.rev += 1
                    break
                projects, project, files = self._waiting[folder].popleft()
            try:
                take_in(projects, project, files, limits, arrivals)
            except (TrainerError, OSError) as error:
                arrivals.tell(
                    str(error)
                    if isinstance(error, TrainerError)
                    else "the studio's disk can't be written to; look after it"
                )
            finally:
                for file in files:
                    _away(file.path)
        then()


def take_in(
    projects: Projects, project: str, files: list[Dropped], limits: Limits, arrivals: Arrivals
) -> None:
    """Takes one drop in. Raises TrainerError when there is no room for anything more."""
    _Taking(projects, project, limits, arrivals, size_bytes(projects.folder(project))).all_of(files)


@dataclass
class _Taking:
    projects: Projects
    project: str
    limits: Limits
    arrivals: Arrivals
    size: int  # bytes of the project so far
    stems: dict[tuple[str, str], str] = field(
        default_factory=dict
    )  # of a dropped picture -> under which it is kept

    @property
    def folder(self) -> Path:
        return self.projects.folder(self.project)

    def all_of(self, files: list[Dropped]) -> None:
        self.count = len(self.projects.cards(self.project))
        later: list[Dropped] = []  # what belongs to pictures waits for them
        for file in files:
            if file.suffix == ".zip":
                self._zip(file)
            elif file.suffix in SIDECARS or file.is_mask:
                later.append(file)
                continue
            else:
                self._try(file, self._picture)
            self._counted()
        for file in later:
            self._try(file, self._mask if file.is_mask else self._caption)
            self._counted()

    def _counted(self) -> None:
        self.arrivals.done += 1
        self.arrivals.rev += 1

    def _try(self, file: Dropped, take: Callable[[Dropped], None]) -> None:
        """One bad file is told and leaves the others alone."""
        try:
            take(file)
        except TrainerError as error:
            self.arrivals.tell(str(error))
        except OSError:
            self.limits.check_room(self.folder)
            self.arrivals.tell(f"{display_name(file.name)} could not be written; try it again")

    def _zip(self, file: Dropped) -> None:
        """A zip's files, in two passes: pictures first, then what belongs to them."""
        place = self.folder / IMPASTO_FOLDER / f"arriving-{uuid.uuid4().hex}"
        place.mkdir(parents=True)
        room = max(0, self.limits.project_bytes - self.size)
        bounds = ArchiveLimits(
            member_bytes=self.limits.picture_bytes, total_bytes=min(room, self.limits.project_bytes)
        )
        archive = place / (clean_name(PurePosixPath(file.name).stem) + ".zip")
        try:
            if file.path.stat().st_size > self.limits.file_bytes:
                raise TrainerError(
                    f"{display_name(file.name)} is larger than {self.limits.file_bytes // MB} MB; send it in parts"
                )
            shutil.move(file.path, archive)
            belonging: list[Dropped] = []
            for inner in self._inside(archive, place, bounds):
                if inner.suffix in SIDECARS or inner.is_mask:
                    kept = inner.path.with_name(f"kept-{len(belonging)}")
                    inner.path.replace(kept)
                    belonging.append(Dropped(inner.name, kept))
                else:
                    self._try(inner, self._picture)
            for inner in belonging:
                self._try(inner, self._mask if inner.is_mask else self._caption)
        except TrainerError as error:
            self.arrivals.tell(str(error))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _inside(self, archive: Path, place: Path, bounds: ArchiveLimits) -> Iterator[Dropped]:
        for member in extract_members(archive, place, bounds):
            if member.path is None:
                self.arrivals.tell(f"{member.name} {member.reason}")
            else:
                yield Dropped(member.name, member.path)
            self.arrivals.rev += 1

    def _picture(self, file: Dropped) -> None:
        name = display_name(PurePosixPath(file.name.replace("\\", "/")).name)
        if file.suffix in ARCHIVES:
            raise TrainerError(f"{name} is an archive of a kind that is not read; make a zip")
        if file.suffix in UNSUPPORTED_SUFFIXES:
            raise TrainerError(f"{name} is a kind of picture that is not read; save it as png or jpg")
        if not is_picture_name(name):
            raise TrainerError(f"{name} is no picture; use {_KINDS}")
        size = file.path.stat().st_size
        if size > self.limits.picture_bytes:
            raise TrainerError(f"{name} is larger than {self.limits.picture_bytes // MB} MB; save it smaller")
        if self.count >= self.limits.project_pictures:
            raise TrainerError(
                f"{name} is one too many: a project holds {self.limits.project_pictures} pictures"
            )
        if self.size + size > self.limits.project_bytes:
            raise TrainerError(f"{name} does not fit: a project holds {self.limits.project_bytes // MB} MB")
        self.limits.check_room(self.folder, size)
        self._keep(file, _checked(file.path, name, self.limits.picture_pixels), size)

    def _keep(self, file: Dropped, small: Image.Image, size: int) -> None:
        wanted = clean_name(PurePosixPath(file.name.replace("\\", "/")).stem) or "picture"
        known = _same(self.folder, wanted, file)
        stem = known or free_stem(self.folder, wanted)
        self.stems[file.stem] = stem
        if known:  # the same picture dropped again stays one
            return
        target = self.folder / f"{stem}{file.suffix}"
        _brought(file.path, target)
        self.size, self.count = self.size + size, self.count + 1
        self.projects.thumbnails.keep(self.project, target, small)
        repeats = kohya_folder(file.parent)
        if repeats and repeats[0] > 1:  # what `10_cats` means to other trainers
            self.projects.choose(self.project, target.name, Override(min(repeats[0], MAX_REPEATS)))
        self.arrivals.kept += 1
        self.arrivals.rev += 1

    def _stem_of(self, file: Dropped) -> str | None:
        """Of the picture that a caption or mask belongs to: of this drop, or there already."""
        folder, stem = file.stem
        places = [folder, PurePosixPath(folder).parent.as_posix()] if file.is_mask else [folder]
        found = next((self.stems[place, stem] for place in places if (place, stem) in self.stems), None)
        if found:
            return found
        cleaned = clean_name(stem)
        return cleaned if cleaned and any(path.stem == cleaned for path in self._pictures()) else None

    def _pictures(self) -> Iterator[Path]:
        return (path for path in self.folder.iterdir() if is_picture_name(path.name))

    def _caption(self, file: Dropped) -> None:
        stem = self._stem_of(file) or clean_name(file.stem[1])
        if not stem:
            raise TrainerError(f"{display_name(file.name)} has no name that a picture could share; rename it")
        with file.path.open("rb") as opened:
            text = opened.read(4 * MAX_CAPTION).decode("utf-8-sig", errors="replace")
        lines = [line for line in map(one_line, text.splitlines()) if line]
        write_atomically(self.folder / f"{stem}.txt", ("\n".join(lines)[:MAX_CAPTION] + "\n").encode())
        if not any(path.stem == stem for path in self._pictures()):
            self.arrivals.tell(
                f"{display_name(file.name)} has no picture of the same name yet; it waits for one"
            )

    def _mask(self, file: Dropped) -> None:
        stem = self._stem_of(file)
        picture = next((path for path in self._pictures() if path.stem == stem), None)
        if picture is None:
            raise TrainerError(f"{display_name(file.name)} is a mask without its picture; drop both together")
        save_mask(picture, file.path.read_bytes())


def _checked(path: Path, name: str, most_pixels: int) -> Image.Image:
    """A thumbnail of a picture, which is read whole to find damage. Raises TrainerError that calls it by the artist's name."""
    try:
        return small_picture(path, THUMBNAIL, most_pixels=most_pixels)[0]
    except TrainerError as error:
        raise TrainerError(str(error).replace(path.name, name, 1)) from None


def _same(folder: Path, wanted: str, file: Dropped) -> str | None:
    """The stem under which the same bytes are there already, among those that `free_stem` would pass over."""
    size = file.path.stat().st_size
    for stem in numbered(wanted):
        there = folder / f"{stem}{file.suffix}"
        if not there.is_file():
            return None
        if there.stat().st_size == size and there.read_bytes() == file.path.read_bytes():
            return stem
    return None


def _brought(path: Path, target: Path) -> None:
    """Moves a file into place, whole or not at all, also after a power cut."""
    with replacing(target) as temporary:
        shutil.move(path, temporary)
        temporary.chmod(0o644)


def _away(path: Path) -> None:
    """Nothing of an artist's stays where the browser's files arrive."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others' files may lie beside it
        path.parent.rmdir()


def dropped(paths: list[Path], names: list[str] | None = None) -> list[Dropped]:
    """Files by the names they came under, or by their own."""
    return [
        Dropped(name or path.name, path) for path, name in zip(paths, names or [""] * len(paths), strict=True)
    ]
