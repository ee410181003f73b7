"""Who is logged in: one row a browser, kept across restarts. Only a hash of what the browser holds is on disk."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

COOKIE = "impasto"
IDLE_SECONDS = 14 * 86_400  # a browser that is not used so long must log in again
_STEP = 3_600  # how exactly its use is noted


class Sessions:
    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._now, self._lock = now, threading.Lock()
        self._rows = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        path.chmod(0o600)
        self._rows.execute("PRAGMA journal_mode = DELETE")
        self._rows.execute("PRAGMA synchronous = FULL")
        self._rows.execute(
            "CREATE TABLE IF NOT EXISTS sessions (token BLOB PRIMARY KEY, user TEXT NOT NULL, fingerprint TEXT NOT NULL, used REAL NOT NULL)"
        )

    def open(self, user: str, fingerprint: str) -> str:
        """A new session; what the browser is to hold."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._rows.execute("DELETE FROM sessions WHERE used < ?", (self._now() - IDLE_SECONDS,))
            self._rows.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?)", (_hash(token), user, fingerprint, self._now())
            )
        return token

    def user(self, token: str) -> tuple[str, str] | None:
        """(user, fingerprint of the password it was opened with), while it lasts."""
        with self._lock:
            row = self._rows.execute(
                "SELECT user, fingerprint, used FROM sessions WHERE token = ?", (_hash(token),)
            ).fetchone()
            now = self._now()
            if row is None or now - row[2] > IDLE_SECONDS:
                return None
            if abs(now - row[2]) > _STEP:  # a clock that was set back counts from now on
                self._rows.execute("UPDATE sessions SET used = ? WHERE token = ?", (now, _hash(token)))
            return row[0], row[1]

    def close(self, token: str) -> None:
        with self._lock:
            self._rows.execute("DELETE FROM sessions WHERE token = ?", (_hash(token),))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
