"""Drawings: requests for generated pictures in Try it, submitted, followed, cancelled and found again. No gradio, no torch.

outputs/.drawing/                 the run directory of the warm sampling process (trainer/workers/sampling.py)
  commands.jsonl events.jsonl
  drawn/<id>/
    asked.json                    the request, its LoRAs, and its owner: the run that generates it, or "" for the warm process
    p00_s0.00.png ...             or step-000100_p00_s0.50.png ... in a grid of checkpoints
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.errors import BaseError, RunError, TrainerError
from trainer.headers.base_model import folder_configs, vae_scale_factor
from trainer.json_files import read_object
from trainer.prompt_syntax import prompt_notes
from trainer.runs import events
from trainer.runs.draw_protocol import FRAME, OUTCOMES
from trainer.runs.run import Run
from trainer.sampling_config import (
    MAX_FILES,
    SamplingConfig,
    checked_weight,
    picture_name,
    sampling_config_from,
)
from ui.store.library import LIBRARY_PREFIX, Library
from ui.store.runs import Runs

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
GRID_STRENGTHS = (0.0, 0.5, 0.75, 1.0, 1.25)
# Width and height as multiples of the side of the base model's native square; the areas are about the same.
SHAPES = {
    "square": (1.0, 1.0),
    "portrait": (13 / 16, 19 / 16),
    "landscape": (19 / 16, 13 / 16),
    "tall": (0.75, 21 / 16),
    "wide": (21 / 16, 0.75),
}
MAX_PROMPTS, MAX_PROMPT_CHARACTERS = 8, 1000
_MAX_DRAWINGS = 60  # on disk; the oldest are removed when a new one is submitted
_MAX_STARTS = 2  # of the warm process for one drawing


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One request for generated pictures and its progress."""

    id: str
    kind: str  # "draw" or "grid"
    files: tuple[tuple[str, float], ...]  # (key of the library, weight)
    request: SamplingConfig
    steps: tuple[int, ...] = ()  # of the checkpoints in a grid
    state: str = "waiting"  # "waiting", "drawing", "drawn", "cancelled" or "failed"
    done: int = 0  # denoising steps
    total: int = 0
    message: str = ""
    notes: tuple[str, ...] = ()  # on what was left out of the prompts
    frame: bool = False  # a rough preview of the pictures exists

    @property
    def is_open(self) -> bool:
        """True until the drawing has an outcome."""
        return self.state in ("waiting", "drawing")

    def pictures(self) -> list[dict[str, Any]]:
        """Returns the file, prompt, strength and, in a grid, step of each picture."""
        cells = [
            {"file": picture_name(number, strength), "prompt": prompt, "strength": strength}
            for number, prompt in enumerate(self.request.prompts)
            for strength in self.request.strengths
        ]
        if self.kind == "draw":
            return cells
        return [
            {**cell, "file": f"step-{step:06d}_{cell['file']}", "step": step}
            for step in self.steps
            for cell in cells
        ]


