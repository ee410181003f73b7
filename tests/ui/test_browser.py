"""The artist's whole way in a real browser: drop, train, reload, slide, draw, download."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open

from tests.conftest import INK, ROOT

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="browser tests need a Chromium on the PATH"),
]
DISCS = 60  # a training of minutes: it must still go on when the page has been reloaded and Stop is pressed
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory):
    """The studio as a user starts it: (address, its home, its terminal)."""
    home = tmp_path_factory.mktemp("studio")
    shutil.copytree(INK, home / "datasets" / "ink-emoji")
    with socket.socket() as probe:  # a port that is free now
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-u",
        "app.py",
        "--port",
        str(port),
        "--datasets",
        str(home / "datasets"),
        "--outputs",
        str(home / "outputs"),
    ]
    with (home / "terminal.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/healthz", timeout=1)
            break
        except OSError:
            time.sleep(0.1)
    yield address, home, home / "terminal.log"
    server.terminate()
    server.wait(timeout=20)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def drawings(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = []
    for number in range(DISCS):
        picture = Image.new("RGB", (160, 160), "white")
        ImageDraw.Draw(picture).ellipse((20 + number, 30, 120, 130), fill="black")
        paths.append(folder / f"disc{number}.png")
        picture.save(paths[-1])
    (folder / "disc0.txt").write_text("a black disc")
    (folder / "broken.png").write_text("no picture")
    return [*paths, folder / "disc0.txt", folder / "broken.png"]


def test_an_artist_goes_the_whole_way(studio, browser, tmp_path: Path):
    address, home, terminal = studio
    page = browser.new_context(accept_downloads=True).new_page()
    page.set_default_timeout(120_000)  # a busy machine is not a fault
    foreign, faults = [], []
    page.on("request", lambda r: foreign.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None)
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.goto(address)
    page.wait_for_selector("#cards .card")
    assert page.locator("#cards .card").count() == 24

    page.locator("#new-name input, #new-name textarea").fill("discs")
    page.locator("#upload input[type=file]").first.set_input_files([str(p) for p in drawings(tmp_path / "art")])
    page.wait_for_selector('#cards textarea[data-place="discs/disc0.png"]')
    assert page.locator("#cards .card").count() == DISCS
    assert "broken.png" in page.locator("#left-out").inner_text()
    field = page.locator('#cards textarea[data-place="discs/disc1.png"]')
    field.fill("a <b>disc</b>")
    field.blur()
    page.wait_for_function(
        "document.querySelector('#cards textarea[data-place=\"discs/disc1.png\"]').parentElement.querySelector('.saved').textContent === 'Saved'"
    )
    assert (home / "datasets" / "discs" / "disc1.txt").read_text() == "a <b>disc</b>\n"

    page.locator("#name input, #name textarea").fill("discs")
    page.locator("#trigger input, #trigger textarea").fill("inkdisc")
    page.locator("#train").click()
    page.wait_for_function("document.querySelector('#status').innerText.match(/step [0-9]+ of/)", timeout=120_000)

    page.reload()
    page.wait_for_function("document.querySelector('#status').innerText.match(/step [0-9]+ of/)", timeout=90_000)
    page.locator("#stop").click()
    page.wait_for_selector("#strip .tryout", timeout=120_000)
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped at step')", timeout=60_000)

    slider = page.locator("#strip input[type=range]")
    pictures = page.locator("#strip img")
    before = pictures.first.get_attribute("src")
    slider.focus()
    page.keyboard.press("Home")
    assert "p00_s0.00.png" in (pictures.first.get_attribute("src") or "") and before != pictures.first.get_attribute("src")
    assert slider.get_attribute("aria-valuetext") == "0: the base model"
    page.wait_for_function("[...document.querySelectorAll('#strip img')].every(i => i.complete && i.naturalWidth === 128)")

    page.locator("#prompt input, #prompt textarea").fill("a cat")
    page.locator("#draw").click()
    page.wait_for_selector("#own .tryout", timeout=120_000)
    with page.expect_download() as downloading:
        page.locator("#download a").click()
    file = tmp_path / "got.safetensors"
    downloading.value.save_as(file)
    assert downloading.value.suggested_filename == "discs.safetensors"
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["modelspec.trigger_phrase"] == "inkdisc"
    assert not foreign and not faults
    assert address in terminal.read_text()


def test_the_page_fits_a_phone(studio, browser):
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(studio[0])
    page.wait_for_selector("#cards .card")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_wrong_input_is_told_on_the_page(studio, browser):
    page = browser.new_context().new_page()
    page.goto(studio[0])
    page.wait_for_selector("#cards .card")
    page.locator("#name input, #name textarea").fill("a/b")
    page.locator("#train").click()
    page.wait_for_function("document.body.innerText.includes('name must be a file name')", timeout=60_000)
    assert str(studio[1]) not in page.content() and "Traceback" not in page.content()
