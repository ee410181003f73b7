"""Job directory of a captioning, which follows the protocol of runs: the page can start, observe and stop it.

DIR/
  job.json         {"folder": "/.../pictures", "model": "wd-vit-tagger-v3", "overwrite": false, ...}, written
                   once; after folder and model, the fields of CaptionOptions
  events.jsonl     written by the worker (trainer/workers/captioning.py)
  commands.jsonl   written by the page: {"kind": "stop"}
  owner.json       the worker process: pid and start time

Use by the page:

    job = create(outputs / ".captioning" / uuid, folder, "wd-vit-tagger-v3", options_from({"trigger": "ink"}))
    queue.submit(job.path, "caption", ["caption-job", str(job.path)])
    alive = job.is_alive()                           # before the events are read (see Run.is_alive)
    fresh, offset = events.read(job.events, offset)
    view = fold(view, fresh)                         # view.captions, view.done, view.total, view.ended
    events.append(job.commands, "stop", sync=True)   # ends after the current batch; its captions are kept

Events:

{"kind": "started"}
{"kind": "stage", "stage": "captioning", "done": 3, "total": 24}
{"kind": "captioned", "name": "a.png", "caption": "..."}
    The caption file is on disk. The name is the picture's path in the folder, with "/".
{"kind": "problem", "message": "..."}
    A picture could not be captioned; the job continues.
{"kind": "ended", "how": "finished" | "stopped" | "failed", "message": "..."}

A restarted job continues with the remaining pictures. A job never downloads a model. It opens any model
folder that job.json names, so a page must only accept names from `list_captioners`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.captioning_config import CaptionOptions, options_from
from trainer.errors import RunError
from trainer.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class CaptioningView:
    """State of a captioning as the page shows it, computed from its events by `fold`."""

    stage: str = ""
    done: int = 0
    total: int = 0
    captions: dict[str, str] = field(default_factory=dict)  # picture -> caption, in the order of writing
    problems: tuple[str, ...] = ()
    ended: str | None = None  # "finished", "stopped" or "failed"
    message: str = ""


def create(path: Path, folder: Path, model: str, options: CaptionOptions) -> Run:
    """Creates a job directory. Raises RunError if the directory holds a job already."""
    if (path / "job.json").exists():
        raise RunError(f"{path.name} already holds a captioning; choose another folder for this one")
    path.mkdir(parents=True, exist_ok=True)
    content = {"folder": os.path.abspath(folder), "model": model, **dataclasses.asdict(options)}
    write_atomically(path / "job.json", json.dumps(content, ensure_ascii=False, indent=1).encode())
    return Run(path)


def created_ns(path: Path) -> int:
    """Returns when a job was created, in ns since 1970."""
    return (path / "job.json").stat().st_mtime_ns


def read(path: Path) -> tuple[Path, str, CaptionOptions]:
    """Returns (picture folder, model, options) of a job directory. Raises RunError, ConfigError."""
    try:
        content = json.loads((path / "job.json").read_text(encoding="utf-8"))
        folder, model = Path(str(content.pop("folder"))), str(content.pop("model"))
    except FileNotFoundError:
        raise RunError(f"{path.name} holds no captioning (no job.json); give the folder of one") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise RunError(f"job.json of {path.name} can't be read; start a new captioning") from None
    return folder, model, options_from(content)


def fold(view: CaptioningView, events: list[dict[str, Any]]) -> CaptioningView:
    """Returns the view after more events."""
    fields = {name: getattr(view, name) for name in CaptioningView.__dataclass_fields__}
    fields["captions"] = dict(view.captions)
    for event in events:
        match event["kind"]:
            case "started":
                fields |= {"stage": "starting", "problems": (), "ended": None, "message": ""}
            case "stage":
                done, total = event.get("done", 0), event.get("total", 0)
                fields |= {"stage": event["stage"], "done": done, "total": total}
            case "captioned":
                fields["captions"][event["name"]] = event["caption"]
            case "problem":
                fields["problems"] += (event["message"],)
            case "ended":
                fields |= {"ended": event["how"], "message": event.get("message", "")}
    return CaptioningView(**fields)
