"""The library: every finished LoRA of an artist, found by key, labelled, imported and deleted. No gradio, no torch.

outputs/<run>/                     a training with a LoRA file; choice.json names the checkpoint that the artist chose
outputs/.library/<name>/           a file that was imported, or created from other files
  <name>.safetensors
  entry.json                       the file's origin (trainer/headers/sidecars.py); written last

Beside this file: jobs on files (file_jobs.py), merging, resizing and converting (lora_edits.py), pictures of a LoRA
(lora_pictures.py), and what is shared with a LoRA (share.py).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.errors import LoraFileError, RunError, TrainerError
from trainer.headers.edit_metadata import Label, checked, relabel
from trainer.headers.lora import recognise
from trainer.headers.sidecars import CHOICE, ENTRY
from trainer.json_files import read_object
from trainer.runs.run import Run
from trainer.sampling_config import checked_weight
from ui.store.file_jobs import FileJobs
from ui.store.naming import clean_name, create_folder
from ui.store.runs import Runs

LIBRARY_PREFIX = "library:"  # of keys of files in outputs/.library; the name of a run can't contain a colon
_TEXT_FIELDS = ("title", "author", "licence", "description", "tags", "trigger")


@dataclass(frozen=True, kw_only=True)
class LoraEntry:
    """One LoRA: its header's metadata and the sidecar beside it."""

    key: str  # the name of a run, or LIBRARY_PREFIX and the name of a folder in outputs/.library
    folder: Path
    file: Path
    metadata: dict[str, str]
    origin: str  # "train", "import", "merge", "resize" or "convert"
    created_at: float  # seconds since 1970
    made_from: tuple[str, ...] = ()  # names of the files that it was created from
    compatible_tools: tuple[str, ...] = ()  # tools that read the complete file
    problem: str = ""  # found by the check after importing

    @property
    def label(self) -> Label:
        """The artist's title, author, licence and other descriptions of the LoRA."""
        return Label.of(self.metadata)

    @property
    def name(self) -> str:
        """The key without its prefix."""
        return self.key.removeprefix(LIBRARY_PREFIX)

    @property
    def stem(self) -> str:
        """The stem of the downloaded file: `ink-300` for a training, name and steps; imported files keep their own."""
        steps = self.metadata.get("ss_steps", "")
        if self.origin != "train" or not steps.isdecimal() or self.file.stem.endswith(f"-{steps}"):
            return self.file.stem
        return f"{self.file.stem}-{steps}"

    @property
    def base(self) -> str:
        """The name of the base model that it was trained on, "" if the file doesn't have one."""
        return self.metadata.get("ss_sd_model_name", "").removesuffix(".safetensors")


