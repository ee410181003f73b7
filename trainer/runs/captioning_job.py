"""A captioning as a job: a directory that speaks the protocol of runs, so that a page can start, follow and stop it.

DIR/
  job.json         {"folder": "/.../pictures", "model": "wd-vit-tagger-v3", "overwrite": false, "trigger": "ink", ...}, written once
  events.jsonl     the job speaks
  commands.jsonl   the page speaks: {"kind": "stop"}
  owner.json       the process that works on it

    job = create(outputs / ".captioning" / uuid, folder, "wd-vit-tagger-v3", options_from({"trigger": "ink"}))
    subprocess.Popen([sys.executable, "-m", "trainer", "caption-job", str(job.path), "--models", str(models)])
    alive = job.is_alive()                              # asked before the events are read
    fresh, offset = events.read(job.events, offset)
    view = fold(view, fresh)                            # view.captions, view.done, view.total, view.ended, view.message
    events.append(job.commands, "stop", sync=True)      # ends after the pictures at hand; their captions are kept

It says: {"kind": "started"}, {"kind": "stage", "stage": "captioning", "done": 3, "total": 24},
{"kind": "captioned", "name": "a.png", "caption": "..."} (the `.txt` is on disk by then; `name` is the path in the folder, with /),
{"kind": "problem", "message"}, {"kind": "ended", "how": "finished" | "stopped" | "failed", "message"}.
Started again, a job goes on with what is left. A page offers `models.list_captioners` and the fields of `options.options_for(kind)`,
and takes no other model: a job opens whatever folder it names. A job never downloads.
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
    """What a page shows of a job, folded from its events."""

    stage: str = ""
    done: int = 0
    total: int = 0
    captions: dict[str, str] = field(default_factory=dict)  # by picture, in the order they were written
    problems: tuple[str, ...] = ()
    ended: str | None = None  # "finished", "stopped" or "failed"
    message: str = ""


def create(path: Path, folder: Path, model: str, options: CaptionOptions) -> Run:
    """A new job directory. Raises RunError when one is there already."""
    if (path / "job.json").exists():
        raise RunError(f"{path.name} already holds a captioning; choose another folder for this one")
    path.mkdir(parents=True, exist_ok=True)
    facts = {"folder": os.path.abspath(folder), "model": model, **dataclasses.asdict(options)}
    write_atomically(path / "job.json", json.dumps(facts, ensure_ascii=False, indent=1).encode())
    return Run(path)


def read(path: Path) -> tuple[Path, str, CaptionOptions]:
    """(picture folder, model, options) of a job directory. Raises RunError, ConfigError."""
    try:
        facts = json.loads((path / "job.json").read_text(encoding="utf-8"))
        folder, model = Path(str(facts.pop("folder"))), str(facts.pop("model"))
    except FileNotFoundError:
        raise RunError(f"{path.name} holds no captioning (no job.json); give the folder of one") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise RunError(f"job.json of {path.name} can't be read; start the captioning anew") from None
    return folder, model, options_from(facts)


def fold(view: CaptioningView, fresh: list[dict[str, Any]]) -> CaptioningView:
    """The view after `fresh` events."""
    facts = {name: getattr(view, name) for name in CaptioningView.__dataclass_fields__}
    facts["captions"] = dict(view.captions)
    for event in fresh:
        match event["kind"]:
            case "started":
                facts |= {"stage": "starting", "problems": (), "ended": None, "message": ""}
            case "stage":
                facts |= {
                    "stage": event["stage"],
                    "done": event.get("done", 0),
                    "total": event.get("total", 0),
                }
            case "captioned":
                facts["captions"][event["name"]] = event["caption"]
            case "problem":
                facts["problems"] += (event["message"],)
            case "ended":
                facts |= {"ended": event["how"], "message": event.get("message", "")}
    return CaptioningView(**facts)
