"""A run is a directory; what is on disk is the truth.

outputs/ink/
  config.toml            every setting, written once
  sources.json           the folders that its pictures come from, when the trainer is to read them itself
  manifest.json          the pictures and captions, written once
  events.jsonl           the trainer speaks
  commands.jsonl         the page speaks
  owner.json             the process that works on it: pid and start time
  checkpoints/step-100/  what `resume` goes on from
  samples/               pictures drawn during and after training
  ink.safetensors        the LoRA
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

from trainer.atomic_files import write_atomically
from trainer.config import TrainConfig, config_from, read_toml, to_toml
from trainer.dataset.manifest import Manifest
from trainer.dataset.sources import scan_all, with_class_and_validation
from trainer.errors import RunError
from trainer.runs import events


@dataclass(frozen=True)
class Run:
    path: Path
    is_main_process: bool = True  # False in all but the first of several processes: they only compute

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def commands(self) -> Path:
        return self.path / "commands.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def config(self) -> TrainConfig:
        return config_from(read_toml(self.path / "config.toml"))

    @property
    def manifest(self) -> Manifest:
        return Manifest.from_json(json.loads((self.path / "manifest.json").read_text(encoding="utf-8")))

    @property
    def lora_file(self) -> Path:
        return self.path / f"{self.config.name}.safetensors"

    def emit(self, kind: str, *, sync: bool = False, **facts: Any) -> None:
        if self.is_main_process:
            events.append(self.events, kind, sync=sync, **facts)

    def is_alive(self) -> bool:
        """Whether a process works on this run; ask this before reading the events."""
        return _lives(read_owner(self.path))


def create(path: Path, config: TrainConfig, manifest: Manifest | list[Path]) -> Run:
    """A new run directory. Raises RunError when one is there already, DatasetError.

    Args:
        manifest: the pictures, to which those are added that settings name besides; or folders, which `scan_sources` reads when
            the training begins (thousands of pictures take longer to read than a page may wait).
    """
    run = Run(path)
    if (path / "config.toml").exists():
        raise RunError(
            f"{path} already holds a run; choose another --output, or go on with it: python -m trainer resume {path}"
        )
    problems: tuple[str, ...] = ()
    if isinstance(manifest, Manifest):
        whole = with_class_and_validation(manifest, config)  # before anything is written
        problems = whole.problems[len(manifest.problems) :]
        kept, text = "manifest.json", _manifest_text(whole)
    else:
        kept, text = (
            "sources.json",
            json.dumps([os.path.abspath(folder) for folder in manifest], ensure_ascii=False),
        )
    path.mkdir(parents=True, exist_ok=True)
    run.samples.mkdir(exist_ok=True)
    run.checkpoints.mkdir(exist_ok=True)
    write_atomically(path / kept, text.encode())
    # Last, since its presence says that the run is whole.
    write_atomically(path / "config.toml", to_toml(config).encode())
    for problem in problems:
        run.emit("problem", message=problem)
    return run


def scan_sources(run: Run) -> None:
    """Reads the pictures of a run that was made of folders, once. Raises DatasetError when there are none."""
    if (run.path / "manifest.json").exists() or not (run.path / "sources.json").exists():
        return
    run.emit("stage", stage="reading pictures")
    folders = [Path(folder) for folder in json.loads((run.path / "sources.json").read_text(encoding="utf-8"))]
    manifest = with_class_and_validation(scan_all(folders, trigger=run.config.trigger), run.config)
    write_atomically(run.path / "manifest.json", _manifest_text(manifest).encode())
    for problem in manifest.problems:
        run.emit("problem", message=problem)


def _manifest_text(manifest: Manifest) -> str:
    return json.dumps(manifest.to_json(), ensure_ascii=False, indent=1)


def open_run(path: Path) -> Run:
    """An existing run. Raises RunError."""
    if not (path / "config.toml").is_file():
        raise RunError(f"{path} holds no run (no config.toml); give the folder that --output named")
    return Run(path)


@contextlib.contextmanager
def claim(run: Run) -> Iterator[None]:
    """Makes this process the run's only worker. Raises RunError when another one lives."""
    owner = run.path / "owner.json"
    me = psutil.Process()
    text = json.dumps({"pid": me.pid, "started": me.create_time()}).encode()
    for _ in range(3):
        try:
            _take(owner, text, me.pid)
            break
        except FileExistsError:
            held = _owner(owner)
            if _lives(held):
                raise RunError(
                    f"another process ({held['pid'] if held else '?'}) works on {run.path.name}; stop it first"
                ) from None
            # A dead process's claim is moved aside before it is removed: another taker may have put its own there since.
            aside = run.path / f".tmp-owner-{me.pid}"
            with contextlib.suppress(FileNotFoundError):
                owner.rename(aside)
                if _lives(_owner(aside)):
                    _take(owner, aside.read_bytes(), me.pid)
            aside.unlink(missing_ok=True)
    else:
        raise RunError(f"{run.path} can't be claimed; try again")
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)


def _take(owner: Path, text: bytes, pid: int) -> None:
    """Writes a claim, whole, where none is. Raises FileExistsError."""
    mine = owner.with_name(f".owner-{pid}")
    mine.write_bytes(text)
    try:
        os.link(mine, owner)  # atomic: fails when another process was first, and is never half-written
    except FileExistsError:
        raise
    except OSError:  # exFAT and some network drives know no links
        with owner.open("xb") as file:
            file.write(text)
    finally:
        mine.unlink(missing_ok=True)


def read_owner(folder: Path) -> dict[str, Any] | None:
    """{"pid", "started"} of the process that claimed a run; it may have died since."""
    return _owner(folder / "owner.json")


def _owner(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _lives(owner: dict[str, Any] | None) -> bool:
    """A pid alone is not identity: the system reuses them."""
    if not owner:
        return False
    try:
        process = psutil.Process(owner["pid"])
        return abs(process.create_time() - owner["started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError):
        return False


def remove_temporary_files(run: Run) -> None:
    """Removes what a killed process left half-written."""
    for folder in (run.path, run.checkpoints, run.samples):
        for leftover in folder.glob(".tmp-*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
