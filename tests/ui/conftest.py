"""The studio as a user starts it, and a browser to look at it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import INK, ROOT
from trainer import events

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
# On test modules that open a page: `pytestmark = BROWSER`.
BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="browser tests need a Chromium on the PATH"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Started(NamedTuple):
    address: str
    home: Path  # with datasets/ and outputs/
    terminal: Path  # what the studio said


@contextmanager
def served(home: Path, *flags: str) -> Iterator[Started]:
    """`python app.py` on folders of its own and a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = ["--datasets", str(home / "datasets"), "--outputs", str(home / "outputs")]
    with (home / "terminal.log").open("wb") as log:
        command = [sys.executable, "-u", "app.py", "--port", str(port), *folders, *flags]
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if server.poll() is not None:
            raise AssertionError((home / "terminal.log").read_text())
        try:
            urllib.request.urlopen(f"{address}/healthz", timeout=1)
            break
        except OSError:
            time.sleep(0.1)
    try:
        yield Started(address, home, home / "terminal.log")
    finally:
        server.terminate()
        server.wait(timeout=20)


def sample_home(home: Path) -> Path:
    """A home with the sample set in `datasets/`."""
    shutil.copytree(INK, home / "datasets" / "ink-emoji")
    return home


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A studio with the sample set and no trainings; the test module's own."""
    home = sample_home(tmp_path_factory.mktemp("studio"))
    with served(home) as started:
        yield started


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ink_run: Path) -> Iterator[Started]:
    """A studio with the sample set and one training of it that has ended, “ink”; the test module's own."""
    home = sample_home(tmp_path_factory.mktemp("ready"))
    shutil.copytree(ink_run, home / "outputs" / "ink")
    (home / "outputs" / "ink" / "project.json").write_text('{"project": "ink-emoji"}')
    with served(home) as started:
        yield started
    drawing = home / "outputs" / ".drawing"
    if drawing.is_dir():  # its warm process would wait for more
        events.append(drawing / "commands.jsonl", "stop")


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()
