"""Accounts: a file of users, and passwords that are never kept.

    [users]
    ana = "scrypt$32768$8$3$<salt>$<hash>"        RFC 7914: N, r, p; salt and hash in base64

`python app.py add-user ana` writes it. A user is let in by name and password; who tries too often waits.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import re
import secrets
import threading
import time
import tomllib
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from trainer.atomic_files import write_atomically
from trainer.errors import TrainerError

_N, _R, _P = 2**15, 8, 3  # 32 MiB and a quarter of a second: OWASP's second choice, for small machines
_NAME = re.compile(r"\w[\w.\-]{0,39}")
_SHORTEST = 8


class AccountError(TrainerError):
    pass


def user_name(text: str) -> str:
    """A name as it is kept: the same for `Ana` and `ana`, safe as a folder's. Raises AccountError."""
    name = unicodedata.normalize("NFKC", text).strip().casefold()
    if not _NAME.fullmatch(name) or name.startswith("_") or name.endswith("."):
        raise AccountError(
            "a user's name has 1 to 40 letters, digits, dots and dashes, and begins with a letter or digit; choose another"
        )
    return name


def hash_password(password: str) -> str:
    salt = secrets.token_bytes(16)
    return "$".join(
        ("scrypt", str(_N), str(_R), str(_P), _b64(salt), _b64(_scrypt(password, salt, _N, _R, _P)))
    )


def fits(password: str, kept: str) -> bool:
    """Whether a password is the one that `kept` was made of; takes as long when not."""
    try:
        kind, n, r, p, salt, expected = kept.split("$")
        if kind != "scrypt":
            return False
        made = _scrypt(password, base64.b64decode(salt), int(n), int(r), int(p))
        return hmac.compare_digest(made, base64.b64decode(expected))
    except ValueError:
        return False


@functools.cache
def _nobodys() -> str:
    """What an unknown user's password is compared with, so that the answer takes as long."""
    return hash_password(secrets.token_hex(16))


def add_user(path: Path, name: str, password: str) -> str:
    """Writes a user, or a new password for one, into the file; the name as it is kept. Raises AccountError."""
    import tomlkit

    name = user_name(name)
    if len(password) < _SHORTEST:
        raise AccountError(f"a password has at least {_SHORTEST} characters; choose a longer one")
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    document.setdefault("users", tomlkit.table())[name] = hash_password(password)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, tomlkit.dumps(document).encode())
    path.chmod(0o600)
    return name


class Accounts:
    """The users of a file, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[int, dict[str, str]] = (-1, {})
        if not self._users():
            raise AccountError(f"{path} names no user; add one: python app.py add-user NAME --auth {path}")

    def _users(self) -> dict[str, str]:
        try:
            changed = self.path.stat().st_mtime_ns
            if changed != self._read[0]:
                said = tomllib.loads(self.path.read_text(encoding="utf-8")).get("users", {})
                self._read = (
                    changed,
                    {user_name(name): kept for name, kept in said.items() if isinstance(kept, str)},
                )
        except (OSError, ValueError, AttributeError, AccountError) as error:
            if self._read[0] < 0:
                raise AccountError(
                    f"{self.path} can't be read as a file of users ({type(error).__name__}); add one: "
                    f"python app.py add-user NAME --auth {self.path}"
                ) from None
        return self._read[1]

    def check(self, name: str, password: str) -> str | None:
        """The user whose password this is. Takes a quarter of a second: never call it on the event loop."""
        try:
            user = user_name(name)
        except AccountError:
            user = ""
        kept = self._users().get(user)
        return user if fits(password, kept or _nobodys()) and kept else None

    def fingerprint(self, user: str) -> str | None:
        """Another one when the user's password has changed; None when the user is gone."""
        kept = self._users().get(user)
        return hashlib.sha256(kept.encode()).hexdigest()[:16] if kept else None


class LoginThrottle:
    """How often a login was tried in vain: after five, each further one makes the next wait twice as long, an hour at most.

    Counted for a user at an address, and for an address alone with four times as much patience.
    """

    FREE, FIRST_SECONDS, LONGEST_SECONDS = 5, 30.0, 3600.0
    _KEPT = 20_000

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._failed: OrderedDict[tuple[str, str], tuple[int, float]] = (
            OrderedDict()
        )  # -> times, when the next may be

    def _places(self, user: str, address: str) -> list[tuple[tuple[str, str], int]]:
        return [((user, address), self.FREE), (("", address), 4 * self.FREE)]

    def wait(self, user: str, address: str) -> float:
        """Seconds until a login may be tried. The try counts as failed until `succeeded` says otherwise, so that many at once
        are as slow as one after another."""
        with self._lock:
            now = self._now()
            places = self._places(user, address)
            for place, _ in places:
                if now - self._failed.get(place, (0, now))[1] > self.LONGEST_SECONDS:
                    del self._failed[place]
            left = max(self._failed.get(place, (0, now))[1] - now for place, _ in places)
            if left > 0:
                return left
            for place, free in places:
                times = self._failed.pop(place, (0, 0.0))[0] + 1
                delay = (
                    min(self.LONGEST_SECONDS, self.FIRST_SECONDS * 2 ** min(times - free, 20))
                    if times >= free
                    else 0.0
                )
                self._failed[place] = (times, now + delay)
            while len(self._failed) > self._KEPT:
                self._failed.popitem(last=False)
            return 0.0

    def succeeded(self, user: str, address: str) -> None:
        with self._lock:
            self._failed.pop((user, address), None)
            times, until = self._failed.get(("", address), (0, 0.0))
            if times:
                self._failed["", address] = (times - 1, until)


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    secret = unicodedata.normalize("NFKC", password).encode()
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def prompt_password(name: str) -> str:
    """Asked twice at a terminal; the first line of what is piped in otherwise. Raises AccountError."""
    import getpass
    import sys

    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass(f"Password for {name}: ")
    if getpass.getpass("Once more: ") != first:
        raise AccountError("the two passwords differ; start again")
    return first
