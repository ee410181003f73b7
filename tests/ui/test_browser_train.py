"""The Train tab in a real browser: checks, failures, a training through reloads and the end of its server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import INK
from tests.ui.conftest import BROWSER, Started, served
from trainer.runs import events

pytestmark = BROWSER
PATIENCE = 90_000  # ms: the machine may be busy
# A training that starts quickly and takes an hour.
LONG = {
    "steps": 5000,
    "resolution": 64,
    "batch": 1,
    "sample_steps": 1,
    "sample_every": 5000,
    "network": "lora",
    "checkpoint_every": 5000,
}


def write_settings(project: Path, **settings: Any) -> None:
    """Saves fields of the form, as the page does."""
    (project / ".impasto").mkdir(exist_ok=True)
    (project / ".impasto" / "settings.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("started")
    datasets = home / "datasets"
    shutil.copytree(INK, datasets / "ink")
    write_settings(datasets / "ink", name="ink", trigger="inkzz", pace="quick", advanced=LONG)
    (datasets / "two").mkdir()
    (datasets / "damaged").mkdir()
    for number in range(3):
        picture = datasets / "damaged" / f"{number}.png"
        Image.effect_noise((200, 200), 50).save(picture)
        picture.write_bytes(picture.read_bytes()[:3000])  # the header is whole
        (datasets / "damaged" / f"{number}.txt").write_text("a noise\n")
    for number in range(2):
        Image.new("RGB", (200, 200), "red").save(datasets / "two" / f"{number}.png")
    with served(home) as studio:
        yield studio
    for config in (home / "outputs").glob("*/config.toml"):  # a test that failed may have left a training
        events.append(config.parent / "commands.jsonl", "stop")


@pytest.fixture
def opened(browser: Any, started: Started):
    """Opens the Train tab of a project in a browser context of its own, which is closed at the end."""
    contexts = []

    def opened(project: str) -> Any:
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{started.address}/?project={project}&tab=train")
        page.locator("#train").wait_for()
        page.wait_for_function(
            f"document.querySelector('#name textarea, #name input')?.value === '{project}'"
        )
        return page

    yield opened
    for context in contexts:
        context.close()


def status_text(page: Any) -> str:
    return page.locator("#status [role=status]").inner_text()


def until(page: Any, pattern: str) -> str:
    page.wait_for_function(f"/{pattern}/.test((document.querySelector('#status')?.innerText || ''))")
    return status_text(page)


def step(page: Any) -> int:
    found = re.search(
        r"step (\d+) of 5000 \(\d+%\), (?:about \S+ \S+ left|time left)",
        until(page, "step [0-9]+ of 5000 .*left"),
    )
    assert found, status_text(page)
    return int(found[1])


def kill_server(started: Started) -> int:
    """Kills the server as the system would, and returns its port."""
    os.kill(
        json.loads((started.home / "outputs" / ".cache" / "server" / "owner.json").read_text())["pid"],
        signal.SIGKILL,
    )
    return int(started.address.rsplit(":", 1)[1])


def test_too_few_pictures_are_reported_with_the_number_that_is_needed(started: Started, opened):
    page = opened("two")
    page.locator("#train").click()
    page.wait_for_function("document.activeElement.getAttribute('role') === 'alert'")
    assert "at least 3" in page.locator("#train-told [role=alert]").inner_text()
    assert not list((started.home / "outputs").glob("*/config.toml"))


def test_a_failure_is_shown_with_its_cause_and_loses_nothing(started: Started, opened):
    page = opened("damaged")
    page.locator("#trigger textarea, #trigger input").fill("noizz")
    page.locator("#train").click()
    alert = page.locator("#status [role=alert]")
    alert.wait_for()
    page.wait_for_function("document.querySelector('#train')?.disabled === false")
    text = alert.inner_text()
    assert "can’t be used" in text
    assert "remove it or save it again" in text
    assert str(started.home) not in page.content()
    assert "Traceback" not in page.content()
    page.reload()
    page.wait_for_function("document.querySelector('#trigger textarea, #trigger input')?.value === 'noizz'")
    assert (started.home / "datasets" / "damaged" / "0.txt").read_text() == "a noise\n"


def test_a_training_is_shown_through_a_reload_a_second_window_and_the_end_of_the_server(
    started: Started, opened
):
    page = opened("ink")
    page.wait_for_function(
        "/5000 steps · about .* GB memory · .* MB file/.test(document.querySelector('#estimate')?.innerText)"
    )
    page.locator("#train").click()
    page.locator("#stop").wait_for()
    assert page.locator("#train").is_disabled()
    before = step(page)
    for tab in ("artwork", "captions", "try_it", "library", "train"):
        page.locator(f"#tab-{tab}-button").click()
        assert page.locator("#status [role=status]").is_visible()
        assert page.locator("#status progress").get_attribute("aria-label")

    page.reload()
    page.locator("#stop").wait_for()  # on the same tab
    assert "project=ink" in page.url
    assert "tab=train" in page.url
    page.wait_for_function("document.querySelector('#trigger textarea, #trigger input')?.value === 'inkzz'")
    assert step(page) >= before
    pictures = page.locator("#samples figure")
    pictures.first.wait_for()
    assert "Your picture" in pictures.first.inner_text()
    assert "step 0, seed 0" in page.locator("#samples figure.sample").first.inner_text()

    other = opened("ink")
    other.locator("#stop").wait_for()
    assert other.locator("#train").is_disabled()
    other.locator("#tab-captions-button").click()
    other.locator("#caption-list textarea.caption").first.click()
    other.keyboard.type("half a thought, ")
    writing = other.evaluate("[document.activeElement.dataset.place, document.activeElement.value]")

    with served(started.home, port=kill_server(started)):
        before = step(page)
        shown = "/step ([0-9]+) of/.exec(document.querySelector('#status')?.innerText)?.[1]"
        page.wait_for_function(f"Number({shown}) > {before}")
        assert [path.parent.name for path in (started.home / "outputs").glob("ink*/config.toml")] == ["ink"]
        page.locator("#stop").click()
        until(page, "Stopped at step [0-9]+ of 5000")
        assert list((started.home / "outputs" / "ink" / "checkpoints").glob("step-*"))
        page.wait_for_function("!document.querySelector('#train').disabled")
        page.locator("#continue").click()
        page.locator("#stop").wait_for()
        reached = step(page)
        page.route("**/gradio_api/**", lambda route: route.abort())  # Stop works without Gradio's connection
        page.locator("#stop").click()
        until(page, "Stopped at step")
        page.unroute("**/gradio_api/**")
        assert reached > before
        # Text that was being typed in the other window is still there, also if Gradio has reloaded that page.
        place, text = writing
        other.wait_for_function(
            f"document.activeElement.dataset.place === {place!r} && document.activeElement.value === {text!r}"
        )
        until(other, "Stopped at step")
