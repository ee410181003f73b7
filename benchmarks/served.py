"""A running studio and a headless browser, for tests and benchmarks."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import ROOT

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Started(NamedTuple):
    """A running studio."""

    address: str
    home: Path  # with datasets/ and outputs/
    terminal: Path  # output of the studio


@contextmanager
def served(home: Path, *flags: str, port: int | None = None) -> Iterator[Started]:
    """Runs `python app.py` with its own folders on a free port, and terminates it at the end of the block.

    Raises AssertionError with the output if the server exits by itself.
    """
    port = port or free_port()
    folders = ["--datasets", str(home / "datasets"), "--outputs", str(home / "outputs")]
    with (home / "terminal.log").open("ab") as log:
        command = [sys.executable, "-u", "app.py", "--port", str(port), *folders, *flags]
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, server, home / "terminal.log")
        yield Started(address, home, home / "terminal.log")
    finally:
        server.terminate()
        server.wait(timeout=30)


@contextmanager
def chromium() -> Iterator[Any]:
    """Opens the Chromium on the PATH with Playwright and closes it at the end of the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield opened
        opened.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        if server.poll() is not None:
            raise AssertionError(log.read_text())
        try:
            urllib.request.urlopen(f"{address}/healthz", timeout=1)
            return
        except OSError:
            time.sleep(0.05)
