"""Files from a browser become pictures of a project: checked, renamed safely, moved in and given a thumbnail.

`trainer.dataset.layout` decides what each file is, by its name with folders, as for a folder that is trained
on directly. In the project all pictures are in one folder: pictures of the same name get numbers, repeats of
`NN_name` folders become those of the pictures, and captions (of caption files, metadata.jsonl or the name of
such a folder) and masks are stored under the name of their picture.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from trainer.atomic_files import replacing, write_atomically
from trainer.dataset.archives import ARCHIVES, ArchiveLimits, display_name, extract_members, member_names
from trainer.dataset.captions import MetadataRow
from trainer.dataset.folder import caption_file, metadata_rows, picture_files
from trainer.dataset.layout import (
    METADATA,
    Layout,
    NameIndex,
    PictureFiles,
    Reason,
    is_picture_name,
    layout,
    mask_stem,
    order,
)
from trainer.dataset.overrides import IMPASTO_FOLDER, MAX_REPEATS, Override
from trainer.dataset.pictures import SUPPORTED_WORDS, small_picture
from trainer.errors import DatasetError, TrainerError
from trainer.text_files import decode, encoding_note, encoding_notes
from ui.store.caption_uploads import UploadedCaptions
from ui.store.incoming import IncomingFile, IntakeProgress
from ui.store.limits import MB, Limits, size_bytes
from ui.store.masks import add_mask
from ui.store.naming import MAX_CAPTION, clean_name, free_stem, numbered
from ui.store.projects import Projects, locked
from ui.store.thumbnails import THUMBNAIL

_MAX_CAPTION_FILE = 1_000_000  # bytes that are read of a caption file


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
    shared: set[Path] = field(default_factory=set)  # files that several names of the upload have in common
    captions: UploadedCaptions = field(init=False)

    def __post_init__(self) -> None:
        """Prepares the captions of the project."""
        self.captions = UploadedCaptions(self.folder)

    @property
    def folder(self) -> Path:
        return self.projects.folder(self.project)

    def add_all(self, files: list[IncomingFile]) -> None:
        """Adds zips first: captions and masks beside them may belong to their pictures."""
        # Gradio stores files with the same content and base name once, also those of different folders.
        times = Counter(file.path for file in files)
        self.shared = {path for path, count in times.items() if count > 1}
        others = [file for file in files if file.suffix != ".zip"]
        others.sort(key=lambda file: order(file.location))  # as in a zip: equal names get equal numbers
        try:
            for file in files:
                if file.suffix == ".zip":
                    self._add_zip(file)
                    self._count_one()
            self._add_set([file.location for file in others], others, lambda file: file, self._count_one)
        finally:
            self.progress.replaced += self.captions.finish()
            self.progress.rev += 1

    def _count_one(self) -> None:
        self.progress.done += 1
        self.progress.rev += 1

    def _add_zip(self, file: IncomingFile) -> None:
        """Unpacks a zip one member at a time; captions and masks are set aside until all pictures are in."""
        place = self.folder / IMPASTO_FOLDER / f"arriving-{uuid.uuid4().hex}"
        place.mkdir(parents=True)
        free_bytes = max(0, self.limits.project_bytes - self.size)
        bounds = ArchiveLimits(member_bytes=self.limits.picture_bytes, total_bytes=free_bytes)
        archive = place / (clean_name(file.stem) + ".zip")
        kept = 0

        def keep(member: IncomingFile) -> IncomingFile:
            # `extract_members` deletes a member when the next one is requested, so this one is renamed before.
            nonlocal kept
            kept += 1
            target = member.path.with_name(f"kept-{kept}")
            member.path.replace(target)
            return IncomingFile(member.name, target)

        try:
            if file.path.stat().st_size > self.limits.file_bytes:
                name, size = display_name(file.name), self.limits.file_bytes // MB
                raise TrainerError(f"{name} is larger than {size} MB; send it in parts")
            shutil.move(file.path, archive)
            names = member_names(archive, bounds)
            self._add_set(names, self._members(archive, place, bounds), keep, lambda: None)
        except TrainerError as error:
            self.progress.report(str(error))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _members(self, archive: Path, place: Path, bounds: ArchiveLimits) -> Iterator[IncomingFile]:
        for member in extract_members(archive, place, bounds):
            if member.path is None:
                self.progress.report(f"{member.name} {member.reason}")
            else:
                yield IncomingFile(member.location, member.path)
            self.progress.rev += 1

    def _add_set(
        self,
        names: list[str],
        files: Iterable[IncomingFile],
        keep: Callable[[IncomingFile], IncomingFile],
        after_each: Callable[[], None],
    ) -> None:
        """Adds files that belong together: those of a drop, a folder or a zip.

        Args:
            names: locations of all files.
            keep: returns a file that stays until the end, since its picture may come later.
        """
        plan = layout(names)
        added = _AddedSet(plan)
        pictures = {picture.name: picture for picture in plan.pictures}
        for file in files:
            if file.location in pictures:
                self._guarded(file, partial(self._add_picture, file, pictures[file.location], added))
            elif plan.passed_over.get(file.location, Reason.LONE_MASK) in (
                Reason.LONE_CAPTION,
                Reason.LONE_MASK,
            ):
                added.later[file.location] = keep(file)
            elif plan.passed_over[file.location] is Reason.OTHER:
                self.progress.report(_reason_for_other(file))
            after_each()
        for problem in plan.problems(without=(Reason.LONE_CAPTION, Reason.LONE_MASK)):
            self.progress.report(problem)
        if added.cut_repeats:
            self.progress.report(
                f"{added.cut_repeats} is repeated {MAX_REPEATS} times, the most that a project stores"
            )
        self._add_sidecars(added)

    def _guarded(self, file: IncomingFile, add: Callable[[], None]) -> None:
        """Adds one file; a rejected file is reported and does not affect the others."""
        try:
            add()
        except TrainerError as error:
            self.progress.report(str(error))
        except OSError:
            self.limits.check_free_space(self.folder)
            self.progress.report(f"{display_name(file.name)} could not be written; upload it again")

    def _add_picture(self, file: IncomingFile, picture: PictureFiles, added: _AddedSet) -> None:
        name, size = display_name(file.base_name), file.path.stat().st_size
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
        thumbnail = _checked_thumbnail(file.path, name, limits.picture_pixels)
        wanted = clean_name(file.stem) or "picture"
        known = _stem_of_same_picture(self.folder, wanted, file, set(added.stored.values()))
        stem = known or free_stem(self.folder, wanted)
        target = self.folder / f"{stem}{file.suffix}"
        added.stored[picture.name] = target
        if known:  # the same picture uploaded again is stored once
            return
        _move_durably(file.path, target, keep=file.path in self.shared)
        self.size, self.count = self.size + size, self.count + 1
        self.projects.thumbnails.keep(self.project, target, thumbnail)
        if picture.repeats > MAX_REPEATS:
            added.cut_repeats = added.cut_repeats or display_name(file.location)
        if picture.repeats > 1:
            repeats = min(picture.repeats, MAX_REPEATS)
            self.projects.set_override(self.project, target.name, Override(repeats))
        self.progress.kept += 1
        self.progress.rev += 1

    def _add_sidecars(self, added: _AddedSet) -> None:
        """Stores captions and masks under the names of their pictures; then those of earlier pictures."""
        rows, problems = metadata_rows(added.plan, added.kept_path)
        metadata = ((name, added.kept_path(name)) for name in added.plan.metadata)
        for note in encoding_notes((name, path) for name, path in metadata if path):
            self.progress.note(note)
        for problem in problems:
            self.progress.report(problem)
        used: set[str] = set()
        for picture in added.plan.pictures:
            stored = added.stored.get(picture.name)
            if stored is None:
                continue
            caption, mask = added.later.get(picture.caption or ""), added.later.get(picture.mask or "")
            if caption:
                used.add(caption.location)
                self._guarded(caption, partial(self._store_caption, caption, caption_file(stored)))
            else:
                self._store_row(stored, rows.get(picture.name, MetadataRow(picture.token)))
            if mask:
                used.add(mask.location)
                self._guarded(
                    mask, partial(add_mask, stored, mask.path.read_bytes(), display_name(mask.name))
                )
        for name, file in added.later.items():
            if name in used or name in added.plan.metadata:
                continue
            add = self._add_lone_mask if added.is_mask(name) else self._add_lone_caption
            self._guarded(file, partial(add, file, added))

    def _store_caption(self, file: IncomingFile, target: Path) -> None:
        with file.path.open("rb") as opened:
            decoded = decode(opened.read(_MAX_CAPTION_FILE))
        if note := encoding_note(display_name(file.location), decoded):
            self.progress.note(note)
        if not self.captions.add(target, decoded.text):
            self.progress.note(
                f"{display_name(file.location)} has more than {MAX_CAPTION} characters; its end was left out"
            )

    def _store_row(self, picture: Path, row: MetadataRow) -> None:
        """Stores the caption and weight of metadata.jsonl, or the caption that a kohya folder's name is."""
        if row.caption and picture_files(picture).caption is None:
            write_atomically(picture.with_suffix(".txt"), (row.caption[:MAX_CAPTION] + "\n").encode())
        if row.weight != 1.0:
            with locked(self.folder):
                path = self.folder / METADATA
                before = path.read_text(encoding="utf-8") if path.is_file() else ""
                line = json.dumps({"file_name": picture.name, "weight": row.weight}, ensure_ascii=False)
                if line not in before.splitlines():
                    write_atomically(path, f"{before}{line}\n".encode())

    def _add_lone_caption(self, file: IncomingFile, added: _AddedSet) -> None:
        """Stores a caption whose picture is not in this upload; it may be in the project or come later."""
        pictures = self._earlier_pictures(file, file.stem, added)
        for picture in pictures:
            self._store_caption(file, caption_file(picture))
        stem = clean_name(file.stem)
        if not stem:
            raise TrainerError(f"{display_name(file.name)} has a name that no picture can have; rename it")
        if not pictures:
            self._store_caption(file, self.folder / f"{stem}.txt")
            self.progress.report(
                f"{display_name(file.name)} has no picture of the same name yet; it is kept until you add one"
            )

    def _add_lone_mask(self, file: IncomingFile, added: _AddedSet) -> None:
        pictures = self._earlier_pictures(file, mask_stem(file.location), added)
        for picture in pictures:
            add_mask(picture, file.path.read_bytes(), display_name(file.name))
        if not pictures:
            raise TrainerError(
                f"{display_name(file.name)} is a mask without its picture; upload both together"
            )

    def _earlier_pictures(self, file: IncomingFile, stem: str, added: _AddedSet) -> list[Path]:
        """Returns the pictures of earlier uploads that a caption or mask belongs to.

        Raises:
            DatasetError: pictures of several folders were uploaded with its name, so its own can't be known.
        """
        index, wanted = NameIndex(), clean_name(stem)
        taken = set(added.stored.values())
        paths = [path for path in self.folder.iterdir() if is_picture_name(path.name) and path not in taken]
        for path in paths:
            index.add("", path.stem, path.name)
            index.add("", path.name, path.name)
        found = [self.folder / name for name in index.find("", wanted)[1]] if wanted else []
        if "/" in file.location and found and index.find("", f"{wanted}-2")[1]:
            raise DatasetError(
                f"{display_name(file.name)} fits several pictures of this project; upload it with its picture"
            )
        return found


