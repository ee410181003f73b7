"""Files from a browser become pictures of a project: checked, renamed safely, moved in and given a thumbnail.

A background thread of the studio works through the files of a project one by one, so that reloading the page loses
nothing; the page polls `IntakeProgress`. Captions (`.txt`, `.caption`) and masks are stored under the name of the picture
that has the same stem.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

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
from ui.store.projects import Projects
from ui.store.thumbnails import THUMBNAIL

MAX_PROBLEMS = 200  # listed for one upload; a zip may hold thousands of files that are not pictures
_FORMATS = "png, jpg, webp, bmp, tiff, gif or avif"


@dataclass
class IntakeProgress:
    """Progress of a project's upload. The page reads it while the intake thread writes it."""

    total: int = 0  # uploaded files; a zip counts as one
    done: int = 0
    kept: int = 0  # pictures that were added
    problems: list[str] = field(default_factory=list)
    ended: bool = False
    rev: int = 0  # increases with every change

    def report(self, problem: str) -> None:
        """Adds a sentence about a rejected file, up to MAX_PROBLEMS."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        self.rev += 1


@dataclass(frozen=True)
class IncomingFile:
    """One uploaded file, alone or from a zip."""

    name: str  # on the artist's computer, with folders if there are any
    path: Path

    @property
    def _location(self) -> PurePosixPath:
        return PurePosixPath(self.name.replace("\\", "/"))

    @property
    def base_name(self) -> str:
        """The name without folders."""
        return self._location.name

    @property
    def stem(self) -> str:
        """The base name without suffix; without `.mask` too for a mask."""
        return self._location.stem.removesuffix(".mask") if self.is_mask else self._location.stem

    @property
    def folder(self) -> str:
        """The folders of the name, `.` if there are none."""
        return self._location.parent.as_posix()

    @property
    def parent(self) -> str:
        """The innermost folder of the name."""
        return self._location.parent.name

    @property
    def suffix(self) -> str:
        """The file type in lower case, with its dot."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def is_mask(self) -> bool:
        """True for `masks/art.png` and `art.mask.png`."""
        return self.suffix == ".png" and (self.parent == "masks" or self.name.lower().endswith(".mask.png"))

    @property
    def belongs_to_picture(self) -> bool:
        """True for captions and masks."""
        return self.suffix in SIDECARS or self.is_mask


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


def add_files(
    projects: Projects, project: str, files: list[IncomingFile], limits: Limits, progress: IntakeProgress
) -> None:
    """Adds uploaded files to a project; rejected files are reported in `progress`.

    Raises:
        TrainerError: the disk is full, so that nothing more can be added.
    """
    _Addition(
        projects,
        project,
        limits,
        progress,
        size=size_bytes(projects.folder(project)),
        count=len(projects.pictures(project)),
    ).add_all(files)


