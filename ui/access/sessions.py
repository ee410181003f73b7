"""Sessions: one row for each logged-in browser, kept across restarts. Only a hash of the browser's token is on disk."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

COOKIE = "impasto"
IDLE_SECONDS = 14 * 86_400  # a session that is not used for this long ends
_USE_SECONDS = 3_600  # precision of the time of last use, so that not every request writes to the disk


def open_database(path: Path) -> sqlite3.Connection:
    """Opens or creates the database of sessions, readable only by its owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    path.chmod(0o600)
    # A logout must survive a power failure, so every change is synced to the disk.
    database.execute("PRAGMA journal_mode = DELETE")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(
        "CREATE TABLE IF NOT EXISTS sessions "
        "(token BLOB PRIMARY KEY, user TEXT NOT NULL, fingerprint TEXT NOT NULL, used REAL NOT NULL)"
    )
    return database


class Sessions:
    """The sessions of all users.

    Args:
        now: the clock, in seconds since 1970.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._now, self._lock = now, threading.Lock()
        self._database = open_database(path)

    def open(self, user: str, fingerprint: str) -> str:
        """Creates a session and returns the token for the browser's cookie.

        Args:
            fingerprint: of the user's password, which the caller compares at each request.
        """
        token, now = secrets.token_urlsafe(32), self._now()
        with self._lock:
            self._database.execute("DELETE FROM sessions WHERE used < ?", (now - IDLE_SECONDS,))
            row = (_hash(token), user, fingerprint, now)
            self._database.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", row)
        return token

    def user(self, token: str) -> tuple[str, str] | None:
        """Returns (user, fingerprint of the password at login) of a session; None if it has ended."""
        with self._lock:
            query = "SELECT user, fingerprint, used FROM sessions WHERE token = ?"
            row = self._database.execute(query, (_hash(token),)).fetchone()
            if row is None:
                return None
            user, fingerprint, used = row
            now = self._now()
            if now - used > IDLE_SECONDS:
                return None
            if abs(now - used) > _USE_SECONDS:  # `abs`: a clock that was set back starts the idle time again
                self._database.execute("UPDATE sessions SET used = ? WHERE token = ?", (now, _hash(token)))
            return user, fingerprint

    def close(self, token: str) -> None:
        """Ends a session."""
        with self._lock:
            self._database.execute("DELETE FROM sessions WHERE token = ?", (_hash(token),))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
