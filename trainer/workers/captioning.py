"""`python -m trainer caption-job DIR`: captions the pictures of a job (trainer/runs/captioning_job.py)."""

from __future__ import annotations

from pathlib import Path

from trainer.captioning.folder import CaptioningTask, caption_folder
from trainer.headers.captioner import open_captioner
from trainer.runs import events
from trainer.runs.captioning_job import created_ns, read
from trainer.runs.commands import CommandInbox
from trainer.runs.run import Run, claim
from trainer.runs.work import run_to_end


def work(path: Path, models: Path) -> str:
    """Captions the pictures of a job; returns "finished" or "stopped". Raises TrainerError."""
    job = Run(path)
    read(path)  # raises before a claim is written into a folder that holds no job
    with claim(job):
        # Only later commands count: a stop that is pressed while the libraries load must not be missed.
        commands_offset = events.read(job.commands)[1]
        earlier_events = events.read(job.events)[0]
        done = {event["name"] for event in earlier_events if event["kind"] == "captioned"}
        job.emit("started")
        return run_to_end(
            job,
            lambda: _captioned(job, models, commands_offset, done),
            interrupted="Stopped at once; the captions that are written so far are kept",
        )


def _captioned(job: Run, models: Path, commands_offset: int, done: set[str]) -> str:
    folder, model, options = read(job.path)
    return caption_folder(
        job,
        CaptioningTask(folder, open_captioner(model, models), options, created_ns(job.path)),
        CommandInbox(job, commands_offset),
        done,
    )