@dataclass(frozen=True)
class Library:
    """One artist's LoRAs."""

    runs: Runs

    @property
    def folder(self) -> Path:
        """The folder of files that were imported or created from other files."""
        return self.runs.outputs / ".library"

    def all(self) -> list[str]:
        """Returns the keys of all entries, newest first."""
        return [entry.key for entry in self.entries()]

    def entries(self) -> list[LoraEntry]:
        """Returns all entries, newest first."""
        names = [path.parent.name for path in self.folder.glob(f"*/{ENTRY}")]
        keys = [f"{LIBRARY_PREFIX}{name}" for name in names if not name.startswith(".")]
        entries = [entry for key in (*self.runs.finished(), *keys) if (entry := self._read(key))]
        return sorted(entries, key=lambda entry: -entry.created_at)

    def revision(self) -> str:
        """Returns a hash that changes whenever a card does; cheap enough for a poll every second."""
        patterns = ("*/*.safetensors", f"*/{CHOICE}", "*/samples/strip.png", f".library/*/{ENTRY}")
        digest = hashlib.sha256()
        for path in sorted(path for pattern in patterns for path in self.runs.outputs.glob(pattern)):
            with contextlib.suppress(OSError):  # deleted meanwhile
                digest.update(f"{path.relative_to(self.runs.outputs)} {path.stat().st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def entry(self, key: str) -> LoraEntry:
        """Returns the entry of a key.

        Raises:
            RunError: there is no such entry. A key is compared with existing names and never joined to a path unchecked.
        """
        if key.startswith(LIBRARY_PREFIX):
            names = {path.parent.name for path in self.folder.glob(f"*/{ENTRY}")}
            is_known = key.removeprefix(LIBRARY_PREFIX) in names
        else:
            is_known = key in self.runs.names()
        entry = self._read(key) if is_known else None
        if entry is None:
            raise RunError("that LoRA does not exist, or is not finished yet; choose another")
        return entry

    def _read(self, key: str) -> LoraEntry | None:
        """Reads an entry; None for one without a readable file or sidecar."""
        with contextlib.suppress(TrainerError, OSError, ValueError, KeyError):
            return self._read_file(key) if key.startswith(LIBRARY_PREFIX) else self._read_run(key)
        return None

    def _read_file(self, key: str) -> LoraEntry:
        folder = self.folder / key.removeprefix(LIBRARY_PREFIX)
        file, sidecar = folder / f"{folder.name}.safetensors", read_object(folder / ENTRY)
        return LoraEntry(
            key=key,
            folder=folder,
            file=file,
            metadata=_metadata(file),
            origin=sidecar["origin"],
            created_at=sidecar["made"],
            made_from=tuple(sidecar["of"]),
            compatible_tools=tuple(sidecar["takes"]),
            problem=sidecar.get("problem", ""),
        )

    def _read_run(self, key: str) -> LoraEntry:
        run = self.runs.run(key)
        choice = read_object(run.path / CHOICE)
        file = run.path / str(choice.get("file", ""))
        if not choice or file.parent != run.path or not file.is_file():
            file = run.lora_file
        tools = choice["takes"] if choice.get("file") == file.name else self.runs.view(key)[0].takes
        return LoraEntry(
            key=key,
            folder=run.path,
            file=file,
            metadata=_metadata(file),
            origin="train",
            created_at=file.stat().st_mtime,
            compatible_tools=tuple(tools),
        )

    def path(self, key: str) -> str:
        """Returns the path of a LoRA's file, for a training to start from.

        Raises:
            RunError: there is no such entry.
        """
        return str(self.entry(key).file.resolve())

    def choice(self, key: str) -> dict[str, Any]:
        """Returns the checkpoint and strength that the artist chose, as in choice.json; {} without a choice."""
        return read_object(self.entry(key).folder / CHOICE)

    def checkpoints(self, key: str) -> list[int]:
        """Returns the steps of a training's checkpoints in ascending order."""
        if key.startswith(LIBRARY_PREFIX):
            return []
        names = [path.name.removeprefix("step-") for path in self.runs.run(key).checkpoints.glob("step-*")]
        return sorted(int(name) for name in names if name.isdigit())

    def relabel(self, key: str, values: dict[str, Any]) -> LoraEntry:
        """Writes the artist's label into the file's metadata.

        Raises:
            TrainerError: there is no such entry, or a text or weight is not valid.
        """
        entry = self.entry(key)
        texts = {name: str(values.get(name) or "") for name in _TEXT_FIELDS}
        weight = optional_weight(values.get("weight"))
        label = Label(**texts, weight=weight, own_work=values.get("own_work") is True)
        relabel(entry.file, checked(label).changes())
        return self.entry(key)

    def prefer(self, key: str, strength: float, step: int | None = None) -> str | None:
        """Makes a strength the preferred one, and the checkpoint of a step the training's file.

        Returns:
            The id of the job that exports the checkpoint, or None if no job is necessary.

        Raises:
            TrainerError: there is no such entry or checkpoint, or the strength is not valid.
        """
        entry, weight = self.entry(key), optional_weight(strength)
        if weight is None:
            raise TrainerError("choose a strength from -2 to 2")
        is_current = step is None or entry.metadata.get("ss_steps") == str(step)
        if not is_current:
            if step not in self.checkpoints(key):
                raise RunError("that checkpoint no longer exists; choose another")
            return FileJobs(self.runs).start(
                "choose", run=str(entry.folder.resolve()), step=step, strength=weight
            )
        self.relabel(key, {**vars(entry.label), "weight": weight})
        if step is not None:
            choice = {"step": step, "strength": weight, "file": entry.file.name}
            choice |= {"takes": list(entry.compatible_tools), "made": time.time()}
            write_atomically(entry.folder / CHOICE, json.dumps(choice).encode())
        return None

    def import_file(self, upload: Path, name: str) -> str:
        """Copies an uploaded LoRA into the library and starts a job that checks its tensors; returns its key.

        Only the header is read here. Values that are not finite and tensors of unknown modules are reported by the job;
        the file can be used meanwhile.

        Raises:
            LoraFileError: the file is not a LoRA, or the disk is full.
        """
        stem = clean_name(Path(name).stem) or "lora"
        try:
            recognise(upload)
        except LoraFileError as error:
            raise LoraFileError(str(error).replace(upload.name, f"{stem}.safetensors")) from None
        file = self.new_file(stem)
        try:
            shutil.copyfile(upload, file)
            sidecar = {"origin": "import", "of": [], "takes": [], "made": time.time()}
            write_atomically(file.parent / ENTRY, json.dumps(sidecar).encode())
        except OSError as error:
            shutil.rmtree(file.parent, ignore_errors=True)
            raise LoraFileError(
                f"{file.name} could not be written to the disk ({error.strerror}); free some space and upload it again"
            ) from None
        FileJobs(self.runs).start("check", source=str(file.resolve()))
        return f"{LIBRARY_PREFIX}{file.parent.name}"

    def new_file(self, name: str) -> Path:
        """Creates a folder for a new file and returns the file's path, with a number if the name is taken."""
        folder = create_folder(self.folder, clean_name(name) or "lora")
        return folder / f"{folder.name}.safetensors"

    def size_on_disk(self, key: str) -> tuple[int, int]:
        """Returns the numbers of files and of bytes that `delete` removes."""
        files = [path for folder in self._folders(key) for path in folder.rglob("*") if path.is_file()]
        return len(files), sum(path.stat().st_size for path in files)

    def delete(self, key: str) -> tuple[int, int]:
        """Deletes a LoRA with its training, thumbnails and drawings; returns the numbers of files and of bytes.

        Raises:
            RunError: there is no such entry, or it is in training.
        """
        entry = self.entry(key)
        job = self.runs.queue.find(entry.folder)
        if Run(entry.folder).is_alive() or (job is not None and job.state in ("waiting", "running")):
            raise RunError(f"“{entry.name}” is still training; stop it first")
        removed = self.size_on_disk(key)
        for folder in self._folders(key):
            # Renamed first: the entry is gone for all readers at once, even if removing its files is interrupted.
            renamed = self.runs.outputs / f".removing-{uuid.uuid4().hex}"
            folder.rename(renamed)
            shutil.rmtree(renamed)
        return removed

    def _folders(self, key: str) -> list[Path]:
        thumbnails = self.thumbnails_folder(key)
        folders = [self.entry(key).folder, *_drawings_with(self.runs.outputs, key)]
        return [*folders, thumbnails] if thumbnails.is_dir() else folders

    def thumbnails_folder(self, key: str) -> Path:
        """Returns the folder of an entry's thumbnails."""
        return self.runs.outputs / ".cache" / "results" / key.replace(":", "_")


def optional_weight(value: Any) -> float | None:
    """Returns a weight rounded for the metadata; None for an empty form field.

    Raises:
        TrainerError: not a number from -2 to 2.
    """
    return None if value is None or value == "" else round(checked_weight(value), 4)


def _drawings_with(outputs: Path, key: str) -> list[Path]:
    """Returns the folders of drawings (ui/store/drawings.py) that used a LoRA."""
    folders = []
    for path in (outputs / ".drawing" / "drawn").glob("*/asked.json"):
        if any(used == key for used, _ in read_object(path).get("files", ())):
            folders.append(path.parent)
    return folders


def _metadata(file: Path) -> dict[str, str]:
    stat = file.stat()
    return _metadata_of_version(file, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@functools.lru_cache(maxsize=1000)
def _metadata_of_version(file: Path, *version: int) -> dict[str, str]:
    """Caches headers: the page reads them with every poll, and they change only with their files."""
    return recognise(file).metadata
