"""What one artist has on the studio's disk. Every handler and route begins with `studio.of(request)`: nobody reaches past it."""

from __future__ import annotations

import inspect
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from starlette.requests import Request

from trainer.atomic_files import replacing
from trainer.errors import TrainerError
from trainer.runs.queue import Queue
from ui.access.accounts import Accounts, Tries
from ui.access.sessions import COOKIE, Sessions
from ui.store.limits import GB, Limits, size_bytes
from ui.store.projects import SAMPLES, Projects
from ui.store.runs import Jobs
from ui.store.uploads import KEPT_SECONDS, Uploads
from ui.text import Words, preferred

_PLAIN = {str, int, float, bool, NoneType}
USER = "impasto.user"  # in an ASGI scope: who the guard found


@dataclass(frozen=True)
class Desk:
    """One artist's pictures and trainings, and the words of one browser."""

    projects: Projects
    jobs: Jobs
    words: Words
    limits: Limits
    uploads: Uploads
    user: str = ""  # "" where the studio has no accounts

    def uploaded(self, files: Any) -> list[Path]:
        """What this user's browser has just sent, as a `gr.File` with `preprocess=False` says it; the caller removes each file.

        Raises TrainerError for a path that is none of these: a browser may say any.
        """
        return self.uploads.take(self.user, files)


class Studio:
    """The folders that are served, and who may use them.

    Without accounts everything under `datasets` and `outputs` is one artist's. With a file of `users` each has folders of
    their own, `datasets/_users/ana/` and `outputs/_users/ana/`, which begin with a copy of the sample set.
    """

    def __init__(
        self,
        datasets: Path,
        outputs: Path,
        models: Path,
        limits: Limits | None = None,
        users: Path | None = None,
    ) -> None:
        self.datasets, self.outputs, self.models = datasets, outputs, models
        self.limits = limits or Limits()
        self.uploads = Uploads(outputs / ".cache" / "uploads")
        self.accounts = Accounts(users) if users else None
        self.sessions = Sessions(outputs / ".cache" / "sessions.sqlite3") if users else None
        self.tries = Tries()
        self.used_bytes = 0  # by all pictures, counted now and then
        self.queue = Queue(outputs, models)  # one line for all
        self._lock = threading.Lock()
        self._rooms: dict[str, tuple[Projects, Jobs]] = {}
        # What the page is built with, before anybody asks for it: nobody's, where there are accounts.
        self.projects, self.jobs = self._room(".nobody" if users else "")

    def of(self, request: Any) -> Desk:
        """The desk of whoever asks, by Gradio's request or Starlette's. Raises TrainerError for nobody."""
        words = Words(preferred(request.headers.get("accept-language", "")))
        scope = getattr(request, "request", request).scope
        user = scope.get(USER) if self.accounts else ""
        if user is None or (self.accounts and not user):
            raise TrainerError(words("login.first"))
        return Desk(*self._room(user), words, self.limits, self.uploads, user)

    def user_of(self, scope: Any) -> str | None:
        """Who sent a request: "" where there are no accounts, None for nobody."""
        if self.accounts is None or self.sessions is None:
            return ""
        found = self.sessions.user(token_of(scope))
        return found[0] if found and self.accounts.fingerprint(found[0]) == found[1] else None

    def check_room(self, incoming_bytes: int) -> None:
        """Raises TrainerError where an upload would fill the disk or outgrow the studio."""
        self.limits.check_room(self.outputs, incoming_bytes)
        if self.used_bytes + incoming_bytes > self.limits.studio_bytes:
            raise TrainerError(
                f"the studio holds its limit of {self.limits.studio_bytes / GB:g} GB of pictures; remove what you no longer need"
            )
        self.used_bytes += incoming_bytes

    def tidy(self, older_than_seconds: float = KEPT_SECONDS) -> None:
        """Removes uploads that were left behind, and counts what is kept."""
        self.uploads.sweep(older_than_seconds)
        self.used_bytes = size_bytes(self.datasets)

    def _room(self, user: str) -> tuple[Projects, Jobs]:
        with self._lock:
            if user not in self._rooms:
                datasets, outputs = (
                    place / "_users" / user if user else place for place in (self.datasets, self.outputs)
                )
                if user and not user.startswith(".") and not datasets.exists():
                    _furnish(datasets, [self.datasets / name for name in SAMPLES])
                self._rooms[user] = (
                    Projects(datasets, outputs / ".cache"),
                    Jobs(outputs, self.models, self.queue),
                )
            return self._rooms[user]


def token_of(scope: Any) -> str:
    """What the browser that sent a request holds of its session."""
    return Request(scope).cookies.get(COOKIE, "")


def _furnish(datasets: Path, samples: list[Path]) -> None:
    """A new user's folder, whole or not at all."""
    with replacing(datasets, sync=False) as temporary:
        temporary.mkdir(parents=True)
        for sample in samples:
            if sample.is_dir():
                shutil.copytree(sample, temporary / sample.name)


def handler(studio: Studio, callback: Callable[..., Any]) -> Callable[..., Any]:
    """`callback(desk, *values)` as Gradio calls it: a TrainerError becomes a message on the page, anything else a plain word.

    Anybody can send anything instead of what a component holds: a value that is not of the kind that the callback's hints
    name, or that a component of words can hold, is refused before the callback sees it.
    """
    import gradio as gr

    kinds, worded = _kinds(callback), (gr.Dropdown, gr.Radio, gr.Textbox)

    def is_of_its_kind(value: Any, kind: tuple[type, ...] | None) -> bool:
        if kind is None and isinstance(value, dict):  # of components
            return all(
                said is None or isinstance(said, str)
                for part, said in value.items()
                if isinstance(part, worded)
            )
        return kind is None or isinstance(value, kind)

    def handle(request: gr.Request, *values: Any) -> Any:
        desk = studio.of(request)
        try:
            if not all(map(is_of_its_kind, values, kinds)):
                raise TrainerError(desk.words("refused.no_call"))
            return callback(desk, *values)
        except TrainerError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None
        except Exception:
            logging.exception("the page's %s failed", callback.__name__)
            raise gr.Error(desk.words("page.failed"), duration=None, print_exception=False) from None

    handle.__annotations__["request"] = gr.Request
    handle.__name__ = callback.__name__.strip("_<>")
    return handle


def _kinds(callback: Callable[..., Any]) -> list[tuple[type, ...] | None]:
    """What each value after the desk may be, by the callback's hints; None where these name more than plain kinds."""
    hints = get_type_hints(callback)
    wanted = [hints.get(name, Any) for name in list(inspect.signature(callback).parameters)[1:]]
    told = [get_args(hint) if isinstance(hint, UnionType) else (hint,) for hint in wanted]
    return [kinds if set(kinds) <= _PLAIN else None for kinds in told]
