"""Job queue: decides which training, captioning or image generation runs next, and on which device.

States of a job:

    waiting -> running -> finished | stopped | failed | interrupted

The first three endings come from the `ended` event in the job's folder; a process that died without one
leaves the job "interrupted", and it is not started again automatically.

Rules:
- One job runs at a time on each device. Jobs of the FILES lane (merging, converting) need no device and run
  one at a time beside the others.
- A job runs as long as a process holds the claim on its folder (`owner.json`, trainer/runs/run.py). The claim
  decides, not the database: any server that opens the outputs folder finds running jobs, also those started
  in a terminal, and takes their devices into account ("adopts" them).
- Waiting jobs survive the end of the server, and a lost database is rebuilt (trainer/runs/queue_store.py).
- Several servers can share one outputs folder; a transaction makes sure that only one of them starts a job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import RunError
from trainer.runs import events
from trainer.runs.job import FILES, Device, Job, JobRecord
from trainer.runs.queue_processes import ROOT, JobProcesses, ending_of
from trainer.runs.queue_store import JobTable, QueueStore
from trainer.runs.run import Run, read_owner


class Queue:
    """The queue of one outputs folder. Every method can be called by several threads and processes at
    once.
    """

    def __init__(self, outputs: Path, models: Path, devices: Sequence[Device] | None = None) -> None:
        """
        Args:
            devices: devices for jobs; None: `serve` detects them. Before that, waiting jobs do not start.
        """
        self.outputs = outputs
        self.models = models
        self.devices = tuple(devices) if devices is not None else None
        self.lock = threading.Lock()  # for callers that create a folder and then submit it
        self._store = QueueStore(outputs, self._first_device)
        self._processes = JobProcesses(models)

    def submit(
        self, folder: Path, kind: str, arguments: Sequence[str], *, lane: str = "", token: str = ""
    ) -> Job:
        """Appends `python -m trainer <arguments>` to the queue; starts it at once if its device is free.

        Args:
            folder: the folder that the process claims.
            lane: id of the required device; "" for any; FILES for work that needs none.
            token: identifies one click; the same token always returns the same job, however often it arrives.

        Raises:
            RunError: the folder has a waiting or running job, or another process works on it.
        """

        def append(table: JobTable) -> str:
            earlier = table.with_token(token) if token else None
            if earlier:
                return earlier.id
            job = JobRecord(
                id=uuid.uuid4().hex,
                token=token or None,
                kind=kind,
                key=self._store.key(folder),
                arguments=tuple(arguments),
                lane=lane,
                state="waiting",
                position=table.last_position() + 1,
                events_offset=_size(folder / "events.jsonl"),
            )
            if table.active(job.key):
                raise RunError(f"“{folder.name}” is in the queue already; wait for it, or stop it")
            if Run(folder).is_alive():
                raise RunError(f"another process works on “{folder.name}”; stop it, or wait until it ends")
            table.insert(job)
            self._store.write_marker(job)
            return job.id

        job_id = self._store.execute(append)
        self.update()
        return next(job for job in self.jobs() if job.id == job_id)

    def jobs(self) -> list[Job]:
        """Returns all jobs: running ones, then waiting ones in order, then ended ones, newest first."""
        records = self._store.execute(lambda table: table.all(), writes=False)
        running = [record for record in records if record.state == "running"]
        waiting = [record for record in records if record.state == "waiting"]
        ended = [record for record in records if record.state not in ("running", "waiting")]
        ended.sort(key=lambda record: -record.changed)
        return [
            *(self._job(record) for record in running),
            *(self._job(record, number) for number, record in enumerate(waiting, start=1)),
            *(self._job(record) for record in ended),
        ]

    def _job(self, record: JobRecord, queue_position: int = 0) -> Job:
        names = ("id", "kind", "state", "lane", "device", "stops", "signal", "pid")
        shared = {name: getattr(record, name) for name in names}
        return Job(folder=self._store.folder(record), queue_position=queue_position, **shared)

    def active(self) -> list[Job]:
        """Returns the jobs that run or wait."""
        return [job for job in self.jobs() if job.state in ("running", "waiting")]

    def find(self, folder: Path) -> Job | None:
        """Returns the newest job of a folder."""
        key = self._store.key(folder)
        return next((job for job in self.jobs() if self._store.key(job.folder) == key), None)

    def find_by_token(self, token: str) -> Job | None:
        """Returns the job that a click has created."""
        if not token:
            return None
        record = self._store.execute(lambda table: table.with_token(token), writes=False)
        return self._job(record) if record else None

    def blocking_job(self, device: str = "") -> Job | None:
        """Returns the job that runs on a device; without a device, the first running job if no device is
        free.
        """
        running = [job for job in self.active() if job.state == "running" and job.lane != FILES]
        if device:
            return next((job for job in running if job.device == device), None)
        free = {device.id for device in self.devices or ()} - {job.device for job in running}
        return None if free else next(iter(running), None)

    def move(self, folder: Path, by: int) -> None:
        """Exchanges a waiting job with the one before (-1) or after it (1); other users' jobs stay where they
        are.
        """
        key = self._store.key(folder)

        def swap(table: JobTable) -> None:
            waiting = [job for job in table.in_state("waiting") if Path(job.key).parent == Path(key).parent]
            index = next((index for index, job in enumerate(waiting) if job.key == key), None)
            if index is None or not 0 <= index + by < len(waiting):
                return
            one, other = waiting[index], waiting[index + by]
            for job, position in ((one, other.position), (other, one.position)):
                table.set_position(job, position)
                self._store.write_marker(dataclasses.replace(job, position=position))

        self._store.execute(swap)

    @property
    def is_paused(self) -> bool:
        """Returns whether no waiting job starts."""
        return self._store.execute(lambda table: table.is_paused, writes=False)

    def pause(self, paused: bool) -> None:
        """Pauses the queue or resumes it; running jobs continue."""

        def change(table: JobTable) -> None:
            table.is_paused = paused

        self._store.execute(change)
        self.update()

    def stop(self, folder: Path, *, at_once: bool = False) -> None:
        """Removes a waiting job from the queue, or requests a running one to stop.

        The first request is a line in `commands.jsonl`: the job ends after the current step and saves. From
        the second request on, its process also receives a signal.

        Args:
            at_once: sends SIGKILL instead of SIGTERM, for a process that no longer reacts.
        """

        def request(table: JobTable) -> JobRecord | None:
            job = table.active(self._store.key(folder))
            if job and job.state == "waiting":
                self._end(table, job, "stopped")
            elif job:
                table.add_stop(job)
            return job

        job = self._store.execute(request)
        if job is None or job.state == "running":
            events.append(folder / "commands.jsonl", "stop", sync=True)
        owner = read_owner(folder)
        if job and job.stops and owner and Run(folder).is_alive():
            os.kill(owner["pid"], signal.SIGKILL if at_once else signal.SIGTERM)

    def serve(self, seconds: float = 0.5) -> None:
        """Detects the devices, then updates the queue every `seconds`; never returns."""
        self.detect_devices()
        while True:
            time.sleep(seconds)
            # A full disk or a lock that another process holds is temporary; the queue must continue
            # afterwards.
            with contextlib.suppress(RunError, OSError):
                self.update()

    def detect_devices(self) -> None:
        """Fills `devices` with the output of `python -m trainer device --json`, so that this process loads no
        torch.
        """
        if self.devices is not None:
            return
        command = [sys.executable, "-m", "trainer", "device", "--json"]
        lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip().splitlines()
        devices: list[Device] = []
        with contextlib.suppress(ValueError, TypeError, IndexError):
            devices = [Device(**fields) for fields in json.loads(lines[-1])]
        # If detection fails, jobs start all the same: a training then reports what is wrong with the device.
        self.devices = tuple(devices) or (Device(id="cpu", words="CPU"),)

    def update(self) -> None:
        """Records which jobs have ended or were started elsewhere, then starts the next job on each free
        device.
        """
        self._store.execute(self._update)

    def _update(self, table: JobTable) -> None:
        for job in table.in_state("running"):
            folder = self._store.folder(job)
            if not self._processes.is_running(job, folder):
                self._end(table, job, ending_of(job, folder))
        for key in self._store.live_runs() - {job.key for job in table.in_state("running")}:
            self._adopt(table, key)
        if self.devices is None or table.is_paused:
            return
        for device in (*self.devices, Device(id=FILES, words="", visible="")):
            self._start_next(table, device)

    def _start_next(self, table: JobTable, device: Device) -> None:
        # A running job without a device is one whose device is unknown, so no device counts as free.
        if any(job.device in (device.id, "") for job in table.in_state("running")):
            return
        lanes = (FILES,) if device.id == FILES else ("", device.id)
        job = next((job for job in table.in_state("waiting") if job.lane in lanes), None)
        if job:
            self._start(table, job, device)

    def _start(self, table: JobTable, job: JobRecord, device: Device) -> None:
        folder = self._store.folder(job)
        if not folder.is_dir():
            self._end(table, job, "failed")
            return
        self._store.write_marker(dataclasses.replace(job, state="running"))
        # The pid is written in the same transaction, so that no other server sees a running job without one.
        process = self._processes.start(job, folder, device)
        table.set_started(job, device.id, process, _size(folder / "events.jsonl"))

    def _end(self, table: JobTable, job: JobRecord, state: str) -> None:
        table.set_ended(job, state, self._processes.pop_signal(job))
        self._store.remove_marker(job)

    def _adopt(self, table: JobTable, key: str) -> None:
        """Records a running process that this queue did not start: it occupies a device all the same."""
        job = table.active(key)
        if job:
            table.set_adopted(job, self._first_device())
            return
        table.insert(
            JobRecord(
                id=uuid.uuid4().hex,
                kind="train",
                key=key,
                arguments=(),
                device=self._first_device(),
                state="running",
                position=0,
                events_offset=0,
            )
        )

    def _first_device(self) -> str:
        return self.devices[0].id if self.devices else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
