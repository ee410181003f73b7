"""All steps of an artist in a real browser: upload, train, reload, compare, generate, download."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image, ImageDraw
from safetensors import safe_open

from tests.ui.conftest import BROWSER

pytestmark = BROWSER
DISCS = 60  # pictures: the training must still run when the page has been reloaded and Stop is pressed


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


def test_an_artist_trains_and_downloads_a_lora(studio, browser, tmp_path: Path):
    address, home, terminal = studio
    page = browser.new_context(accept_downloads=True).new_page()
    page.set_default_timeout(120_000)  # the machine may be busy
    foreign, errors = [], []
    page.on(
        "request",
        lambda r: foreign.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None,
    )
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(address)
    page.wait_for_selector("#cards .picture")
    assert page.locator("#cards .picture").count() == 24

    page.locator("#new-name input, #new-name textarea").fill("discs")
    page.locator("#create").click()
    page.wait_for_function("document.querySelector('#project input').value === 'discs'")
    page.locator("#upload input[type=file]").first.set_input_files(
        [str(p) for p in drawings(tmp_path / "art")]
    )
    page.wait_for_function(f"document.querySelectorAll('#cards .picture').length === {DISCS}")
    page.wait_for_function("document.querySelector('#left-out').innerText.includes('broken.png')")
    page.locator("#tab-captions-button").click()
    field = page.locator('#caption-list textarea[data-place="discs/disc1.png"]')
    field.fill("a <b>disc</b>")
    field.blur()
    item = page.locator("#caption-list li").filter(has=page.locator('textarea[data-place="discs/disc1.png"]'))
    item.locator(".saved").get_by_text("Saved", exact=True).wait_for()
    assert (home / "datasets" / "discs" / "disc1.txt").read_text() == "a <b>disc</b>\n"

    page.locator("#tab-train-button").click()
    page.locator("#name input, #name textarea").fill("discs")
    page.locator("#trigger input, #trigger textarea").fill("inkdisc")
    page.locator("#advanced button").first.click()
    page.locator("#form summary", has_text="Samples and files").click()
    page.locator("#set-sample_steps").fill("2")
    page.locator("#train").click()
    page.wait_for_function("(document.querySelector('#status')?.innerText || '').match(/step [0-9]+ of/)")

    page.reload()
    page.wait_for_function("(document.querySelector('#status')?.innerText || '').match(/step [0-9]+ of/)")
    page.locator("#stop").click()
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped at step')")
    page.locator("#tab-try_it-button").click()
    page.wait_for_selector("#strip .tryout")

    slider = page.locator("#strip input[type=range]")
    pictures = page.locator("#strip img")
    before = pictures.first.get_attribute("src")
    slider.focus()
    page.keyboard.press("Home")
    assert "p00_s0.00.png" in (pictures.first.get_attribute("src") or "")
    assert before != pictures.first.get_attribute("src")
    assert slider.get_attribute("aria-valuetext") == "0: base model without the LoRA"
    page.wait_for_function(
        "[...document.querySelectorAll('#strip img')].every(i => i.complete && i.naturalWidth === 128)"
    )

    page.locator("#prompt input, #prompt textarea").fill("a cat")
    page.locator("#steps input").fill("3")
    page.locator("#draw").click()
    page.wait_for_selector("#own .tryout", timeout=120_000)
    with page.expect_download() as downloading:
        page.locator("#download a").click()
    file = tmp_path / "got.safetensors"
    downloading.value.save_as(file)
    assert re.fullmatch(r"discs-\d+\.safetensors", downloading.value.suggested_filename)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["modelspec.trigger_phrase"] == "inkdisc"
    # The value of a field that was left by pressing Train is used.
    assert any(
        "sample_steps = 2\n" in config.read_text() for config in (home / "outputs").glob("discs*/config.toml")
    )
    assert not foreign
    assert not errors
    assert address in terminal.read_text()


def test_the_page_fits_a_phone(studio, browser):
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(studio[0])
    page.wait_for_selector("#cards .picture")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_wrong_input_is_reported_on_the_page(studio, browser):
    page = browser.new_context().new_page()
    page.set_default_timeout(120_000)  # the machine may be busy
    page.goto(studio[0])
    page.locator("#tab-train-button").click()
    page.wait_for_function("document.querySelector('#name input, #name textarea')?.value")
    page.locator("#name input, #name textarea").fill("a/b")
    page.locator("#train").click()
    page.wait_for_function("document.body.innerText.includes('name must be a file name')", timeout=60_000)
    assert str(studio[1]) not in page.content()
    assert "Traceback" not in page.content()