@dataclass(frozen=True)
class Drawings:
    """One artist's drawings."""

    runs: Runs

    @property
    def library(self) -> Library:
        """The library whose LoRAs are used."""
        return Library(self.runs)

    @property
    def session(self) -> Run:
        """The run directory of the warm sampling process."""
        return Run(self.runs.outputs / ".drawing")

    def submit(
        self,
        files: Sequence[tuple[str, float]],
        values: dict[str, Any],
        *,
        during_training: bool = False,
        base: str = "",
    ) -> str:
        """Submits a drawing with one LoRA or a mix of several; returns its id.

        Args:
            files: (key of the library, weight) of each LoRA; with `during_training` one run in training.
            values: fields of `SamplingConfig`, and "shape", a key of SHAPES.
            during_training: the training itself generates the pictures between two steps, with its current weights.
            base: the base model; by default the one that the first LoRA was trained on.

        Raises:
            TrainerError: invalid values, or a LoRA or base model that doesn't exist.
        """
        if not 1 <= len(files) <= MAX_FILES or len({key for key, _ in files}) < len(files):
            raise TrainerError(f"choose one to {MAX_FILES} different LoRAs")
        files = [(key, checked_weight(weight)) for key, weight in files]
        if during_training:
            return self._submit_to_training(files[0][0], values)
        entries = [self.library.entry(key) for key, _ in files]
        base = self._base(files, base)
        weighted = zip(entries, files, strict=True)
        arguments = {
            "base": base,
            "files": [[str(entry.file.resolve()), weight] for entry, (_, weight) in weighted],
        }
        request = self._request(values, base)
        return self._send("draw", files, request, self.session, arguments, _notes(values))

    def _submit_to_training(self, key: str, values: dict[str, Any]) -> str:
        run = self.runs.run(key)
        if not run.is_alive():
            raise RunError("this training is not running now; choose “Generate after the training”")
        return self._send(
            "draw", [(key, 1.0)], self._request(values, run.config.base), run, {}, _notes(values)
        )

    def grid(self, key: str, values: dict[str, Any]) -> str:
        """Submits a grid of one prompt: each checkpoint of a training at each of GRID_STRENGTHS; returns the drawing's id.

        Raises:
            TrainerError: invalid values, or a LoRA without checkpoints.
        """
        steps = self.library.checkpoints(key)
        if not steps:
            raise RunError(
                "this LoRA has no checkpoints to compare; choose a training that saved checkpoints"
            )
        run = self.runs.run(key)
        prompts = [prompt for prompt in values.get("prompts", ()) if prompt][:1]
        request = self._request({**values, "prompts": prompts, "strengths": GRID_STRENGTHS}, run.config.base)
        arguments = {"run": str(run.path.resolve()), "steps": steps}
        return self._send("grid", [(key, 1.0)], request, self.session, arguments, _notes(values))

    def _request(self, values: dict[str, Any], base: str) -> SamplingConfig:
        values = {"strengths": STRENGTHS, **values}
        shape = values.pop("shape", "square")
        prompts = tuple(prompt for prompt in values.get("prompts", ()) if prompt)
        longest = max((len(text) for text in (*prompts, values.get("negative", ""))), default=0)
        if not 1 <= len(prompts) <= MAX_PROMPTS or longest > MAX_PROMPT_CHARACTERS:
            raise TrainerError(
                f"write 1 to {MAX_PROMPTS} prompts, one per line, with at most {MAX_PROMPT_CHARACTERS} characters each"
            )
        if shape not in SHAPES:
            raise TrainerError("choose a picture shape from the list")
        width, height = 0, 0  # the base model's native square
        if shape != "square":
            native = native_size(base, self.runs.models)
            width, height = (round(native * side / 32) * 32 for side in SHAPES[shape])
        return sampling_config_from({**values, "prompts": prompts, "width": width, "height": height})

    def _base(self, files: Sequence[tuple[str, float]], base: str) -> str:
        """Returns `base` if it exists; without one, the base model that the LoRAs were trained on, or the first one."""
        known = self.runs.bases()
        if base:
            if base not in known:
                raise BaseError("that base model no longer exists; choose another")
            return base
        for key, _ in files:
            if not key.startswith(LIBRARY_PREFIX):
                return self.runs.run(key).config.base
        named = self.library.entry(files[0][0]).base
        return next((name for name in known if named in (name, name.removesuffix(".safetensors"))), known[0])

    def _send(
        self,
        kind: str,
        files: Sequence[tuple[str, float]],
        request: SamplingConfig,
        owner: Run,
        arguments: dict[str, Any],
        notes: list[str],
    ) -> str:
        """Writes a drawing's request and sends it to its owner, a run in training or the warm process."""
        name = uuid.uuid4().hex
        self._prune()
        out = self.session.path / "drawn" / name
        out.mkdir(parents=True)
        record = {
            "kind": kind,
            "files": list(files),
            "request": dataclasses.asdict(request),
            "notes": notes,
            "steps": arguments.get("steps", []),
            "time": time.time(),
            "said": _size(
                owner.events
            ),  # offset in the owner's events from which this drawing's events are read
            "owner": "" if owner.path == self.session.path else owner.path.name,
            "job": "",
            "tries": 0,
        }
        _write(out, record)
        command = {"id": name, "out": str(out.resolve()), "request": record["request"], **arguments}
        events.append(owner.commands, kind, sync=True, **command)
        if not record["owner"]:
            self._queue_session(out, record)
        return name

    def _queue_session(self, out: Path, record: dict[str, Any]) -> None:
        """Queues the warm process, which starts when the device is free."""
        with contextlib.suppress(RunError):  # it is queued or running already
            self.runs.queue.submit(self.session.path, "draw", ["session", str(self.session.path.resolve())])
        job = self.runs.queue.find(self.session.path)
        _write(out, {**record, "job": job.id if job else "", "tries": record["tries"] + 1})

    def status(self, name: str) -> Drawing:
        """Returns a drawing with its current state.

        Raises:
            RunError: there is no such drawing.
        """
        out, record = self._read(name)
        owner = self._owner(record)
        alive = (
            owner.is_alive()
        )  # before the events are read, so that the last ones of a process that dies are included
        its_events = [
            event for event in events.read(owner.events, record["said"])[0] if event.get("id") == name
        ]
        drawing = Drawing(
            id=name,
            kind=record["kind"],
            request=sampling_config_from(record["request"]),
            steps=tuple(record["steps"]),
            notes=tuple(record.get("notes", ())),
            files=tuple((key, weight) for key, weight in record["files"]),
        )
        outcome = next((event for event in its_events if event["kind"] in OUTCOMES), None)
        if outcome:
            message = str(outcome.get("message", ""))
            return dataclasses.replace(drawing, state=outcome["kind"], message=message)
        if not alive and not self._is_pending(out, record):
            reason = (
                "the training ended before it generated these pictures"
                if record["owner"]
                else "the sampling process ended before it generated these pictures"
            )
            return dataclasses.replace(drawing, state="failed", message=f"{reason}; press Generate again")
        progress = [event for event in its_events if event["kind"] == "drawing"]
        if progress and alive:
            done, total = progress[-1]["done"], progress[-1]["total"]
            has_frame = (out / FRAME).is_file()
            return dataclasses.replace(drawing, state="drawing", done=done, total=total, frame=has_frame)
        return drawing

    def _owner(self, record: dict[str, Any]) -> Run:
        """Returns the run in training or the warm process that generates a drawing."""
        return self.runs.run(record["owner"]) if record["owner"] in self.runs.names() else self.session

    def _is_pending(self, out: Path, record: dict[str, Any]) -> bool:
        """True if the warm process will still start. One that exited just before the request arrived is queued again."""
        if record["owner"]:
            return False
        job = self.runs.queue.find(self.session.path)
        if job and job.state in ("waiting", "running"):
            return True
        if record["tries"] < _MAX_STARTS:
            self._queue_session(out, record)
            return True
        return False

    def cancel(self, name: str) -> None:
        """Cancels a drawing; its owner stops at the next denoising step.

        Raises:
            RunError: there is no such drawing.
        """
        _, record = self._read(name)
        events.append(self._owner(record).commands, "cancel", sync=True, id=name)

    def revisions(self) -> list[tuple[str, str, int]]:
        """Returns (id, state, progress) of the newest drawings: a value that changes whenever the page should."""
        revisions = []
        for path in sorted(self._paths(), key=lambda path: path.stat().st_mtime)[-4:]:
            with contextlib.suppress(TrainerError):  # removed meanwhile, or written by another version
                drawing = self.status(path.parent.name)
                revisions.append((drawing.id, drawing.state, drawing.done))
        return revisions

    def newest(self, key: str, kind: str = "draw") -> str | None:
        """Returns the id of the latest drawing with a LoRA."""
        paths = []
        for path in self._paths():
            record = read_object(path)
            if record.get("kind") == kind and any(used == key for used, _ in record.get("files", ())):
                paths.append(path)
        return max(paths, key=lambda path: path.stat().st_mtime).parent.name if paths else None

    def picture(self, name: str, file: str) -> Path:
        """Returns the path of a drawing's picture.

        Raises:
            RunError: there is no such drawing or picture; `file` is never joined to a path.
        """
        out, _ = self._read(name)
        pictures = {path.name: path for path in out.glob("*.png")}
        if file not in pictures:
            raise RunError("that picture no longer exists; generate it again")
        return pictures[file]

    def _read(self, name: str) -> tuple[Path, dict[str, Any]]:
        out = self.session.path / "drawn" / name
        record = read_object(out / "asked.json") if name.isalnum() else {}
        if not record:
            raise RunError("those pictures no longer exist; generate them again")
        return out, record

    def _paths(self) -> list[Path]:
        return list((self.session.path / "drawn").glob("*/asked.json"))

    def _prune(self) -> None:
        oldest_first = sorted(self._paths(), key=lambda path: path.stat().st_mtime)
        for path in oldest_first[: max(0, len(oldest_first) - _MAX_DRAWINGS + 1)]:
            shutil.rmtree(path.parent, ignore_errors=True)


def native_size(base: str, models: Path) -> int:
    """Returns the side in px of a base model's native square, from its configuration; SDXL's for a single file."""
    with contextlib.suppress(BaseError, KeyError, TypeError):
        configs = folder_configs(models / base)
        return configs["unet"]["sample_size"] * vae_scale_factor(configs["vae"])
    return 1024


def _notes(values: dict[str, Any]) -> list[str]:
    return prompt_notes((*values.get("prompts", ()), values.get("negative", "")))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _write(out: Path, record: dict[str, Any]) -> None:
    write_atomically(out / "asked.json", json.dumps(record, ensure_ascii=False).encode())
