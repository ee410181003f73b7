"""Database of the job queue: one SQLite file, rebuilt from the job folders when it is lost or damaged.

outputs/.queue.sqlite     all jobs; any number of servers can open it at once
outputs/*/.queue.json     marker in the folder of each job that waits or runs:
                          {"id", "token", "kind", "lane", "state", "position", "said", "arguments"}, where
                          "said" is a byte offset in events.jsonl
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from trainer.atomic_files import write_atomically
from trainer.errors import RunError
from trainer.json_files import read_object
from trainer.runs.job import JobRecord
from trainer.runs.run import Run

MARKER = ".queue.json"
USERS = "_users"  # with accounts, outputs/_users/<name>/ is the outputs folder of one user
MAX_ENDED_JOBS = 500
_DATABASE = ".queue.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
  id TEXT PRIMARY KEY, token TEXT UNIQUE, kind TEXT NOT NULL, folder TEXT NOT NULL,
  arguments TEXT NOT NULL, lane TEXT NOT NULL, device TEXT NOT NULL, state TEXT NOT NULL,
  position REAL NOT NULL, pid INTEGER, born REAL, said INTEGER NOT NULL, stops INTEGER NOT NULL,
  signal INTEGER NOT NULL, changed REAL NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_job_a_folder ON job (folder) WHERE state IN ('waiting', 'running');
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = 1;
"""
T = TypeVar("T")


