"""Run directory: all files of one training, and the claim of the process that works on it.

outputs/ink/
  config.toml            every setting, written once
  sources.json           picture folders, for runs whose pictures the trainer scans itself (`scan_sources`)
  manifest.json          pictures and captions, written once
  inputs.json            state of these files at the first start (trainer/runs/inputs.py)
  tracker.json           name of the run in Weights & Biases, so that it continues there too
  events.jsonl           events of the trainer, append-only (trainer/runs/events.py)
  commands.jsonl         commands of the page, append-only (trainer/runs/commands.py)
  owner.json             the process that works on the run: {"pid": 71, "started": <seconds since 1970>}
  trainer.log            output and tracebacks of the process
  checkpoints/step-100/  state from which `resume` continues
  samples/               sample images during and after the training
  ink.safetensors        the LoRA file

The directory is the only state: the page, the queue and the trainer exchange nothing else. Every file except
the two logs appears complete or not at all. The same layout, with other content, serves captionings, LoRA
tools and sampling sessions.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from trainer.atomic_files import TEMPORARY_PREFIX, write_atomically
from trainer.config import TrainConfig, config_from, read_toml, to_toml
from trainer.dataset.manifest import Manifest
from trainer.dataset.sources import scan_all, with_class_and_validation
from trainer.errors import RunError
from trainer.json_files import read_object
from trainer.runs import events


@dataclass(frozen=True)
class Run:
    """A run directory."""

    path: Path
    is_main_process: bool = (
        True  # False in the further processes of `torchrun`, which compute but write nothing
    )

    @property
    def events(self) -> Path:
        """Log of the trainer."""
        return self.path / "events.jsonl"

    @property
    def commands(self) -> Path:
        """Log of the page."""
        return self.path / "commands.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of sample images."""
        return self.path / "samples"

    @property
    def config(self) -> TrainConfig:
        """Settings, read from the disk. Raises ConfigError."""
        values = read_toml(self.path / "config.toml")
        # Every setting is in the file, so a run without this one is of version 0.1 and continues as it began.
        values.setdefault("mask_normalisation", "none")
        return config_from(values)

    @property
    def manifest(self) -> Manifest:
        """Pictures and captions, read from the disk."""
        return Manifest.from_json(json.loads((self.path / "manifest.json").read_text(encoding="utf-8")))

    @property
    def lora_file(self) -> Path:
        """Path of the trained LoRA file."""
        return self.path / f"{self.config.name}.safetensors"

    def emit(self, kind: str, *, sync: bool = False, **fields: Any) -> None:
        """Appends an event (trainer/runs/events.py); does nothing outside the main process.

        Args:
            sync: flushes the event to the disk, so that it survives a power cut.
        """
        if self.is_main_process:
            events.append(self.events, kind, sync=sync, **fields)

    def is_alive(self) -> bool:
        """Returns whether a process works on this run.

        Call this before reading the events: in the other order a process that ends in between looks as if it
        had died without an `ended` event.
        """
        return _is_running(read_owner(self.path))


def check_is_unused(path: Path) -> None:
    """Raises RunError if a directory holds a run already."""
    if (path / "config.toml").exists():
        raise RunError(
            f"{path} already holds a run; choose another --output, or resume it: "
            f"python -m trainer resume {path}"
        )


def create(path: Path, config: TrainConfig, manifest: Manifest | list[Path]) -> Run:
    """Creates a run directory.

    Args:
        manifest: the pictures, to which the class and validation images of the settings are added; or
            folders, which `scan_sources` reads when the training begins (scanning thousands of pictures takes
            longer than a page may wait).

    Raises:
        RunError: the directory holds a run already.
        DatasetError: the folders that the settings name can't be read.
    """
    check_is_unused(path)
    run = Run(path)
    problems: tuple[str, ...] = ()
    if isinstance(manifest, Manifest):
        complete = with_class_and_validation(manifest, config)  # can raise, so nothing has been written yet
        new_notes = complete.notes[len(manifest.notes) :]
        problems = (*complete.problems[len(manifest.problems) :], *new_notes)
        name, text = "manifest.json", _manifest_text(complete)
    else:
        folders = [os.path.abspath(folder) for folder in manifest]
        name, text = "sources.json", json.dumps(folders, ensure_ascii=False)
    path.mkdir(parents=True, exist_ok=True)
    run.samples.mkdir(exist_ok=True)
    run.checkpoints.mkdir(exist_ok=True)
    write_atomically(path / name, text.encode())
    # Last: a directory with config.toml counts as a complete run.
    write_atomically(path / "config.toml", to_toml(config).encode())
    for problem in problems:
        run.emit("problem", message=problem)
    return run


