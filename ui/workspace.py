"""The files of one artist, and the studio that serves all artists.

Every route and every Gradio callback begins with `studio.workspace_of(request)` and reaches files only through the
`Workspace` that it returns, so that no request can reach another artist's files.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from trainer.atomic_files import replacing
from trainer.errors import TrainerError
from trainer.runs.queue import Queue
from ui.access.accounts import Accounts, LoginThrottle
from ui.access.sessions import COOKIE, Sessions
from ui.store.intake import Intake
from ui.store.limits import GB, Limits, size_bytes
from ui.store.picture_checks import PictureChecks
from ui.store.projects import SAMPLES, Projects
from ui.store.runs import Runs
from ui.store.uploads import MAX_AGE_SECONDS, UploadedFiles
from ui.text import Words, preferred

USER = "impasto.user"  # key of the ASGI scope under which the guard stores the user


@dataclass(frozen=True)
class Workspace:
    """One artist's projects and runs, and the language of one browser."""

    projects: Projects
    intake: Intake
    checks: PictureChecks
    runs: Runs
    uploads: UploadedFiles
    limits: Limits
    words: Words = dataclasses.field(default_factory=Words)
    user: str = ""  # "" if the studio has no accounts

    @classmethod
    def open(
        cls,
        datasets: Path,
        outputs: Path,
        models: Path,
        *,
        limits: Limits,
        uploads: UploadedFiles,
        queue: Queue | None = None,
        user: str = "",
    ) -> Workspace:
        """Composes the workspace of one artist's folders.

        Args:
            queue: the studio's queue; without one the runs have a queue of their own.
        """
        projects = Projects(datasets, outputs / ".cache")
        intake = Intake(projects, limits)
        checks = PictureChecks(projects, intake.is_busy)
        return cls(projects, intake, checks, Runs(outputs, models, queue), uploads, limits, user=user)

    def uploaded(self, files: Any) -> list[Path]:
        """Returns the paths of the files in a `gr.File` value with `preprocess=False`; the caller removes each file.

        Raises:
            TrainerError: a path that this user did not upload. A browser can send any path.
        """
        return self.uploads.resolve(self.user, files)


class Studio:
    """The served folders and the users who may access them.

    Without accounts everything under `datasets` and `outputs` belongs to one artist. With a file of `users` each user has
    separate folders, `datasets/_users/ana/` and `outputs/_users/ana/`, which start with a copy of the sample set.
    """

    def __init__(
        self,
        datasets: Path,
        outputs: Path,
        models: Path,
        limits: Limits | None = None,
        users: Path | None = None,
        root_path: str = "",
    ) -> None:
        self.datasets, self.outputs, self.models = datasets, outputs, models
        self.limits = limits or Limits()
        self.root_path = root_path  # under which a reverse proxy serves the studio, such as "/impasto"
        self.uploads = UploadedFiles(outputs / ".cache" / "uploads")
        self.accounts = Accounts(users) if users else None
        self.sessions = Sessions(outputs / ".cache" / "sessions.sqlite3") if users else None
        self.login_throttle = LoginThrottle()
        self.used_bytes = 0  # of all pictures, measured by `clean_up`
        self.queue = Queue(outputs, models)  # shared by all users
        self._lock = threading.Lock()
        self._workspaces: dict[str, Workspace] = {}
        # The page is built before anybody has logged in: with accounts from the workspace of a user that can't exist.
        self.initial = self._workspace(".nobody" if users else "")

    def workspace_of(self, request: Any) -> Workspace:
        """Returns the workspace of the user who sent a Gradio or Starlette request.

        Raises:
            TrainerError: the studio has accounts and the request has no valid session.
        """
        words = Words(preferred(request.headers.get("accept-language", "")))
        scope = getattr(request, "request", request).scope
        user = scope.get(USER) if self.accounts else ""
        if user is None or (self.accounts and not user):
            raise TrainerError(words("login.first"))
        return dataclasses.replace(self._workspace(user), words=words)

    def user_of(self, scope: Any) -> str | None:
        """Returns the user who sent a request: "" if the studio has no accounts, None without a valid session."""
        if self.accounts is None or self.sessions is None:
            return ""
        session = self.sessions.user(token_of(scope))
        if session is None:
            return None
        user, fingerprint = session
        return user if self.accounts.fingerprint(user) == fingerprint else None

    def check_free_space(self, incoming_bytes: int) -> None:
        """Counts an upload towards the studio's limit.

        Raises:
            TrainerError: it would fill the disk or exceed the limit.
        """
        self.limits.check_free_space(self.outputs, incoming_bytes)
        if self.used_bytes + incoming_bytes > self.limits.studio_bytes:
            limit = self.limits.studio_bytes / GB
            raise TrainerError(
                f"the studio's limit of {limit:g} GB of pictures is reached; remove what you no longer need"
            )
        self.used_bytes += incoming_bytes

    def clean_up(self, older_than_seconds: float = MAX_AGE_SECONDS) -> None:
        """Removes abandoned uploads and measures the size of all pictures."""
        self.uploads.remove_abandoned(older_than_seconds)
        self.used_bytes = size_bytes(self.datasets)

    def _workspace(self, user: str) -> Workspace:
        with self._lock:
            if user not in self._workspaces:
                datasets, outputs = self.datasets, self.outputs
                if user:
                    datasets, outputs = datasets / "_users" / user, outputs / "_users" / user
                if user and not user.startswith(".") and not datasets.exists():
                    _copy_samples(datasets, [self.datasets / name for name in SAMPLES])
                self._workspaces[user] = Workspace.open(
                    datasets,
                    outputs,
                    self.models,
                    limits=self.limits,
                    uploads=self.uploads,
                    queue=self.queue,
                    user=user,
                )
            return self._workspaces[user]


def token_of(scope: Any) -> str:
    """Returns the session token in a request's cookie, "" without one."""
    return Request(scope).cookies.get(COOKIE, "")


def _copy_samples(datasets: Path, samples: list[Path]) -> None:
    """Creates a new user's folder with the sample sets, completely or not at all."""
    with replacing(datasets, sync=False) as temporary:
        temporary.mkdir(parents=True)
        for sample in samples:
            if sample.is_dir():
                shutil.copytree(sample, temporary / sample.name)
