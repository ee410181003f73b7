"""Captions for a folder: picture after picture, each caption whole on disk before the next batch begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.atomic_files import write_atomically
from trainer.captioning_config import CaptionOptions, Describe
from trainer.dataset.captions import metadata_captions, one_line, sidecar_lines
from trainer.dataset.pictures import open_picture
from trainer.dataset.scan import picture_folders, pictures_in
from trainer.errors import DatasetError
from trainer.headers.captioner import WD_TAGGER, Captioner
from trainer.runs.commands import CommandInbox
from trainer.runs.run import Run


@dataclass(frozen=True)
class CaptioningTask:
    """What is captioned, by which model, and how."""

    folder: Path
    captioner: Captioner
    options: CaptionOptions


def caption_folder(run: Run, work: CaptioningTask, stop: CommandInbox, done: set[str]) -> str:
    """Writes a `.txt` beside each picture that is to have one; "finished" or "stopped". What it does is said to the run.

    Args:
        done: pictures that this run has captioned before, which `overwrite` does not caption again.

    Raises:
        DatasetError: there is no picture, none could be captioned, or a caption can't be written.
        CaptionerError: the model can't be loaded, or memory does not suffice.
    """
    wanted = pictures_wanted(run, work)
    left = [path for path in wanted if _name(path, work) not in done]
    total, problems = len(wanted), []
    if left and not stop.stop_requested():
        run.emit("stage", stage="loading the model", done=0, total=0)
        describe = load(work.captioner, work.options)
    for start in range(0, len(left), work.options.batch):
        if stop.stop_requested():
            return "stopped"
        run.emit("stage", stage="captioning", done=total - len(left) + start, total=total)
        for problem in _batch(run, work, describe, left[start : start + work.options.batch]):
            problems.append(problem)
            run.emit("problem", message=problem)
    run.emit("stage", stage="captioning", done=total, total=total)
    if left and len(problems) == total:
        raise DatasetError(f"no picture of {work.folder.name} could be captioned: {problems[0]}")
    return "finished"


def pictures_wanted(run: Run, work: CaptioningTask) -> list[Path]:
    """Pictures of the folder, and of its `NN_name` sub-folders, that are to be captioned. Raises DatasetError."""
    if not work.folder.is_dir():
        raise DatasetError(
            f"{work.folder.name or work.folder} is not a folder; give the folder that holds your pictures"
        )
    wanted, any_picture = [], False
    for place, _, _ in picture_folders(work.folder):
        listed, problems = metadata_captions(place)
        pictures, odd = pictures_in(place)
        owners: dict[Path, Path] = {}  # of caption files: art.png and art.jpg would share one
        for path in pictures:
            any_picture = True
            first = owners.setdefault(path.with_suffix(".txt"), path)
            if first is not path:
                odd.append(f"{path.name} would share its caption file with {first.name}; rename one of them")
                continue
            try:
                written = sidecar_lines(path) or (path.name in listed and listed[path.name].caption)
            except DatasetError as error:
                odd.append(str(error))
                continue
            if work.options.overwrite or not written:
                wanted.append(path)
        for problem in problems + odd:
            run.emit("problem", message=problem)
    if not any_picture:
        raise DatasetError(
            f"{work.folder.name} holds no picture to caption (png, jpg, webp, bmp, tiff, gif or avif)"
        )
    return wanted


def load(captioner: Captioner, options: CaptionOptions) -> Describe:
    """The model, as a function from RGB pictures to texts. Raises CaptionerError."""
    if captioner.kind == WD_TAGGER:
        from trainer.captioning.tags import load_tagger

        return load_tagger(captioner, options)
    from trainer.captioning.sentences import load_describer

    return load_describer(captioner, options)


def _batch(run: Run, work: CaptioningTask, describe: Describe, paths: list[Path]) -> list[str]:
    """Captions some pictures; what went wrong with the others."""
    pictures, problems = {}, []
    for path in paths:
        try:
            pictures[path] = open_picture(path)
        except DatasetError as error:
            problems.append(str(error))
    texts = describe(list(pictures.values())) if pictures else []
    for path, text in zip(pictures, texts, strict=True):
        text = one_line(text)
        if not text:
            problems.append(
                f"the model said nothing of {path.name}; lower the thresholds, or caption it by hand"
            )
            continue
        if not work.options.overwrite and sidecar_lines(path):
            continue  # written by hand meanwhile
        caption = work.options.complete_caption(text)
        try:
            write_atomically(path.with_suffix(".txt"), (caption + "\n").encode())
        except OSError as error:
            raise DatasetError(
                f"{path.stem}.txt can't be written ({error.strerror}); check the disk and the folder"
            ) from None
        run.emit("captioned", name=_name(path, work), caption=caption)
    return problems


def _name(path: Path, work: CaptioningTask) -> str:
    return path.relative_to(work.folder).as_posix()
