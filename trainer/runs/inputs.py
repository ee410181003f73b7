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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.dataset.augmentations import mask_file
from trainer.dataset.captions import MetadataRow, metadata_captions, sidecar_lines
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.overrides import Override, read_overrides
from trainer.errors import DatasetError
from trainer.json_files import read_object
from trainer.runs.run import Run

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
        recorded: state by path of a picture; empty at the first start.
    """

    recorded: dict[str, Any]

    @property
    def is_continued(self) -> bool:
        """Returns whether the run has started before."""
        return bool(self.recorded)

    def mask_digest(self, item: Item) -> str:
        """Returns the SHA-256 of the picture's mask file at the first start; "" for a picture without a mask."""
        state = self.recorded.get(item.path)
        return state["mask"] if isinstance(state, dict) and "mask" in state else _mask_digest(item)


def open_inputs(run: Run) -> Inputs:
    """Records the inputs at the first start; later, emits one `problem` that names what has changed since."""
    manifest, file = run.manifest, run.path / "inputs.json"
    recorded = read_object(file)
    # Runs of version 0.1 have no record; their pictures are compared with the manifest.
    if recorded or any(run.checkpoints.glob("step-*")):
        message = changes(manifest, recorded)
        if message:
            run.emit("problem", message=message)
    if not recorded and run.is_main_process:
        text = json.dumps(input_states(manifest), ensure_ascii=False, indent=1)
        write_atomically(file, text.encode())
    return Inputs(recorded)


def input_states(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Returns the present state of each picture's files, by its path."""
    rows, overrides = functools.cache(_metadata_rows), functools.cache(read_overrides)
    return {
        item.path: {
            **_picture_state(item),
            "caption": _caption_digest(item, rows),
            "mask": _mask_digest(item),
            "choices": _choices(item, overrides),
        }
        for item in manifest.items
    }


def changes(manifest: Manifest, recorded: dict[str, Any]) -> str | None:
    """Returns sentences on the inputs that differ from the recorded ones; None if all are the same.

    Args:
        recorded: `input_states` of the start; pictures that it lacks are compared with the manifest alone.
    """
    present = input_states(manifest)
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


def _names(kind: str, names: list[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    verb = {"changed": "have" if len(names) > 1 else "has", "missing": "are" if len(names) > 1 else "is"}
    return f"{', '.join(names[:_NAMED])}{rest}" + (f" {verb[kind]}" if kind in verb else "")


def _picture_state(item: Item) -> dict[str, Any]:
    try:
        status = Path(item.path).stat()
    except OSError:
        return {"size": None, "modified": None}
    return {"size": status.st_size, "modified": status.st_mtime_ns}


def _caption_digest(item: Item, rows: Callable[[Path], dict[str, MetadataRow]]) -> str:
    """Returns a hash of the picture's caption file, or of its row in metadata.jsonl; "" without either."""
    path = Path(item.path)
    try:
        lines = sidecar_lines(path)
    except DatasetError:
        return "unreadable"
    row = rows(path.parent).get(path.name)
    if lines is None and row is None:
        return ""
    text = "\n".join(lines if lines is not None else [row.caption if row else ""])
    return hashlib.sha256(f"{row.weight if row else 1.0}\n{text}".encode()).hexdigest()


def _metadata_rows(folder: Path) -> dict[str, MetadataRow]:
    try:
        return metadata_captions(folder)[0]
    except DatasetError:
        return {}


def _mask_digest(item: Item) -> str:
    path = mask_file(Path(item.path))
    return _digest(path) if path else ""


def _choices(item: Item, overrides: Callable[[Path], dict[str, Override]]) -> str:
    """Returns the artist's crop and repeats, which the picture's folder or the one above it holds."""
    path = Path(item.path)
    for folder in path.parents[:2]:
        override = overrides(folder).get(path.relative_to(folder).as_posix())
        if override:
            return repr(override)
    return ""


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"
