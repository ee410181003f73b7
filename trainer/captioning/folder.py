"""Captioning of a picture folder, batch by batch; each caption is on disk before the next batch begins."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from trainer.atomic_files import write_atomically
from trainer.captioning_config import CaptionOptions, Describe
from trainer.dataset.captions import one_line
from trainer.dataset.folder import FoundPicture, caption_file, read_folder, sidecar_lines
from trainer.dataset.pictures import SUPPORTED_WORDS, open_picture
from trainer.errors import DatasetError
from trainer.headers.captioner import WD_TAGGER, Captioner
from trainer.runs.commands import CommandInbox
from trainer.runs.run import Run


@dataclass(frozen=True)
class CaptioningTask:
    """A picture folder, the model that captions it, and its options.

    Attributes:
        since_ns: when the captioning was requested, in ns since 1970. Captions that are written later by somebody
            else are kept, also with `overwrite`.
    """

    folder: Path
    captioner: Captioner
    options: CaptionOptions
    since_ns: int = field(default_factory=time.time_ns)

    def name(self, path: Path) -> str:
        """Returns the path of a picture in the folder, with /."""
        return path.relative_to(self.folder).as_posix()


def caption_folder(run: Run, task: CaptioningTask, commands: CommandInbox, done: set[str]) -> str:
    """Writes caption files and emits the events of trainer/runs/captioning_job.py; returns "finished" or
    "stopped".

    Args:
        done: names of pictures that an earlier process of this run has captioned; they are skipped, also with
            `overwrite`.

    Raises:
        DatasetError: there is no picture, none could be captioned, or a caption can't be written.
        CaptionerError: the model can't be loaded or needs more memory than there is.
    """
    pictures = pictures_to_caption(run, task)
    remaining = [path for path in pictures if task.name(path) not in done]
    total = len(pictures)
    problems: list[str] = []
    if remaining:
        if commands.stop_requested():
            return "stopped"
        run.emit("stage", stage="loading the model", done=0, total=0)
        describe = load_captioner(task.captioner, task.options)
        for start in range(0, len(remaining), task.options.batch):
            if commands.stop_requested():
                return "stopped"
            run.emit("stage", stage="captioning", done=total - len(remaining) + start, total=total)
            problems += _caption_batch(run, task, describe, remaining[start : start + task.options.batch])
    run.emit("stage", stage="captioning", done=total, total=total)
    if remaining and len(problems) == total:
        raise DatasetError(f"no picture of {task.folder.name} could be captioned: {problems[0]}")
    return "finished"


def pictures_to_caption(run: Run, task: CaptioningTask) -> list[Path]:
    """Returns the pictures of the folder and its sub-folders that need a caption.

    With `overwrite` these are all, otherwise those without a caption. Emits a problem for each that can't be
    captioned. Raises DatasetError if the folder is missing or holds no picture.
    """
    if not task.folder.is_dir():
        raise DatasetError(
            f"{task.folder.name or task.folder} is not a folder; give the folder that holds your pictures"
        )
    selected: list[Path] = []
    found = read_folder(task.folder)
    problems = [*found.problems, *found.notes()]
    picture_of_file: dict[Path, FoundPicture] = {}  # art.png and art.jpg would share one caption file
    for picture in found.pictures:
        first = picture_of_file.setdefault(picture.caption_file, picture)
        if first is not picture:
            problems.append(
                f"{picture.name} would share its caption file with {first.name}; rename one of them"
            )
            continue
        try:
            has_caption = bool(picture.caption_lines()) or (picture.has_row and bool(picture.row.caption))
        except DatasetError as error:
            problems.append(str(error))
            continue
        if task.options.overwrite or not has_caption:
            selected.append(picture.path)
    for problem in problems:
        run.emit("problem", message=problem)
    if not found.pictures:
        raise DatasetError(f"{task.folder.name} holds no picture to caption ({SUPPORTED_WORDS})")
    return selected


def load_captioner(captioner: Captioner, options: CaptionOptions) -> Describe:
    """Returns the model as a function from RGB pictures to texts. Raises CaptionerError."""
    if captioner.kind == WD_TAGGER:
        from trainer.captioning.tags import load_tagger

        return load_tagger(captioner, options)
    from trainer.captioning.sentences import load_describer

    return load_describer(captioner, options)


def _caption_batch(run: Run, task: CaptioningTask, describe: Describe, paths: list[Path]) -> list[str]:
    """Captions some pictures; emits and returns the problems of those that can't be captioned."""
    pictures: dict[Path, Image.Image] = {}
    problems: list[str] = []
    for path in paths:
        try:
            pictures[path] = open_picture(path)
        except DatasetError as error:
            problems.append(str(error))
    texts = describe(list(pictures.values())) if pictures else []
    for path, text in zip(pictures, texts, strict=True):
        line = one_line(text)
        if not line:
            problems.append(
                f"the model returned nothing for {path.name}; lower the thresholds, or caption it by hand"
            )
        elif not sidecar_lines(path):  # the user can have written one meanwhile
            _write_caption(run, task, path, task.options.complete_caption(line))
        elif task.options.overwrite and _is_newer(caption_file(path), task.since_ns):
            message = (
                f"the caption of {task.name(path)} was edited after the captioning was started; it is kept"
            )
            run.emit("problem", message=message)
        elif task.options.overwrite:
            _write_caption(run, task, path, task.options.complete_caption(line))
    for problem in problems:
        run.emit("problem", message=problem)
    return problems


def _is_newer(file: Path, since_ns: int) -> bool:
    """Returns True if a file was written after a time. A time in the future comes from the clock of another machine."""
    return since_ns < file.stat().st_mtime_ns <= time.time_ns()


def _write_caption(run: Run, task: CaptioningTask, path: Path, caption: str) -> None:
    try:
        write_atomically(caption_file(path), (caption + "\n").encode())
    except OSError as error:
        raise DatasetError(
            f"{path.stem}.txt can't be written ({error.strerror}); check the disk and the folder"
        ) from None
    run.emit("captioned", name=task.name(path), caption=caption)
