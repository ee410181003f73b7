"""Child processes that work on the jobs of the queue."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from trainer.runs import events
from trainer.runs.job import Device, JobRecord
from trainer.runs.run import Run

ROOT = Path(__file__).resolve().parents[2]  # `python -m trainer` is found from here


class JobProcesses:
    """Starts `python -m trainer` for jobs and finds out which processes are alive."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self._children: dict[
            str, subprocess.Popen[bytes]
        ] = {}  # by job id; only those that this process started

    def start(self, job: JobRecord, folder: Path, device: Device) -> tuple[int, float | None]:
        """Starts the process of a job and returns its pid and its start time in seconds since 1970.

        The process gets a session of its own, so that it survives the end of the server and Ctrl+C in its
        terminal. Its output is appended to `trainer.log` in the job's folder.
        """
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        if device.visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device.visible
        command = [sys.executable, "-m", "trainer", *job.arguments, "--models", str(self.models.resolve())]
        with (folder / "trainer.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        self._children[job.id] = child
        return child.pid, start_time(child.pid)

    def is_running(self, job: JobRecord, folder: Path) -> bool:
        """Returns whether a process works on a job.

        Its claim on the folder shows this or, before it has claimed the folder, its pid.
        """
        if Run(folder).is_alive():
            return True
        child = self._children.get(job.id)
        if child is not None:
            return child.poll() is None
        started = start_time(job.pid) if job.pid else None
        return (
            started is not None
            and job.process_started is not None
            and abs(started - job.process_started)
            < 2  # otherwise the system has given the pid to another process
        )

    def pop_signal(self, job: JobRecord) -> int:
        """Forgets the child process of a job that has ended and returns the signal that killed it.

        0 stands for an ordinary end and for a process that this process did not start.
        """
        child = self._children.pop(job.id, None)
        return -child.returncode if child is not None and (child.poll() or 0) < 0 else 0


def ending_of(job: JobRecord, folder: Path) -> str:
    """Returns "finished", "stopped" or "failed" by the job's last `ended` event; "interrupted" if it wrote
    none.
    """
    fresh, _ = events.read(folder / "events.jsonl", job.events_offset)
    return next((event["how"] for event in reversed(fresh) if event["kind"] == "ended"), "interrupted")


def start_time(pid: int) -> float | None:
    """Returns when a process started, in seconds since 1970; None for no process or a zombie."""
    try:
        process = psutil.Process(pid)
        return process.create_time() if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