def scan_sources(run: Run) -> None:
    """Writes manifest.json of a run that was created from folders. Raises DatasetError if they hold no
    picture.
    """
    if (run.path / "manifest.json").exists() or not (run.path / "sources.json").exists():
        return
    run.emit("stage", stage="reading pictures")
    folders = [Path(folder) for folder in json.loads((run.path / "sources.json").read_text(encoding="utf-8"))]
    config = run.config
    apart = (config.prior_folder, config.validation_folder)
    manifest = with_class_and_validation(scan_all(folders, trigger=config.trigger, apart=apart), config)
    write_atomically(run.path / "manifest.json", _manifest_text(manifest).encode())
    for problem in (*manifest.problems, *manifest.notes):
        run.emit("problem", message=problem)


def _manifest_text(manifest: Manifest) -> str:
    return json.dumps(manifest.to_json(), ensure_ascii=False, indent=1)


def open_run(path: Path) -> Run:
    """Returns an existing run. Raises RunError."""
    if not (path / "config.toml").is_file():
        raise RunError(f"{path} holds no run (no config.toml); give the folder that --output named")
    return Run(path)


@contextlib.contextmanager
def claim(run: Run) -> Iterator[None]:
    """Makes this process the only worker of a run until the end of the block.

    Raises:
        RunError: another living process holds the claim. The claim of a dead process is replaced.
    """
    process = psutil.Process()
    content = json.dumps({"pid": process.pid, "started": process.create_time()}).encode()
    _acquire(run, content, process.pid)
    try:
        yield
    finally:
        _owner_file(run.path).unlink(missing_ok=True)


def _acquire(run: Run, content: bytes, pid: int) -> None:
    owner_file = _owner_file(run.path)
    for _ in range(
        3
    ):  # each failed attempt means that another process took or left the run at the same moment
        try:
            _create_claim(owner_file, content, pid)
            return
        except FileExistsError:
            owner = read_owner(run.path)
            if owner and _is_running(owner):
                raise RunError(
                    f"another process ({owner['pid']}) works on {run.path.name}; stop it first"
                ) from None
            _remove_dead_claim(run, pid)
    raise RunError(f"{run.path} can't be claimed; try again")


def _create_claim(owner_file: Path, content: bytes, pid: int) -> None:
    """Writes a claim where none is. Raises FileExistsError."""
    complete = owner_file.with_name(f".owner-{pid}")
    complete.write_bytes(content)
    try:
        # A hard link is atomic: it fails if another process was first, and the claim is never seen
        # half-written.
        os.link(complete, owner_file)
    except FileExistsError:
        raise
    except OSError:  # exFAT and some network drives have no hard links
        with owner_file.open("xb") as file:
            file.write(content)
    finally:
        complete.unlink(missing_ok=True)


def _remove_dead_claim(run: Run, pid: int) -> None:
    """Removes the claim of a dead process.

    The file is renamed before it is deleted, since between the check and the deletion another process can
    have replaced the dead claim by its own. If so, that claim is put back.
    """
    owner_file = _owner_file(run.path)
    removed = run.path / f"{TEMPORARY_PREFIX}owner-{pid}"
    with contextlib.suppress(FileNotFoundError):
        owner_file.rename(removed)
        if _is_running(read_object(removed)):
            _create_claim(owner_file, removed.read_bytes(), pid)
    removed.unlink(missing_ok=True)


def _owner_file(folder: Path) -> Path:
    return folder / "owner.json"


def read_owner(folder: Path) -> dict[str, Any] | None:
    """Returns {"pid", "started"} of the process that claimed a folder; it may be dead. None without a
    claim.
    """
    return read_object(_owner_file(folder)) or None


def _is_running(owner: dict[str, Any] | None) -> bool:
    """Returns whether a claim's process lives. The start time is compared too, since systems reuse pids."""
    if not owner:
        return False
    try:
        process = psutil.Process(owner["pid"])
        return abs(process.create_time() - owner["started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def remove_temporary_files(run: Run) -> None:
    """Removes the files and folders that a killed process left half-written."""
    for folder in (run.path, run.checkpoints, run.samples):
        for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
