"""The studio as a user starts it, and a browser to look at it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.served import CHROMIUM, Started, chromium, served
from tests.conftest import INK
from trainer.runs import events

# On test modules that open a page: `pytestmark = BROWSER`.
BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"), reason="browser tests need a Chromium on the PATH"
    ),
]


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


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """A test that failed tells what its pages showed."""
    report = (yield).get_result()
    opened = getattr(item, "funcargs", {}).get("browser")
    if report.failed and opened is not None:
        for page in (page for context in opened.contexts for page in context.pages):
            with contextlib.suppress(Exception):  # a page that is stuck tells nothing
                report.sections.append(
                    (f"page at {page.url}", page.locator("body").inner_text(timeout=5000)[:5000])
                )


@pytest.fixture(scope="module")  # Playwright holds the thread's event loop as long as it lives
def browser():
    with chromium() as opened:
        yield opened
