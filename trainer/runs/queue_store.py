"""The queue's line on disk: a transaction at a time, and made anew from the folders when it is lost.

outputs/.queue.sqlite      the line; any number of servers may open it, and a lost or damaged one is made anew from
outputs/*/.queue.json      in the folder of each job that waits or runs
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from trainer.atomic_files import write_atomically
from trainer.errors import RunError
from trainer.runs.job import Job
from trainer.runs.run import Run

MARK = ".queue.json"
USERS = "_users"  # where there are accounts: the folder of everyone's outputs
_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
  id TEXT PRIMARY KEY, token TEXT UNIQUE, kind TEXT NOT NULL, folder TEXT NOT NULL, arguments TEXT NOT NULL, lane TEXT NOT NULL,
  device TEXT NOT NULL, state TEXT NOT NULL, position REAL NOT NULL, pid INTEGER, born REAL, said INTEGER NOT NULL, stops INTEGER NOT NULL,
  signal INTEGER NOT NULL, changed REAL NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_job_a_folder ON job (folder) WHERE state IN ('waiting', 'running');
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = 1;
"""
T = TypeVar("T")


class Ledger:
    """The line of one outputs folder. Every method may be called by several threads and processes at once."""

    def __init__(self, outputs: Path, device: Callable[[], str]) -> None:
        """
        Args:
            device: the id of the one that jobs hold which run while the line is made anew.
        """
        self.outputs, self._path, self._device = outputs, outputs / ".queue.sqlite", device

    def do(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """`work` in a transaction of its own. Raises RunError when the disk does not take it."""
        for again in (True, False):
            try:
                with contextlib.closing(self._connect()) as db:
                    db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                    try:
                        result = work(db)
                    except BaseException:
                        db.execute("ROLLBACK")
                        raise
                    db.execute("COMMIT")
                    return result
            except sqlite3.OperationalError as error:
                raise RunError(
                    f"the queue can't be used just now ({error}); check the disk of the outputs folder and try again"
                ) from error
            except sqlite3.DatabaseError as error:  # damaged
                if not again:
                    raise RunError(
                        "the queue's file is damaged; remove .queue.sqlite from the outputs folder"
                    ) from error
                self._set_aside()
        raise AssertionError

    def _connect(self) -> sqlite3.Connection:
        self.outputs.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=20, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            # FULL: what was said to be in the line is there after a power cut.
            db.execute("PRAGMA synchronous = FULL")
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                with contextlib.suppress(sqlite3.OperationalError):  # another one is setting it
                    db.execute("PRAGMA journal_mode = WAL")
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                self._rebuild(db)
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self) -> None:
        aside = self._path.with_name(f".queue-damaged-{time.time_ns()}.sqlite")
        with contextlib.suppress(OSError):
            self._path.rename(aside)
        for ending in ("-wal", "-shm"):
            Path(f"{self._path}{ending}").unlink(missing_ok=True)

    def _rebuild(self, db: sqlite3.Connection) -> None:
        """The line from the marks in its folders."""
        db.execute("BEGIN IMMEDIATE")
        for depth in ("*", ".*/*", f"{USERS}/*/*", f"{USERS}/*/.*/*"):
            for marked in self.outputs.glob(f"{depth}/{MARK}"):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, sqlite3.IntegrityError):
                    job = json.loads(marked.read_text(encoding="utf-8"))
                    if job["state"] == "waiting" or Run(marked.parent).is_alive():
                        self.insert(
                            db,
                            self.key(marked.parent),
                            job,
                            self._device() if job["state"] == "running" else "",
                        )
                    else:
                        marked.unlink()
        db.execute("COMMIT")

    def insert(self, db: sqlite3.Connection, place: str, job: dict[str, Any], device: str = "") -> None:
        db.execute(
            "INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, ?, 0, 0, ?)",
            (
                job["id"],
                job["token"],
                job["kind"],
                place,
                json.dumps(job["arguments"]),
                job["lane"],
                device,
                job["state"],
                job["position"],
                job["said"],
                time.time(),
            ),
        )

    def job(self, row: sqlite3.Row, place: int) -> Job:
        folder = self.whole(row["folder"])
        names: Iterable[str] = ("id", "kind", "state", "lane", "device", "stops", "signal")
        return Job(folder=folder, queue_position=place, **{name: row[name] for name in names})

    def key(self, folder: Path) -> str:
        """A folder as the line knows it: below outputs, so that outputs may be moved."""
        return os.path.relpath(folder.absolute(), self.outputs.absolute())

    def whole(self, key: str) -> Path:
        return self.outputs / key


def mark(folder: Path, job: dict[str, Any]) -> None:
    write_atomically(folder / MARK, json.dumps(job).encode())


def facts_of(row: sqlite3.Row) -> dict[str, Any]:
    names = ("id", "token", "kind", "lane", "state", "position", "said")
    return {**{name: row[name] for name in names}, "arguments": json.loads(row["arguments"])}
