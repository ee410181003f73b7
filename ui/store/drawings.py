"""Pictures that an artist asks for in Try it: asked, followed, cancelled and found again. No gradio, no torch.

outputs/.drawing/                 the warm drawing process of `trainer/workers/sampling.py`, and all that was asked
  commands.jsonl events.jsonl
  drawn/<id>/
    asked.json                    what was asked, of which LoRAs, and who answers: this folder, or a run that trains
    p00_s0.00.png ...             step-000100_p00_s0.50.png ... of a grid of checkpoints
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
from ui.store.library import OUTSIDE, Library
from ui.store.runs import Runs

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
GRID_STRENGTHS = (0.0, 0.5, 0.75, 1.0, 1.25)
# Of a picture of the base's native area.
SHAPES = {
    "square": (1.0, 1.0),
    "portrait": (13 / 16, 19 / 16),
    "landscape": (19 / 16, 13 / 16),
    "tall": (0.75, 21 / 16),
    "wide": (21 / 16, 0.75),
}
MOST_PROMPTS, MOST_LETTERS = 8, 1000
_KEPT = 60  # drawings; older ones are removed when a new one is asked for


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One drawing and how it stands."""

    id: str
    kind: str  # "draw" or "grid"
    files: tuple[tuple[str, float], ...]  # (key of the library, weight)
    request: SamplingConfig
    steps: tuple[int, ...] = ()  # of a grid
    state: str  # "waiting", "drawing", "drawn", "cancelled" or "failed"
    done: int = 0
    total: int = 0
    message: str = ""
    frame: bool = False  # whether there is a rough picture of what is coming

    @property
    def is_open(self) -> bool:
        return self.state in ("waiting", "drawing")

    def pictures(self) -> list[dict[str, Any]]:
        """File, prompt, strength and, of a grid, step of each picture."""
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
    runs: Runs

    @property
    def library(self) -> Library:
        return Library(self.runs)

    @property
    def session(self) -> Run:
        return Run(self.runs.outputs / ".drawing")

    def ask(
        self,
        files: Sequence[tuple[str, float]],
        values: dict[str, Any],
        *,
        between: bool = False,
        base: str = "",
    ) -> str:
        """Asks for pictures of one LoRA or of several mixed; the drawing's id. Raises TrainerError.

        Args:
            files: keys of the library and how much of each; with `between` one training that runs.
            values: of `trainer.sampling_config.SamplingConfig`, and "shape", one of SHAPES.
            between: drawn by the training itself between two of its steps, with its weights of then.
            base: the model to draw with; what the first file was trained on when not said.
        """
        if not 1 <= len(files) <= MAX_FILES or len({key for key, _ in files}) < len(files):
            raise TrainerError(f"choose one to {MAX_FILES} different LoRAs")
        files = [(key, checked_weight(weight)) for key, weight in files]
        if between:
            return self._ask_between(files[0][0], values)
        entries = [self.library.entry(key) for key, _ in files]
        chosen = self._base(files, base)
        request = self._request(values, chosen)
        placed = [
            [str(entry.file.resolve()), weight] for entry, (_, weight) in zip(entries, files, strict=True)
        ]
        return self._send("draw", files, request, self.session, base=chosen, files=placed)

    def _ask_between(self, key: str, values: dict[str, Any]) -> str:
        run = self.runs.run(key)
        if not run.is_alive():
            raise RunError("this training does not run now; draw without it")
        request = self._request(values, run.config.base)
        return self._send("draw", [(key, 1.0)], request, run)

    def grid(self, key: str, values: dict[str, Any]) -> str:
        """Asks for each checkpoint of a training at each of GRID_STRENGTHS, one prompt; the drawing's id. Raises TrainerError."""
        steps = self.library.checkpoints(key)
        if not steps:
            raise RunError("this LoRA has no checkpoints to compare; only trainings keep them")
        run = self.runs.run(key)
        prompts = [prompt for prompt in values.get("prompts", ()) if prompt][:1]
        request = self._request({**values, "prompts": prompts, "strengths": GRID_STRENGTHS}, run.config.base)
        return self._send(
            "grid", [(key, 1.0)], request, self.session, run=str(run.path.resolve()), steps=steps
        )

    def _request(self, values: dict[str, Any], base: str) -> SamplingConfig:
        values = {"strengths": STRENGTHS, **values}
        shape = values.pop("shape", "square")
        prompts = tuple(prompt for prompt in values.get("prompts", ()) if prompt)
        if not 1 <= len(prompts) <= MOST_PROMPTS or any(
            len(text) > MOST_LETTERS for text in (*prompts, values.get("negative", ""))
        ):
            raise TrainerError(
                f"write one to {MOST_PROMPTS} prompts, one a line, of at most {MOST_LETTERS} characters each"
            )
        if shape not in SHAPES:
            raise TrainerError("choose a shape of the picture from the list")
        native = native_size(base, self.runs.models)
        width, height = (
            (0, 0) if shape == "square" else (round(native * side / 32) * 32 for side in SHAPES[shape])
        )
        return sampling_config_from({**values, "prompts": prompts, "width": width, "height": height})

    def _base(self, files: Sequence[tuple[str, float]], wanted: str) -> str:
        known = self.runs.bases()
        if wanted:
            if wanted not in known:
                raise BaseError("that base model is not there any more; choose another")
            return wanted
        for key, _ in files:
            if not key.startswith(OUTSIDE):
                return self.runs.run(key).config.base
        said = self.library.entry(files[0][0]).base
        return next((name for name in known if said in (name, name.removesuffix(".safetensors"))), known[0])

    def _send(
        self, kind: str, keys: Sequence[tuple[str, float]], request: SamplingConfig, owner: Run, **facts: Any
    ) -> str:
        name = uuid.uuid4().hex
        self._prune()
        out = self.session.path / "drawn" / name
        out.mkdir(parents=True)
        asked = {
            "kind": kind,
            "files": list(keys),
            "request": dataclasses.asdict(request),
            "steps": facts.get("steps", []),
            "time": time.time(),
        }
        asked |= {
            "said": _size(owner.events),
            "owner": "" if owner.path == self.session.path else owner.path.name,
            "job": "",
            "tries": 0,
        }
        _write(out, asked)
        events.append(
            owner.commands,
            kind,
            sync=True,
            id=name,
            out=str(out.resolve()),
            request=asked["request"],
            **facts,
        )
        if not asked["owner"]:
            self._ensure_session(out, asked)
        return name

    def _ensure_session(self, out: Path, asked: dict[str, Any]) -> None:
        """The warm process draws when its turn comes; a training that runs is waited for."""
        with contextlib.suppress(RunError):  # it is in the line, or draws
            self.runs.queue.submit(self.session.path, "draw", ["session", str(self.session.path.resolve())])
        job = self.runs.queue.find(self.session.path)
        _write(out, {**asked, "job": job.id if job else "", "tries": asked["tries"] + 1})

    def follow(self, name: str) -> Drawing:
        """How a drawing stands. Raises RunError for what is none of ours."""
        out, asked = self._asked(name)
        owner = self.runs.run(asked["owner"]) if asked["owner"] in self.runs.names() else self.session
        alive = owner.is_alive()  # asked first: what it said before it died is there to read
        said = [event for event in events.read(owner.events, asked["said"])[0] if event.get("id") == name]
        answer = next((event for event in said if event["kind"] in OUTCOMES), None)
        facts: dict[str, Any] = {
            "id": name,
            "kind": asked["kind"],
            "request": sampling_config_from(asked["request"]),
            "steps": tuple(asked["steps"]),
            "files": tuple((key, weight) for key, weight in asked["files"]),
        }
        if answer:
            return Drawing(**facts, state=answer["kind"], message=str(answer.get("message", "")))
        begun = [event for event in said if event["kind"] == "drawing"]
        if not alive and not self._is_coming(out, asked):
            words = (
                "the training ended before it drew this"
                if asked["owner"]
                else "the drawing process ended before it answered"
            )
            return Drawing(**facts, state="failed", message=f"{words}; press Generate again")
        if begun and alive:
            return Drawing(
                **facts,
                state="drawing",
                done=begun[-1]["done"],
                total=begun[-1]["total"],
                frame=(out / FRAME).is_file(),
            )
        return Drawing(**facts, state="waiting")

    def _is_coming(self, out: Path, asked: dict[str, Any]) -> bool:
        """Whether the warm process will still be started for a drawing; one that left just before it was asked is started again."""
        if asked["owner"]:
            return False
        job = self.runs.queue.find(self.session.path)
        if job and job.state in ("waiting", "running"):
            return True
        if asked["tries"] < 2:
            self._ensure_session(out, asked)
            return True
        return False

    def cancel(self, name: str) -> None:
        _, asked = self._asked(name)
        owner = self.runs.run(asked["owner"]) if asked["owner"] in self.runs.names() else self.session
        events.append(owner.commands, "cancel", sync=True, id=name)

    def marks(self) -> list[tuple[str, str, int]]:
        """Another one whenever one of the newest drawings stands differently."""
        found = []
        for path in sorted(self._all(), key=lambda path: path.stat().st_mtime)[-4:]:
            with contextlib.suppress(TrainerError):  # one that can't be read any more
                drawn = self.follow(path.parent.name)
                found.append((drawn.id, drawn.state, drawn.done))
        return found

    def newest(self, key: str, kind: str = "draw") -> str | None:
        """The last drawing of a LoRA that is there to show."""
        found = [
            (path, asked)
            for path in self._all()
            if (asked := read_object(path)) and asked.get("kind") == kind
        ]
        mine = [path for path, asked in found if any(used == key for used, _ in asked.get("files", ()))]
        return max(mine, key=lambda path: path.stat().st_mtime).parent.name if mine else None

    def picture(self, name: str, file: str) -> Path:
        """A picture of a drawing. Raises RunError for anything else."""
        out, _ = self._asked(name)
        found = {path.name: path for path in out.glob("*.png")}
        if file not in found:
            raise RunError("that picture is not there any more; draw it again")
        return found[file]

    def _asked(self, name: str) -> tuple[Path, dict[str, Any]]:
        out = self.session.path / "drawn" / name
        asked = read_object(out / "asked.json") if name.isalnum() else {}
        if not asked:
            raise RunError("that drawing is not there any more; draw it again")
        return out, asked

    def _all(self) -> list[Path]:
        return list((self.session.path / "drawn").glob("*/asked.json"))

    def _prune(self) -> None:
        oldest_first = sorted(self._all(), key=lambda path: path.stat().st_mtime)
        for path in oldest_first[: max(0, len(oldest_first) - _KEPT + 1)]:
            shutil.rmtree(path.parent, ignore_errors=True)


def native_size(base: str, models: Path) -> int:
    """Side in px of a base's native square, from its configuration; SDXL's where it has none of its own."""
    with contextlib.suppress(BaseError, KeyError, TypeError):
        facts = folder_configs(models / base)
        return facts["unet"]["sample_size"] * vae_scale_factor(facts["vae"])
    return 1024


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _write(out: Path, asked: dict[str, Any]) -> None:
    write_atomically(out / "asked.json", json.dumps(asked, ensure_ascii=False).encode())
