"""Accounts: a file of users with hashed passwords, and a throttle of login attempts.

    [users]
    ana = "scrypt$32768$8$3$<salt>$<hash>"        RFC 7914: N, r, p; salt and hash in base64

`python app.py add-user ana` writes it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import secrets
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from trainer.atomic_files import write_atomically
from trainer.errors import TrainerError
from trainer.text_files import read_text, read_toml_file

# 32 MiB and about a quarter of a second for each attempt: the OWASP setting for machines with little memory
# (https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html).
SCRYPT_N, _R, _P = 2**15, 8, 3
_MAX_NAME = 40  # characters
_MIN_CHARACTERS = 8  # of a password


class AccountError(TrainerError):
    """A user name, password or file of users that can't be used."""


def user_name(text: str) -> str:
    """Returns the stored form of a name: the same for `Ana` and `ana`, and safe as the name of a folder.

    Raises:
        AccountError: the name has characters that are not allowed, or is too long.
    """
    name = unicodedata.normalize("NFKC", text).strip().casefold()
    # Category M has the accents and vowel signs without which names in many scripts can't be written.
    is_plain = all(letter in "_.-" or unicodedata.category(letter)[0] in "LMN" for letter in name)
    if not (is_plain and name[:1].isalnum() and len(name) <= _MAX_NAME) or name.endswith("."):
        raise AccountError(
            "a user name has 1 to 40 letters, digits, dots and dashes, and begins with a letter or digit; choose another"
        )
    return name


def hash_password(password: str) -> str:
    """Returns the stored form of a password: scrypt parameters, a new salt, and the hash."""
    salt = secrets.token_bytes(16)
    parts = (str(SCRYPT_N), str(_R), str(_P), _b64(salt), _b64(_scrypt(password, salt, SCRYPT_N, _R, _P)))
    return "$".join(("scrypt", *parts))


def verify_password(password: str, hashed: str) -> bool:
    """Returns True if a password belongs to a hash. Takes the same time if it does not."""
    try:
        kind, n, r, p, salt, expected = hashed.split("$")
        if kind != "scrypt":
            return False
        computed = _scrypt(password, base64.b64decode(salt), int(n), int(r), int(p))
        return hmac.compare_digest(computed, base64.b64decode(expected))
    except ValueError:
        return False


@functools.cache
def unknown_user_hash() -> str:
    """Returns a hash for the passwords of unknown users, so that a login takes as long for them as for known ones.

    Without it the response time would show an attacker which user names exist.
    """
    return hash_password(secrets.token_hex(16))


def add_user(path: Path, name: str, password: str) -> str:
    """Writes a new user, or a new password of a user, into the file of users; returns the stored name.

    Raises:
        AccountError: the name or password is not allowed.
    """
    import tomlkit

    name = user_name(name)
    if len(password) < _MIN_CHARACTERS:
        raise AccountError(f"a password has at least {_MIN_CHARACTERS} characters; choose a longer one")
    document = tomlkit.parse(read_text(path).text) if path.exists() else tomlkit.document()
    document.setdefault("users", tomlkit.table())[name] = hash_password(password)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, tomlkit.dumps(document).encode())
    path.chmod(0o600)
    return name


class Accounts:
    """The users of a file, which is read again when it changes.

    Raises:
        AccountError: at the start, the file has no users or can't be read. A file that is damaged later is ignored, so
            that it locks nobody out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version, self._hashes = -1, dict[str, str]()
        if not self._users():
            raise AccountError(f"{path} has no users; add one: python app.py add-user NAME --auth {path}")

    def _users(self) -> dict[str, str]:
        """Returns the password hashes by user name."""
        try:
            version = self.path.stat().st_mtime_ns
            if version != self._version:
                table = read_toml_file(self.path).get("users", {})
                self._hashes = {
                    user_name(name): text for name, text in table.items() if isinstance(text, str)
                }
                self._version = version
        except (OSError, ValueError, AttributeError, AccountError) as error:
            if self._version < 0:
                raise AccountError(
                    f"{self.path} is not a file of users ({type(error).__name__}); create one: "
                    f"python app.py add-user NAME --auth {self.path}"
                ) from None
        return self._hashes

    def check(self, name: str, password: str) -> str | None:
        """Returns the user with this name and password, or None.

        Takes a quarter of a second of CPU time: never call it on the event loop.
        """
        try:
            user = user_name(name)
        except AccountError:
            user = ""
        hashed = self._users().get(user)
        is_right = verify_password(password, hashed or unknown_user_hash())
        return user if is_right and hashed else None

    def fingerprint(self, user: str) -> str | None:
        """Returns a value that changes with the user's password, which ends its sessions; None without such a user."""
        hashed = self._users().get(user)
        return hashlib.sha256(hashed.encode()).hexdigest()[:16] if hashed else None


class LoginThrottle:
    """Delays logins after failed attempts: after five, each further one doubles the wait, up to an hour.

    Attempts are counted for each pair of user and address, and for each address alone with four times the limit: one
    stops guessing of one user's password, the other guessing over many names.
    """

    FREE_ATTEMPTS, FIRST_SECONDS, MAX_SECONDS = 5, 30.0, 3600.0
    _MAX_KEYS = 20_000  # so that attempts with many names don't fill the memory

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        # (user, address) -> (failed attempts, time of the next allowed one)
        self._failed: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def start_attempt(self, user: str, address: str) -> float:
        """Starts a login attempt, or returns the seconds until the next one is allowed; 0 if it may go on.

        The attempt counts as failed until `record_success`: attempts at the same time are throttled like consecutive ones.
        """
        limits = {(user, address): self.FREE_ATTEMPTS, ("", address): 4 * self.FREE_ATTEMPTS}
        with self._lock:
            now = self._now()
            for key in limits:
                if now - self._failed.get(key, (0, now))[1] > self.MAX_SECONDS:
                    del self._failed[key]
            wait = max(self._failed.get(key, (0, now))[1] - now for key in limits)
            if wait > 0:
                return wait
            for key, free in limits.items():
                attempts = self._failed.pop(key, (0, 0.0))[0] + 1
                self._failed[key] = (attempts, now + self._delay(attempts - free))
            while len(self._failed) > self._MAX_KEYS:
                self._failed.popitem(last=False)
            return 0.0

    def _delay(self, beyond_free: int) -> float:
        if beyond_free < 0:
            return 0.0
        return min(self.MAX_SECONDS, self.FIRST_SECONDS * 2 ** min(beyond_free, 20))

    def record_success(self, user: str, address: str) -> None:
        """Forgets the failed attempts of a user at an address, and this attempt of the address."""
        with self._lock:
            self._failed.pop((user, address), None)
            attempts, until = self._failed.get(("", address), (0, 0.0))
            if attempts:
                self._failed["", address] = (attempts - 1, until)


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    # NFKC: keyboards and systems send the same letter in several ways.
    secret = unicodedata.normalize("NFKC", password).encode()
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def prompt_password(name: str) -> str:
    """Prompts twice for a password at a terminal; reads the first line of piped input otherwise.

    Raises:
        AccountError: the two passwords differ.
    """
    import getpass
    import sys

    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass(f"Password for {name}: ")
    if getpass.getpass("Once more: ") != first:
        raise AccountError("the two passwords differ; start again")
    return first
