"""Which job next, on which device: trainings, captionings and drawings that wait their turn.

    waiting -> running -> finished | stopped | failed | interrupted     (the folder's events say which; "interrupted": it says nothing)

What is on disk is the truth: a job runs when a process holds its folder's claim (trainer/runs/run.py), and whoever looks next
adopts it. One job runs at a time on each device. A job whose process died is never started again by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil

from trainer.errors import RunError
from trainer.runs import events
from trainer.runs.job import Device, Job
from trainer.runs.queue_store import MARK, USERS, Ledger, facts_of, mark
from trainer.runs.run import Run, read_owner

FILES = "files"  # a lane of its own, for work on files that needs no device
KEPT = 500  # jobs that have ended
_ROOT = Path(__file__).resolve().parents[2]


class Queue:
    """The line of one outputs folder. Every method may be called by several threads and processes at once."""

    def __init__(self, outputs: Path, models: Path, devices: Sequence[Device] | None = None) -> None:
        """
        Args:
            devices: what there is; None asks a child process when `serve` begins (torch stays out of this one).
        """
        self.outputs, self.models = outputs, models
        self.devices = tuple(devices) if devices is not None else None
        self._ledger = Ledger(outputs, self._first_device)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._serving = threading.Event()
        self.lock = threading.Lock()  # for whoever makes the folder that is then submitted

    # What the page asks

    def submit(
        self, folder: Path, kind: str, arguments: Sequence[str], *, lane: str = "", token: str = ""
    ) -> Job:
        """Puts `python -m trainer <arguments>` at the end of the line, and starts it when its device is free.

        Args:
            folder: what the process claims.
            lane: a device's id; "" for any; FILES for work that needs none.
            token: of one click: however often it arrives, there is one job.

        Raises RunError when the folder has a job, or a process, already.
        """
        place = self._ledger.key(folder)

        def put(db: sqlite3.Connection) -> str:
            known = db.execute("SELECT id FROM job WHERE token = ?", (token,)).fetchone() if token else None
            if known:
                return known["id"]
            if db.execute(
                "SELECT 1 FROM job WHERE folder = ? AND state IN ('waiting', 'running')", (place,)
            ).fetchone():
                raise RunError(f"“{folder.name}” is in the line already; wait for it, or stop it")
            if Run(folder).is_alive():
                raise RunError(f"“{folder.name}” is being worked on already; stop it, or wait until it ends")
            last = db.execute("SELECT max(position) FROM job").fetchone()[0] or 0
            job = {
                "id": uuid.uuid4().hex,
                "token": token or None,
                "kind": kind,
                "arguments": list(arguments),
                "lane": lane,
            }
            job |= {"state": "waiting", "position": last + 1, "said": _size(folder / "events.jsonl")}
            self._ledger.insert(db, place, job)
            mark(folder, job)
            return job["id"]

        made = self._ledger.do(put)
        self.step()
        return next(job for job in self.all() if job.id == made)

    def all(self) -> list[Job]:
        """Every job that is known: those that run, then those that wait in order, then those that ended, newest first."""
        rows = self._ledger.do(
            lambda db: db.execute("SELECT * FROM job ORDER BY position").fetchall(), writes=False
        )
        waiting = [row for row in rows if row["state"] == "waiting"]
        running = [row for row in rows if row["state"] == "running"]
        ended = sorted(
            (row for row in rows if row["state"] not in ("waiting", "running")),
            key=lambda row: -row["changed"],
        )
        placed = [
            *((row, 0) for row in running),
            *((row, n) for n, row in enumerate(waiting, start=1)),
            *((row, 0) for row in ended),
        ]
        return [self._ledger.job(row, place) for row, place in placed]

    def active(self) -> list[Job]:
        """Jobs that run or wait."""
        return [job for job in self.all() if job.state in ("running", "waiting")]

    def find(self, folder: Path) -> Job | None:
        """The newest job of a folder."""
        return next(
            (job for job in self.all() if job.folder == self._ledger.whole(self._ledger.key(folder))), None
        )

    def find_by_token(self, token: str) -> Job | None:
        """The job that a click has made already."""
        rows = (
            self._ledger.do(
                lambda db: db.execute("SELECT * FROM job WHERE token = ?", (token,)).fetchall(), writes=False
            )
            if token
            else []
        )
        return self._ledger.job(rows[0], 0) if rows else None

    def blocking_job(self, device: str = "") -> Job | None:
        """The job that runs on a device; without a device: the first one when no device is free."""
        running = [job for job in self.active() if job.state == "running" and job.lane != FILES]
        if device:
            return next((job for job in running if job.device == device), None)
        free = {found.id for found in self.devices or ()} - {job.device for job in running}
        return None if free else next(iter(running), None)

    def move(self, folder: Path, by: int) -> None:
        """Lets a waiting job change places with the one before (-1) or behind (1), of those whose folders lie beside its own."""

        def swap(db: sqlite3.Connection) -> None:
            rows = db.execute("SELECT * FROM job WHERE state = 'waiting' ORDER BY position").fetchall()
            rows = [
                row for row in rows if Path(row["folder"]).parent == Path(self._ledger.key(folder)).parent
            ]
            at = next((n for n, row in enumerate(rows) if row["folder"] == self._ledger.key(folder)), None)
            if at is None or not 0 <= at + by < len(rows):
                return
            for row, position in (
                (rows[at], rows[at + by]["position"]),
                (rows[at + by], rows[at]["position"]),
            ):
                db.execute("UPDATE job SET position = ? WHERE id = ?", (position, row["id"]))
                mark(self._ledger.whole(row["folder"]), {**facts_of(row), "position": position})

        self._ledger.do(swap)

    @property
    def is_paused(self) -> bool:
        row = self._ledger.do(
            lambda db: db.execute("SELECT value FROM setting WHERE name = 'paused'").fetchone(), writes=False
        )
        return row is not None and row["value"] == "yes"

    def pause(self, paused: bool) -> None:
        """Paused, the line starts nothing; what runs goes on."""
        value = "yes" if paused else "no"
        self._ledger.do(
            lambda db: db.execute("INSERT OR REPLACE INTO setting VALUES ('paused', ?)", (value,))
        )
        self.step()

    def stop(self, folder: Path, *, at_once: bool = False) -> None:
        """Takes a waiting job out of the line, or asks a running one to stop; asked again, the system tells its process so.

        Args:
            at_once: of one that seems to be stuck: asked again, the system ends its process.
        """

        def asked(db: sqlite3.Connection) -> sqlite3.Row | None:
            row = db.execute(
                "SELECT * FROM job WHERE folder = ? AND state IN ('waiting', 'running')",
                (self._ledger.key(folder),),
            ).fetchone()
            if row and row["state"] == "waiting":
                self._end(db, row, "stopped")
            elif row:
                db.execute("UPDATE job SET stops = stops + 1 WHERE id = ?", (row["id"],))
            return row

        row = self._ledger.do(asked)
        if row is None or row["state"] == "running":
            events.append(folder / "commands.jsonl", "stop", sync=True)
        owner = read_owner(folder)
        if row and row["stops"] and owner and Run(folder).is_alive():
            os.kill(owner["pid"], signal.SIGKILL if at_once else signal.SIGTERM)

    # What starts the jobs

    def begin(self) -> None:
        """Serves in a thread of its own, until this process ends."""
        threading.Thread(target=self.serve, name="queue", daemon=True).start()

    def end(self) -> None:
        self._serving.set()

    def serve(self, seconds: float = 0.5) -> None:
        """Looks at the line again and again: notices what has ended, starts what is next."""
        self.detect_devices()
        while not self._serving.wait(seconds):
            # A full disk or a held lock passes; the line must still move afterwards.
            with contextlib.suppress(RunError, OSError):
                self.step()

    def detect_devices(self) -> None:
        """What there is to work on, asked of a child process."""
        if self.devices is not None:
            return
        asked = subprocess.run(
            [sys.executable, "-m", "trainer", "device", "--json"], cwd=_ROOT, capture_output=True, text=True
        )
        found = []
        with contextlib.suppress(ValueError, TypeError):
            found = (
                [Device(**facts) for facts in json.loads(asked.stdout.strip().splitlines()[-1])]
                if asked.stdout.strip()
                else []
            )
        # Without an answer a training would still say why it can't be.
        self.devices = tuple(found) or (Device(id="cpu", words="CPU"),)

    def step(self) -> None:
        """Notices jobs that have ended or were started by others, and starts what is next on each free device."""
        self._ledger.do(self._step)

    def _step(self, db: sqlite3.Connection) -> None:
        for row in db.execute("SELECT * FROM job WHERE state = 'running'").fetchall():
            if not self._lives(row):
                self._end(db, row, self._ending(row))
        held = {row["folder"] for row in db.execute("SELECT folder FROM job WHERE state = 'running'")}
        for folder in self._alive() - held:
            self._adopt(db, folder)
        if (
            self.devices is None
            or db.execute("SELECT 1 FROM setting WHERE name = 'paused' AND value = 'yes'").fetchone()
        ):
            return
        for device in (*self.devices, Device(id=FILES, words="", visible="")):
            taken = db.execute(
                "SELECT 1 FROM job WHERE state = 'running' AND device IN (?, '')", (device.id,)
            ).fetchone()
            lanes = (FILES, FILES) if device.id == FILES else ("", device.id)
            row = db.execute(
                "SELECT * FROM job WHERE state = 'waiting' AND lane IN (?, ?) ORDER BY position", lanes
            ).fetchone()
            if row and not taken:
                self._start(db, row, device)

    def _start(self, db: sqlite3.Connection, row: sqlite3.Row, device: Device) -> None:
        """A process of its own session, so that it outlives the server; its pid is written down before anyone else may look."""
        folder = self._ledger.whole(row["folder"])
        if not folder.is_dir():
            self._end(db, row, "failed")
            return
        mark(folder, {**facts_of(row), "state": "running"})
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        if device.visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device.visible
        command = [
            sys.executable,
            "-m",
            "trainer",
            *json.loads(row["arguments"]),
            "--models",
            str(self.models.resolve()),
        ]
        with (folder / "trainer.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        self._children[row["id"]] = child
        born = _born(child.pid)
        db.execute(
            "UPDATE job SET state = 'running', device = ?, pid = ?, born = ?, said = ?, stops = 0, changed = ? WHERE id = ?",
            (device.id, child.pid, born, _size(folder / "events.jsonl"), time.time(), row["id"]),
        )

    def _lives(self, row: sqlite3.Row) -> bool:
        """By its claim, or, before it has one, by its pid."""
        if Run(self._ledger.whole(row["folder"])).is_alive():
            return True
        child = self._children.get(row["id"])
        if child is not None:
            return child.poll() is None
        born = _born(row["pid"]) if row["pid"] else None
        return born is not None and row["born"] is not None and abs(born - row["born"]) < 2

    def _ending(self, row: sqlite3.Row) -> str:
        said, _ = events.read(self._ledger.whole(row["folder"]) / "events.jsonl", row["said"])
        return next((event["how"] for event in reversed(said) if event["kind"] == "ended"), "interrupted")

    def _end(self, db: sqlite3.Connection, row: sqlite3.Row, state: str) -> None:
        child = self._children.pop(row["id"], None)
        killed = -child.returncode if child is not None and (child.poll() or 0) < 0 else 0
        db.execute(
            "UPDATE job SET state = ?, signal = ?, changed = ? WHERE id = ?",
            (state, killed, time.time(), row["id"]),
        )
        (self._ledger.whole(row["folder"]) / MARK).unlink(missing_ok=True)
        db.execute(
            "DELETE FROM job WHERE state NOT IN ('waiting', 'running') AND id NOT IN (SELECT id FROM job ORDER BY changed DESC LIMIT ?)",
            (KEPT,),
        )

    def _alive(self) -> set[str]:
        """Trainings that a process works on, whoever started it."""
        owners = [
            path
            for pattern in ("*/owner.json", f"{USERS}/*/*/owner.json")
            for path in self.outputs.glob(pattern)
        ]
        runs = [path.parent for path in owners if (path.parent / "config.toml").is_file()]
        return {self._ledger.key(folder) for folder in runs if Run(folder).is_alive()}

    def _first_device(self) -> str:
        return self.devices[0].id if self.devices else ""

    def _adopt(self, db: sqlite3.Connection, place: str) -> None:
        """A process that this line did not start, or whose start it did not see to its end, holds a device all the same."""
        device = self._first_device()
        row = db.execute("SELECT id FROM job WHERE folder = ? AND state = 'waiting'", (place,)).fetchone()
        if row:
            db.execute(
                "UPDATE job SET state = 'running', device = ?, changed = ? WHERE id = ?",
                (device, time.time(), row["id"]),
            )
            return
        job = {
            "id": uuid.uuid4().hex,
            "token": None,
            "kind": "train",
            "arguments": [],
            "lane": "",
            "state": "running",
            "position": 0,
            "said": 0,
        }
        self._ledger.insert(db, place, job, device)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _born(pid: int) -> float | None:
    """When a process began; None when there is none, or only what is left of one."""
    try:
        process = psutil.Process(pid)
        return process.create_time() if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