@dataclass
class _AddedSet:
    """Files that were uploaded together, as far as they are added."""

    plan: Layout
    stored: dict[str, Path] = field(default_factory=dict)  # location of a picture -> its file in the project
    later: dict[str, IncomingFile] = field(default_factory=dict)  # captions, masks and metadata by location
    cut_repeats: str = ""  # a picture whose repeats were reduced

    def kept_path(self, name: str) -> Path | None:
        """Returns the file of a location; None if it did not arrive."""
        file = self.later.get(name)
        return file.path if file else None

    def is_mask(self, name: str) -> bool:
        """Returns whether a file of `later` is a mask."""
        return mask_stem(name) != ""


def _reason_for_other(file: IncomingFile) -> str:
    name = display_name(file.base_name)
    if file.suffix in ARCHIVES:
        return f"{name} is an archive of a type that can't be read; make a zip"
    return f"{name} is not a picture; use {SUPPORTED_WORDS}"


def _checked_thumbnail(path: Path, name: str, max_pixels: int) -> Image.Image:
    """Decodes a picture completely to find damage, and returns its thumbnail.

    Raises:
        TrainerError: it can't be read; the message has the artist's name for it instead of the upload's.
    """
    try:
        return small_picture(path, THUMBNAIL, most_pixels=max_pixels)[0]
    except TrainerError as error:
        raise TrainerError(str(error).replace(path.name, name, 1)) from None


def _stem_of_same_picture(folder: Path, wanted: str, file: IncomingFile, taken: set[Path]) -> str | None:
    """Returns the stem under which the same bytes are stored already, among the names that `free_stem` tries.

    Args:
        taken: pictures of the same upload: a folder can hold a picture twice, with two captions.
    """
    size = file.path.stat().st_size
    for stem in numbered(wanted):
        stored = folder / f"{stem}{file.suffix}"
        if not stored.is_file():
            return None
        if stored in taken or stored.stat().st_size != size:
            continue
        if stored.read_bytes() == file.path.read_bytes():
            return stem
    return None


def _move_durably(path: Path, target: Path, *, keep: bool) -> None:
    """Moves a file into place: it is there completely or not at all, also after a power failure.

    Args:
        keep: copies the file instead.
    """
    with replacing(target) as temporary:
        if keep:
            shutil.copyfile(path, temporary)
        else:
            shutil.move(path, temporary)
        temporary.chmod(0o644)
