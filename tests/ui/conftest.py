"""Fixtures of the page's tests: a running server, and a browser."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI

from benchmarks.served import CHROMIUM, Started, chromium, served
from tests.conftest import INK
from trainer.runs import events
from ui.guard import Guard

# For test modules that open a page: `pytestmark = BROWSER`.
BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"), reason="browser tests need a Chromium on the PATH"
    ),
]


def sample_home(home: Path) -> Path:
    """Copies the sample set to `datasets/` under `home`."""
    shutil.copytree(INK, home / "datasets" / "ink-emoji")
    return home


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server with the sample set and no trainings, one for each test module."""
    home = sample_home(tmp_path_factory.mktemp("studio"))
    with served(home) as started:
        yield started


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ink_run: Path) -> Iterator[Started]:
    """A server with the sample set and one finished training, “ink”, one for each test module."""
    home = sample_home(tmp_path_factory.mktemp("ready"))
    shutil.copytree(ink_run, home / "outputs" / "ink")
    (home / "outputs" / "ink" / "project.json").write_text('{"project": "ink-emoji"}')
    with served(home) as started:
        yield started
    drawing = home / "outputs" / ".drawing"
    if drawing.is_dir():  # its sampling process would wait for more requests
        events.append(drawing / "commands.jsonl", "stop")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Adds the text of all open pages to the report of a failed test."""
    report = (yield).get_result()
    opened = getattr(item, "funcargs", {}).get("browser")
    if report.failed and opened is not None:
        for page in (page for context in opened.contexts for page in context.pages):
            with contextlib.suppress(Exception):  # a page that hangs has no text
                report.sections.append(
                    (f"page at {page.url}", page.locator("body").inner_text(timeout=5000)[:5000])
                )


@pytest.fixture(scope="module")  # Playwright occupies the thread's event loop as long as it lives
def browser() -> Iterator[Any]:
    """A Chromium."""
    with chromium() as opened:
        yield opened


def routes_of(guard: Guard) -> list[Any]:
    """Routes of the application inside the guard, Gradio's page among them."""
    return cast(FastAPI, guard.app).routes
