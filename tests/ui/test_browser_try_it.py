"""Try it in a real browser: strengths by keyboard, before and after, own prompts, choice of a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open

from tests.ui.conftest import BROWSER, Started

pytestmark = BROWSER


def opened(browser, address: str):
    page = browser.new_context(accept_downloads=True).new_page()
    page.set_default_timeout(120_000)  # the machine may be busy
    page.goto(f"{address}/?tab=try_it")
    page.get_by_role("tab", name="Try it").click()
    page.wait_for_selector("#strip .tryout")
    return page


def test_strengths_prompts_and_checkpoints_are_compared_and_one_is_chosen(ready: Started, browser):
    page = opened(browser, ready.address)
    slider, first = page.locator("#strip input[type=range]"), page.locator("#strip .strip img").first
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "0: base model without the LoRA"
    assert "p00_s0.00.png" in first.get_attribute("src")
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "Strength 0.25"
    assert "p00_s0.25.png" in first.get_attribute("src")
    # The next image is preloaded, so that the slider needs no request.
    page.wait_for_function(
        "performance.getEntriesByType('resource').filter(e => e.name.includes('p00_s0.75.png')).length > 0"
    )

    # Before and after, by keyboard alone.
    page.get_by_role("button", name="Before and after").press("Enter")
    reveal = page.locator("#compare .reveal")
    reveal.focus()
    page.keyboard.press("End")
    assert reveal.get_attribute("aria-valuetext") == "100%"
    assert (
        page.evaluate(
            "getComputedStyle(document.querySelector('#compare .compare')).getPropertyValue('--reveal')"
        )
        == "100%"
    )
    page.locator("#compare select.after").select_option("2")
    assert "p00_s0.50.png" in page.locator("#compare .over").get_attribute("src")

    # Own prompts: progress, then a strip.
    page.locator("#prompt textarea").fill("a cat\na house")
    page.locator("#steps input").fill("3")
    page.locator("#draw").click()
    page.wait_for_selector("#own .tryout")
    assert page.locator("#own .strip img").count() == 2
    page.wait_for_function(
        "[...document.querySelectorAll('#own .strip img')].every(i => i.complete && i.naturalWidth === 128)"
    )
    page.reload()  # shows the generated images again
    page.get_by_role("tab", name="Try it").click()
    page.wait_for_selector("#own .tryout")

    # A grid of checkpoints, one of which is chosen.
    page.get_by_role("button", name="Compare checkpoints").click()
    page.locator("#steps input").fill("2")
    page.locator("#prompt textarea").fill("a cat")
    page.locator("#draw-grid").click()
    page.wait_for_selector("#grid table")
    page.locator('#grid button[data-step="10"][data-strength="0.75"]').press("Enter")
    page.wait_for_selector('#grid button[data-step="10"][data-strength="0.75"][aria-pressed="true"]')
    page.wait_for_function("document.querySelector('#download a').innerText.includes('ink-10.safetensors')")
    with page.expect_download() as downloading:
        page.locator("#download a").click()
    assert downloading.value.suggested_filename == "ink-10.safetensors"
    with safe_open(downloading.value.path(), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.lora_default_weight"] == "0.75"
    assert metadata["modelspec.trigger_phrase"] == "ink"
    assert metadata["ss_steps"] == "10"
    page.context.close()


def test_a_finished_training_appears_although_no_other_tab_was_shown(studio: Started, browser, ink_run: Path):
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    with page.expect_response(lambda response: "/pulse" in response.url):
        page.goto(f"{studio.address}/?tab=try_it")
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    page.wait_for_timeout(2000)  # more than a poll
    assert not page.locator("#strip .tryout").count()
    assert not page.locator(".toast-body").count()
    shutil.copytree(ink_run, studio.home / "outputs" / ".coming" / "ink")
    (studio.home / "outputs" / ".coming" / "ink" / "project.json").write_text('{"project": "ink-emoji"}')
    (studio.home / "outputs" / ".coming" / "ink").rename(studio.home / "outputs" / "ink")
    page.wait_for_selector("#strip .tryout")
    page.context.close()