class JobTable:
    """Reads and writes jobs within one transaction of a QueueStore."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def all(self) -> list[JobRecord]:
        """Returns every job, ordered by position."""
        return self._select("1")

    def in_state(self, state: str) -> list[JobRecord]:
        """Returns the jobs of one state, ordered by position."""
        return self._select("state = ?", state)

    def active(self, key: str) -> JobRecord | None:
        """Returns the job of a folder that waits or runs."""
        return next(iter(self._select("folder = ? AND state IN ('waiting', 'running')", key)), None)

    def with_token(self, token: str) -> JobRecord | None:
        """Returns the job that a click created."""
        return next(iter(self._select("token = ?", token)), None)

    def _select(self, condition: str, *values: str) -> list[JobRecord]:
        rows = self._db.execute(f"SELECT * FROM job WHERE {condition} ORDER BY position", values).fetchall()
        return [_record(row) for row in rows]

    def last_position(self) -> float:
        """Returns the highest position of any job; 0 for an empty queue."""
        return self._db.execute("SELECT max(position) FROM job").fetchone()[0] or 0

    def insert(self, job: JobRecord) -> None:
        """Adds a job. Raises sqlite3.IntegrityError if its folder has an active job already."""
        row = (
            *(job.id, job.token, job.kind, job.key, json.dumps(job.arguments), job.lane, job.device),
            *(job.state, job.position, job.pid, job.process_started, job.events_offset, job.stops),
            *(job.signal, time.time()),
        )
        self._db.execute(f"INSERT INTO job VALUES ({', '.join('?' * len(row))})", row)

    def set_position(self, job: JobRecord, position: float) -> None:
        """Changes the place of a waiting job."""
        self._db.execute("UPDATE job SET position = ? WHERE id = ?", (position, job.id))

    def add_stop(self, job: JobRecord) -> None:
        """Counts a press of Stop."""
        self._db.execute("UPDATE job SET stops = stops + 1 WHERE id = ?", (job.id,))

    def set_adopted(self, job: JobRecord, device: str) -> None:
        """Marks a waiting job as running in a process that another server or a terminal started."""
        self._db.execute(
            "UPDATE job SET state = 'running', device = ?, changed = ? WHERE id = ?",
            (device, time.time(), job.id),
        )

    def set_started(
        self, job: JobRecord, device: str, process: tuple[int, float | None], offset: int
    ) -> None:
        """Marks a job as running in the process (pid, start time); its events begin at byte `offset`."""
        self._db.execute(
            "UPDATE job SET state = 'running', device = ?, pid = ?, born = ?, said = ?, stops = 0,"
            " changed = ? WHERE id = ?",
            (device, *process, offset, time.time(), job.id),
        )

    def set_ended(self, job: JobRecord, state: str, signal: int) -> None:
        """Records how a job ended and forgets all but the newest MAX_ENDED_JOBS jobs that have ended."""
        self._db.execute(
            "UPDATE job SET state = ?, signal = ?, changed = ? WHERE id = ?",
            (state, signal, time.time(), job.id),
        )
        self._db.execute(
            "DELETE FROM job WHERE state NOT IN ('waiting', 'running')"
            " AND id NOT IN (SELECT id FROM job ORDER BY changed DESC LIMIT ?)",
            (MAX_ENDED_JOBS,),
        )

    @property
    def is_paused(self) -> bool:
        """Returns whether no waiting job may start."""
        row = self._db.execute("SELECT value FROM setting WHERE name = 'paused'").fetchone()
        return row is not None and row["value"] == "yes"

    @is_paused.setter
    def is_paused(self, paused: bool) -> None:
        self._db.execute("INSERT OR REPLACE INTO setting VALUES ('paused', ?)", ("yes" if paused else "no",))


class QueueStore:
    """The queue's database. Every method can be called by several threads and processes at once."""

    def __init__(self, outputs: Path, first_device: Callable[[], str]) -> None:
        """
        Args:
            first_device: returns the id of the device to which running jobs are assigned when the database is
                rebuilt.
        """
        self.outputs = outputs
        self._path = outputs / _DATABASE
        self._first_device = first_device

    def key(self, folder: Path) -> str:
        """Returns a folder relative to the outputs folder, so that outputs can be moved as a whole."""
        return os.path.relpath(folder.absolute(), self.outputs.absolute())

    def folder(self, job: JobRecord) -> Path:
        """Returns the folder of a job."""
        return self.outputs / job.key

    def execute(self, work: Callable[[JobTable], T], *, writes: bool = True) -> T:
        """Returns the result of `work`, which runs in one transaction; its changes are undone if it raises.

        A damaged database is moved aside and rebuilt from the job folders, and `work` runs again.

        Raises:
            RunError: the disk is full or read-only, or another process holds the lock for more than 20 s.
        """
        try:
            try:
                return self._in_transaction(work, writes)
            except sqlite3.OperationalError:  # a subclass of DatabaseError that does not mean damage
                raise
            except sqlite3.DatabaseError:
                self._move_damaged_file()
                return self._in_transaction(work, writes)
        except sqlite3.OperationalError as error:
            raise RunError(
                f"the queue can't be used just now ({error}); "
                "check the disk of the outputs folder and try again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"the queue's file is damaged; remove {_DATABASE} from the outputs folder"
            ) from error

    def _in_transaction(self, work: Callable[[JobTable], T], writes: bool) -> T:
        with contextlib.closing(self._connect()) as db:
            # IMMEDIATE takes the write lock at once: two servers must not read the same waiting job and both
            # start it.
            db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                result = work(JobTable(db))
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
            return result

    def _connect(self) -> sqlite3.Connection:
        self.outputs.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=20, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            # A job that was submitted must still be in the queue after a power cut; WAL's default NORMAL can
            # lose it.
            db.execute("PRAGMA synchronous = FULL")
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:  # a new file
                with contextlib.suppress(sqlite3.OperationalError):  # another process sets it at this moment
                    db.execute("PRAGMA journal_mode = WAL")
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                self._rebuild(db)
        except BaseException:
            db.close()
            raise
        return db

    def _move_damaged_file(self) -> None:
        with contextlib.suppress(OSError):  # another process has moved it already
            self._path.rename(self._path.with_name(f".queue-damaged-{time.time_ns()}.sqlite"))
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _rebuild(self, db: sqlite3.Connection) -> None:
        """Inserts the jobs whose markers say that they wait or run; removes the markers of processes that
        died.
        """
        db.execute("BEGIN IMMEDIATE")
        table = JobTable(db)
        for marker in self._markers():
            # A marker that another program damaged, or a second job of one folder, must not stop the others.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, sqlite3.IntegrityError):
                content = json.loads(marker.read_text(encoding="utf-8"))
                if content["state"] == "waiting" or Run(marker.parent).is_alive():
                    table.insert(self._record_of_marker(marker.parent, content))
                else:
                    marker.unlink()
        db.execute("COMMIT")

    def _markers(self) -> Iterator[Path]:
        for depth in ("*", ".*/*", f"{USERS}/*/*", f"{USERS}/*/.*/*"):
            yield from self.outputs.glob(f"{depth}/{MARKER}")

    def _record_of_marker(self, folder: Path, content: dict) -> JobRecord:
        return JobRecord(
            key=self.key(folder),
            device=self._first_device() if content["state"] == "running" else "",
            arguments=tuple(content["arguments"]),
            events_offset=content["said"],
            **{name: content[name] for name in ("id", "token", "kind", "lane", "state", "position")},
        )

    def write_marker(self, job: JobRecord) -> None:
        """Writes the marker of a job into its folder."""
        write_atomically(self.folder(job) / MARKER, json.dumps(job.marker()).encode())

    def remove_marker(self, job: JobRecord) -> None:
        """Removes the marker of a job that has ended."""
        (self.folder(job) / MARKER).unlink(missing_ok=True)

    def live_runs(self) -> set[str]:
        """Returns the keys of all runs that a process works on, whoever started it."""
        patterns = ("*/owner.json", f"{USERS}/*/*/owner.json")
        folders = [path.parent for pattern in patterns for path in self.outputs.glob(pattern)]
        runs = [folder for folder in folders if (folder / "config.toml").is_file()]
        return {self.key(folder) for folder in runs if Run(folder).is_alive()}


def others_wait(folder: Path) -> bool:
    """Returns whether a run other than `folder` waits in the queue that `folder` belongs to.

    Reads the markers only, so that a worker process needs no access to the database.
    """
    parents = folder.absolute().parents
    outputs = next((parent for parent in parents if (parent / _DATABASE).exists()), parents[0])
    for depth in ("*", f"{USERS}/*/*"):
        for marker in outputs.glob(f"{depth}/{MARKER}"):
            if marker.parent != folder.absolute() and read_object(marker).get("state") == "waiting":
                return True
    return False


def _record(row: sqlite3.Row) -> JobRecord:
    names = (
        "id",
        "token",
        "kind",
        "lane",
        "device",
        "state",
        "position",
        "pid",
        "stops",
        "signal",
        "changed",
    )
    return JobRecord(
        key=row["folder"],
        arguments=tuple(json.loads(row["arguments"])),
        process_started=row["born"],
        events_offset=row["said"],
        **{name: row[name] for name in names},
    )
