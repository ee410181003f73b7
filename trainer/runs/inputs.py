"""Input files of a training, recorded at its first start and compared when it continues.

outputs/ink/inputs.json    {"/art/owl.png": {"size": 81920, "modified": 17..., "caption": "9f...", "mask": "",
                            "choices": "..."}}

A training continues with the inputs that it began with: captions, crops and repeats are in manifest.json, latents
and masks in the cache. Otherwise a stopped training would not give the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.dataset.folder import FoundPicture, read_folder
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.overrides import Override, read_overrides
from trainer.errors import DatasetError
from trainer.json_files import read_object
from trainer.runs.run import Run

_NO_FILES = {"caption": "", "mask": "", "choices": ""}
_NAMED = 3  # pictures named in a message
_KEPT = {
    "caption": "the captions of {names} have changed; the training continues with the captions that it began with",
    "choices": "crops or repeats of {names} have changed; the training continues with those that it began with",
    "mask": "the masks of {names} have changed; the training continues with the masks that it began with",
    "changed": "{names} changed; the training continues with the cached copy of what it began with, and leaves "
    "out a picture without one",
    "missing": "{names} missing; the training continues with the cached copy of what it began with, and leaves "
    "out a picture without one",
}


@dataclass(frozen=True)
class Inputs:
    """The recorded inputs of a run.

    Attributes:
        states: state at the first start, by path of a picture.
        is_continued: the run has started before.
    """

    states: dict[str, Any]
    is_continued: bool = False

    def mask_digest(self, item: Item) -> str:
        """Returns the SHA-256 of the picture's mask file at the first start; "" for a picture without a mask."""
        return self.states[item.path]["mask"]


def open_inputs(run: Run) -> Inputs:
    """Records the inputs at the first start; later, emits one `problem` that names what has changed since.

    A damaged record counts as none.
    """
    manifest, file = run.manifest, run.path / "inputs.json"
    recorded, present = read_object(file), input_states(manifest)
    is_complete = all(isinstance(recorded.get(item.path), dict) for item in manifest.items)
    is_known = is_complete and all(
        recorded[item.path].keys() == present[item.path].keys() for item in manifest.items
    )
    # Runs of version 0.1 have no record; their pictures are compared with the manifest.
    is_continued = is_known or any(run.checkpoints.glob("step-*"))
    if is_continued:
        message = changes(manifest, recorded if is_known else {}, present)
        if message:
            run.emit("problem", message=message)
    if not is_known and run.is_main_process:
        write_atomically(file, json.dumps(present, ensure_ascii=False, indent=1).encode())
    return Inputs(recorded if is_known else present, is_continued=is_known)


def input_states(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Returns the present state of each picture's files, by its path."""
    pictures = functools.cache(_pictures_of)
    states = {}
    for item in manifest.items:
        path = Path(item.path)
        is_inside = path.is_relative_to(manifest.folder)
        root = Path(manifest.folder) if is_inside else path.parent
        states[item.path] = {**_picture_state(path), **pictures(root).get(item.path, _NO_FILES)}
    return states


def changes(manifest: Manifest, recorded: dict[str, Any], present: dict[str, Any]) -> str | None:
    """Returns sentences on the inputs that differ from the recorded ones; None if all are the same.

    Args:
        recorded: `input_states` of the start; pictures that it lacks are compared with the manifest alone.
        present: `input_states` of now.
    """
    changed: dict[str, list[str]] = {kind: [] for kind in _KEPT}
    for item in manifest.items:
        before, now = recorded.get(item.path, {}), present[item.path]
        if now["size"] is None:
            changed["missing"].append(item.name)
            continue  # its caption and mask are often removed with it
        for kind in ("caption", "choices", "mask"):
            if kind in before and before[kind] != now[kind]:
                changed[kind].append(item.name)
        is_untouched = all(before.get(key) == now[key] for key in ("size", "modified"))
        if not is_untouched and _digest(Path(item.path)) != item.digest:
            changed["changed"].append(item.name)
    sentences = [_KEPT[kind].format(names=_names(kind, names)) for kind, names in changed.items() if names]
    if not sentences:
        return None
    text = "; ".join(sentences)
    return f"since this training began, {text}. Start a new training to use the files as they are now"


def listed(names: list[str]) -> str:
    """Returns the first names and the number of the others: "a.png, b.png, c.png and 4 more"."""
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def _names(kind: str, names: list[str]) -> str:
    verb = {"changed": "have" if len(names) > 1 else "has", "missing": "are" if len(names) > 1 else "is"}
    return listed(names) + (f" {verb[kind]}" if kind in verb else "")


def _picture_state(path: Path) -> dict[str, Any]:
    try:
        status = path.stat()
    except OSError:
        return {"size": None, "modified": None}
    return {"size": status.st_size, "modified": status.st_mtime_ns}


def _pictures_of(folder: Path) -> dict[str, dict[str, str]]:
    """Returns hashes of caption and mask, and the artist's crop and repeats, of each picture in a folder."""
    try:
        found = read_folder(folder).pictures
    except DatasetError:
        return {}
    overrides = read_overrides(folder)
    return {
        os.path.abspath(picture.path): {
            "caption": _caption_digest(picture),
            "mask": _digest(picture.mask_file) if picture.mask_file else "",
            "choices": repr(overrides.get(picture.name, Override())),
        }
        for picture in found
    }


def _caption_digest(picture: FoundPicture) -> str:
    """Returns a hash of the caption and of the loss weight, however the files are encoded."""
    try:
        lines = picture.caption_lines()
    except DatasetError:
        return "unreadable"
    text = "\n".join([picture.row.caption] if lines is None else lines)
    return hashlib.sha256(f"{picture.row.weight}\n{text}".encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"
