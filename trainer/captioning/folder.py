"""Captioning of a picture folder, batch by batch; each caption is on disk before the next batch begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.atomic_files import write_atomically
from trainer.captioning_config import CaptionOptions, Describe
from trainer.dataset.captions import caption_file_notes, metadata_captions, one_line, sidecar_lines
from trainer.dataset.pictures import open_picture
from trainer.dataset.scan import picture_folders, pictures_in
from trainer.errors import DatasetError
from trainer.headers.captioner import WD_TAGGER, Captioner
from trainer.runs.commands import CommandInbox
from trainer.runs.run import Run


@dataclass(frozen=True)
class CaptioningTask:
    """A picture folder, the model that captions it, and its options."""

    folder: Path
    captioner: Captioner
    options: CaptionOptions

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
    """Returns the pictures of the folder and its `NN_name` subfolders that need a caption.

    With `overwrite` these are all, otherwise those without a caption. Emits a problem for each that can't be
    captioned. Raises DatasetError if the folder is missing or holds no picture.
    """
    if not task.folder.is_dir():
        raise DatasetError(
            f"{task.folder.name or task.folder} is not a folder; give the folder that holds your pictures"
        )
    selected: list[Path] = []
    picture_count = 0
    for subfolder, _, _ in picture_folders(task.folder):
        rows, bad_rows = metadata_captions(subfolder)
        pictures, bad_names = pictures_in(subfolder)
        picture_count += len(pictures)
        problems = bad_rows + bad_names + caption_file_notes(subfolder, pictures)
        picture_of_file: dict[Path, Path] = {}  # art.png and art.jpg would share one caption file
        for path in pictures:
            first = picture_of_file.setdefault(path.with_suffix(".txt"), path)
            if first is not path:
                problems.append(
                    f"{path.name} would share its caption file with {first.name}; rename one of them"
                )
                continue
            try:
                has_caption = bool(sidecar_lines(path)) or bool(path.name in rows and rows[path.name].caption)
            except DatasetError as error:
                problems.append(str(error))
                continue
            if task.options.overwrite or not has_caption:
                selected.append(path)
        for problem in problems:
            run.emit("problem", message=problem)
    if not picture_count:
        raise DatasetError(
            f"{task.folder.name} holds no picture to caption (png, jpg, webp, bmp, tiff, gif or avif)"
        )
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
        elif task.options.overwrite or not sidecar_lines(path):  # the user can have written one meanwhile
            _write_caption(run, task, path, task.options.complete_caption(line))
    for problem in problems:
        run.emit("problem", message=problem)
    return problems


def _write_caption(run: Run, task: CaptioningTask, path: Path, caption: str) -> None:
    try:
        write_atomically(path.with_suffix(".txt"), (caption + "\n").encode())
    except OSError as error:
        raise DatasetError(
            f"{path.stem}.txt can't be written ({error.strerror}); check the disk and the folder"
        ) from None
    run.emit("captioned", name=task.name(path), caption=caption)
