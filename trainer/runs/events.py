"""Event and command logs of a run: append-only files with one JSON object on each line.

`events.jsonl` is written by the worker process, `commands.jsonl` by the page (trainer/runs/commands.py).
Every line has a "kind" and a "time" (seconds since 1970); unknown kinds and fields are ignored by readers. A
reader continues from a byte offset; an incomplete last line is read next time, and unreadable lines are
skipped.

Events of a training, in their usual order (every line also has "time"):

{"kind": "started", "version": "0.2.0"}
    A process begins or resumes the run.
{"kind": "stage", "stage": "caching pictures", "done": 3, "total": 24}
    The current activity; "done" and "total" are optional.
{"kind": "problem", "message": "..."}
    A warning; the training continues.
{"kind": "planned", "words": "...", "peak": 640000000, "seconds": 41, "file": 3000000, "level": "all",
 "optimizer": "adamw8bit", "quantised": "int8", "tile": 0}
    The memory plan: predicted peak in bytes, estimated seconds, size of the LoRA file in bytes, level of
    activation checkpointing, and what was chosen for settings that are "auto".
{"kind": "step", "step": 10, "steps": 300, "loss": 0.21, "learning_rate": 0.001, "seconds_left": 41.0}
    Metrics of an optimizer step.
{"kind": "validation", "step": 50, "loss": 0.19}
    Loss on the validation images.
{"kind": "sample", "step": 50, "file": "step-000050_p00_s1.00.png", "prompt": "...", "strength": 1.0,
 "seed": 7, "made": 1795500000000000000}
    A sample image in samples/; "made" is in nanoseconds since 1970.
{"kind": "saved", "file": "ink.safetensors", "step": 300}
    The LoRA file is on disk.
{"kind": "advice", "step": 250, "strength": 0.75, "losses": {"0": 0.2, "0.25": 0.19}, "message": "..."}
    The step and the strength with the lowest validation loss.
{"kind": "checked", "takes": ["ComfyUI"], "difference": 0.4}
    Tools that load the whole file, and the mean difference (of 255) between samples of the file and of the
    model in memory.
{"kind": "strip", "pictures": [{...}]}
    Final images of all prompts and strengths, with the fields of "sample".
{"kind": "memory", "peak": 640000000, "planned": 620000000}
    Measured and predicted peak in bytes.
{"kind": "ended", "how": "finished" | "stopped" | "failed", "message": "...", "cause": "memory",
 "remedy": {"batch": 2}}
    The last event. Cause and remedy of a failure are described in trainer/runs/failures.py.

Draw requests are reported by the events of trainer/runs/draw_protocol.py, captionings by those of
trainer/runs/captioning_job.py.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIN_CURVE_POINTS = 400  # a loss curve with twice as many points is halved by averaging neighbours


def append(path: Path, kind: str, *, sync: bool = False, **fields: Any) -> None:
    """Appends one line to a log.

    Args:
        sync: flushes the line to the disk, so that it survives a power cut.
    """
    content = {"kind": kind, "time": time.time(), **fields}
    line = json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
    # A writer that was killed can leave an incomplete line, to which this one must not be joined.
    if path.exists() and path.stat().st_size and not _ends_with_newline(path):
        line = "\n" + line
    # One write() in append mode: the system puts it at the end as a whole, so lines of several writers never
    # mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Returns the complete lines from a byte offset on, and the offset from which to continue.

    A missing file has no lines. Starts at 0 if the file is shorter than `offset`, since it was then written
    again.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            offset = file.seek(offset if offset <= size else 0)
            data = file.read()
    except FileNotFoundError:
        return [], 0
    complete = data.rfind(b"\n") + 1
    return list(_parse(data[:complete])), offset + complete


def _parse(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("kind"), str):
            yield event


@dataclass(frozen=True, kw_only=True)
class View:
    """State of a run as the page shows it, computed from its events by `fold`."""

    plan: str = ""  # summary of the memory plan
    planned_seconds: float | None = None  # estimated duration of steps and samples
    stage: str = ""
    stage_done: int = 0
    stage_total: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    losses: tuple[tuple[int, float], ...] = ()  # (last step, mean loss) of each span of `loss_span` steps
    loss_span: int = 1
    seconds_left: float | None = None
    samples: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()  # (step, loss)
    advice: str = ""
    saved: str | None = None  # name of the LoRA file
    takes: tuple[str, ...] = ()  # tools that load the whole file
    strip: tuple[dict[str, Any], ...] = ()
    ended: str | None = None  # "finished", "stopped" or "failed"
    message: str = ""
    cause: str = ""  # of a failure, one of failures.CAUSES
    remedy: dict[str, Any] = field(default_factory=dict)  # {setting: value} that would prevent the failure
    last_event_at: float = 0.0  # seconds since 1970
    rev: int = 0  # number of events


def fold(view: View, events: list[dict[str, Any]]) -> View:
    """Returns the view after more events. Folding in pieces gives the same view as folding all events at
    once.
    """
    fields = {name: getattr(view, name) for name in View.__dataclass_fields__}
    fields["losses"] = list(view.losses)
    for event in events:
        fields["rev"] += 1
        fields["last_event_at"] = event.get("time", 0.0)
        if event["kind"] in _CHANGES:
            fields |= _CHANGES[event["kind"]](fields, event)
    fields["losses"] = tuple(fields["losses"])
    return View(**fields)


def _after_step(fields: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": "training",
        "loss_span": _add_loss(fields["losses"], fields["loss_span"], event["step"], event["loss"]),
        **{name: event.get(name) for name in ("step", "steps", "loss", "seconds_left")},
    }


def _after_validation(fields: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    # A resumed run repeats the measurements after its checkpoint; the newer ones replace the older.
    earlier = (point for point in fields["validation"] if point[0] < event["step"])
    return {"validation": (*earlier, (event["step"], event["loss"]))}


# kind -> function of (fields of the view, event), which returns the fields that the event changes.
_CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "started": lambda fields, event: {
        "ended": None,
        "message": "",
        "cause": "",
        "remedy": {},
        "stage": "starting",
    },
    "planned": lambda fields, event: {"plan": event["words"], "planned_seconds": event.get("seconds")},
    "stage": lambda fields, event: {
        "stage": event["stage"],
        "stage_done": event.get("done", 0),
        "stage_total": event.get("total", 0),
    },
    "problem": lambda fields, event: {"problems": (*fields["problems"], event["message"])},
    "step": _after_step,
    "sample": lambda fields, event: {"samples": (*fields["samples"], event)},
    "validation": _after_validation,
    "advice": lambda fields, event: {"advice": event["message"]},
    "saved": lambda fields, event: {"saved": event["file"]},
    "checked": lambda fields, event: {"takes": tuple(event["takes"])},
    "strip": lambda fields, event: {"strip": tuple(event["pictures"])},
    "ended": lambda fields, event: {
        "ended": event["how"],
        "message": event.get("message", ""),
        "cause": event.get("cause", ""),
        "remedy": event.get("remedy", {}),
    },
}


def _add_loss(losses: list[tuple[int, float]], span: int, step: int, loss: float) -> int:
    """Adds a step's loss to the mean of its span, in place; returns the span, doubled if there are too many
    points.
    """
    while losses and losses[-1][0] >= step:  # a resumed run repeats the steps after its checkpoint
        losses.pop()
    span_start = (step - 1) // span * span
    if losses and losses[-1][0] > span_start:
        count = losses[-1][0] - span_start
        losses[-1] = (step, (losses[-1][1] * count + loss) / (count + 1))
    else:
        losses.append((step, loss))
    if len(losses) > 2 * MIN_CURVE_POINTS:
        pairs = [
            (second[0], (first[1] + second[1]) / 2)
            for first, second in zip(losses[::2], losses[1::2], strict=False)
        ]
        losses[:] = pairs + (losses[-1:] if len(losses) % 2 else [])
        return 2 * span
    return span
