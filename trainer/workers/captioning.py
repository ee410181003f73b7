"""`python -m trainer caption-job DIR`: works on a job directory (job.py); how it ends is its last event."""

from __future__ import annotations

import traceback
from pathlib import Path

from trainer.captioning.folder import Work, caption_folder
from trainer.errors import TrainerError
from trainer.headers.captioner import open_captioner
from trainer.runs import events
from trainer.runs.captioning_job import read
from trainer.runs.commands import CommandInbox
from trainer.runs.run import Run, claim


def work(path: Path, models: Path) -> str:
    """Works on a job until it "finished" or was "stopped"; how it ends is its last event. Raises TrainerError."""
    job = Run(path)
    read(path)  # before a claim is laid into a folder that is no job's
    with claim(job):
        commands_offset = events.read(job.commands)[
            1
        ]  # a stop said from now on counts, also while the libraries load
        before = events.read(job.events)[0]
        job.emit("started")
        try:
            how = _captioned(
                job,
                models,
                commands_offset,
                {event["name"] for event in before if event["kind"] == "captioned"},
            )
        except TrainerError as error:
            job.emit("ended", sync=True, how="failed", message=str(error))
            raise
        except KeyboardInterrupt:
            job.emit(
                "ended",
                sync=True,
                how="stopped",
                message="stopped at once; the captions written so far are kept",
            )
            raise
        except Exception as error:
            with (path / "trainer.log").open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            words = (
                f"an unexpected fault ({type(error).__name__}); trainer.log in the job's folder says where"
            )
            job.emit("ended", sync=True, how="failed", message=words)
            raise TrainerError(words) from error
        job.emit("ended", sync=True, how=how)
    return how


def _captioned(job: Run, models: Path, commands_offset: int, done: set[str]) -> str:
    folder, model, options = read(job.path)
    return caption_folder(
        job, Work(folder, open_captioner(model, models), options), CommandInbox(job, commands_offset), done
    )