@dataclass
class _Addition:
    """One upload on its way into a project."""

    projects: Projects
    project: str
    limits: Limits
    progress: IntakeProgress
    size: int  # bytes of the project so far
    count: int  # pictures of the project so far
    stems: dict[tuple[str, str], str] = field(
        default_factory=dict
    )  # (folder, stem) as uploaded -> stem as stored

    @property
    def folder(self) -> Path:
        return self.projects.folder(self.project)

    def add_all(self, files: list[IncomingFile]) -> None:
        """Adds pictures and zips first: captions and masks need the name under which their picture is stored."""
        for file in sorted(files, key=lambda file: file.belongs_to_picture):
            if file.suffix == ".zip":
                self._add_zip(file)
            else:
                self._add(file)
            self.progress.done += 1
            self.progress.rev += 1

    def _add(self, file: IncomingFile) -> None:
        """Adds one file; a rejected file is reported and does not affect the others."""
        try:
            if file.is_mask:
                self._add_mask(file)
            elif file.belongs_to_picture:
                self._add_caption(file)
            else:
                self._add_picture(file)
        except TrainerError as error:
            self.progress.report(str(error))
        except OSError:
            self.limits.check_free_space(self.folder)
            self.progress.report(f"{display_name(file.name)} could not be written; upload it again")

    def _add_zip(self, file: IncomingFile) -> None:
        """Unpacks a zip one member at a time; captions and masks are set aside until all pictures are in."""
        place = self.folder / IMPASTO_FOLDER / f"arriving-{uuid.uuid4().hex}"
        place.mkdir(parents=True)
        free_bytes = max(0, self.limits.project_bytes - self.size)
        bounds = ArchiveLimits(member_bytes=self.limits.picture_bytes, total_bytes=free_bytes)
        archive = place / (clean_name(PurePosixPath(file.name).stem) + ".zip")
        try:
            if file.path.stat().st_size > self.limits.file_bytes:
                name, size = display_name(file.name), self.limits.file_bytes // MB
                raise TrainerError(f"{name} is larger than {size} MB; send it in parts")
            shutil.move(file.path, archive)
            later: list[IncomingFile] = []
            for member in self._members(archive, place, bounds):
                if member.belongs_to_picture:
                    # `extract_members` unpacks every member to the same path, so this one is renamed before the next.
                    kept = member.path.with_name(f"kept-{len(later)}")
                    member.path.replace(kept)
                    later.append(IncomingFile(member.name, kept))
                else:
                    self._add(member)
            for member in later:
                self._add(member)
        except TrainerError as error:
            self.progress.report(str(error))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _members(self, archive: Path, place: Path, bounds: ArchiveLimits) -> Iterator[IncomingFile]:
        for member in extract_members(archive, place, bounds):
            if member.path is None:
                self.progress.report(f"{member.name} {member.reason}")
            else:
                yield IncomingFile(member.name, member.path)
            self.progress.rev += 1

    def _add_picture(self, file: IncomingFile) -> None:
        name, size = display_name(file.base_name), file.path.stat().st_size
        if file.suffix in ARCHIVES:
            raise TrainerError(f"{name} is an archive of a type that can't be read; make a zip")
        if file.suffix in UNSUPPORTED_SUFFIXES:
            raise TrainerError(f"{name} is a picture of a type that can't be read; save it as png or jpg")
        if not is_picture_name(name):
            raise TrainerError(f"{name} is not a picture; use {_FORMATS}")
        limits = self.limits
        if size > limits.picture_bytes:
            raise TrainerError(f"{name} is larger than {limits.picture_bytes // MB} MB; save it smaller")
        if self.count >= limits.project_pictures:
            raise TrainerError(
                f"{name} was not added: a project holds {limits.project_pictures} pictures; remove some first"
            )
        if self.size + size > limits.project_bytes:
            raise TrainerError(
                f"{name} was not added: a project holds {limits.project_bytes // MB} MB; remove some pictures first"
            )
        limits.check_free_space(self.folder, size)
        self._store_picture(file, _checked_thumbnail(file.path, name, limits.picture_pixels), size)

    def _store_picture(self, file: IncomingFile, thumbnail: Image.Image, size: int) -> None:
        wanted = clean_name(file.stem) or "picture"
        known = _stem_of_same_picture(self.folder, wanted, file)
        stem = known or free_stem(self.folder, wanted)
        self.stems[file.folder, file.stem] = stem
        if known:  # the same picture uploaded again is stored once
            return
        target = self.folder / f"{stem}{file.suffix}"
        _move_durably(file.path, target)
        self.size, self.count = self.size + size, self.count + 1
        self.projects.thumbnails.keep(self.project, target, thumbnail)
        repeats = kohya_folder(file.parent)
        if repeats and repeats[0] > 1:  # `10_cats` means 10 repeats in kohya-style folders
            self.projects.set_override(self.project, target.name, Override(min(repeats[0], MAX_REPEATS)))
        self.progress.kept += 1
        self.progress.rev += 1

    def _stored_stem(self, file: IncomingFile) -> str | None:
        """Returns the stored stem of the picture that a caption or mask belongs to, of this upload or an earlier one."""
        folders = [file.folder]
        if file.is_mask:  # `art/masks/one.png` belongs to `art/one.png`
            folders.append(PurePosixPath(file.folder).parent.as_posix())
        for folder in folders:
            if (folder, file.stem) in self.stems:
                return self.stems[folder, file.stem]
        cleaned = clean_name(file.stem)
        return cleaned if cleaned and any(path.stem == cleaned for path in self._pictures()) else None

    def _pictures(self) -> Iterator[Path]:
        return (path for path in self.folder.iterdir() if is_picture_name(path.name))

    def _add_caption(self, file: IncomingFile) -> None:
        stem = self._stored_stem(file) or clean_name(file.stem)
        if not stem:
            raise TrainerError(f"{display_name(file.name)} has a name that no picture can have; rename it")
        with file.path.open("rb") as opened:
            text = opened.read(4 * MAX_CAPTION).decode("utf-8-sig", errors="replace")
        lines = [line for line in map(one_line, text.splitlines()) if line]
        write_atomically(self.folder / f"{stem}.txt", ("\n".join(lines)[:MAX_CAPTION] + "\n").encode())
        if not any(path.stem == stem for path in self._pictures()):
            self.progress.report(
                f"{display_name(file.name)} has no picture of the same name yet; it is kept until you add one"
            )

    def _add_mask(self, file: IncomingFile) -> None:
        stem = self._stored_stem(file)
        picture = next((path for path in self._pictures() if path.stem == stem), None)
        if picture is None:
            raise TrainerError(
                f"{display_name(file.name)} is a mask without its picture; upload both together"
            )
        save_mask(picture, file.path.read_bytes(), display_name(file.name))


def _checked_thumbnail(path: Path, name: str, max_pixels: int) -> Image.Image:
    """Decodes a picture completely to find damage, and returns its thumbnail.

    Raises:
        TrainerError: it can't be read; the message has the artist's name for it instead of the upload's.
    """
    try:
        return small_picture(path, THUMBNAIL, most_pixels=max_pixels)[0]
    except TrainerError as error:
        raise TrainerError(str(error).replace(path.name, name, 1)) from None


def _stem_of_same_picture(folder: Path, wanted: str, file: IncomingFile) -> str | None:
    """Returns the stem under which the same bytes are stored already, among the names that `free_stem` tries."""
    size = file.path.stat().st_size
    for stem in numbered(wanted):
        stored = folder / f"{stem}{file.suffix}"
        if not stored.is_file():
            return None
        if stored.stat().st_size == size and stored.read_bytes() == file.path.read_bytes():
            return stem
    return None


def _move_durably(path: Path, target: Path) -> None:
    """Moves a file into place: it is there completely or not at all, also after a power failure."""
    with replacing(target) as temporary:
        shutil.move(path, temporary)
        temporary.chmod(0o644)


def _remove_upload(path: Path) -> None:
    """Removes an uploaded file with its folder, so that no artist's picture stays in the folder of uploads."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder also holds other files
        path.parent.rmdir()


def incoming_files(paths: list[Path], names: list[str] | None = None) -> list[IncomingFile]:
    """Pairs uploaded files with their names on the artist's computer, or with their own names."""
    names = names or [""] * len(paths)
    return [IncomingFile(name or path.name, path) for path, name in zip(paths, names, strict=True)]
