"""The Library in a real browser: file details, import and deletion."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.ui.conftest import BROWSER, Started
from trainer.headers.lora import recognise

pytestmark = BROWSER


def test_a_lora_is_labelled_imported_and_deleted(ready: Started, browser, ink_run: Path, tmp_path: Path):
    page = browser.new_context(accept_downloads=True).new_page()
    page.set_default_timeout(120_000)
    page.goto(ready.address)
    page.get_by_role("tab", name="Library").click()
    page.wait_for_selector("#shelf .lora")

    page.get_by_role("button", name="File details").click()
    page.wait_for_function(
        "document.querySelector('#label-trigger textarea, #label-trigger input')?.value === 'ink'"
    )
    page.locator("#label-title textarea, #label-title input").fill("Ink <img src=x onerror=alert(1)>")
    page.locator("#label-licence textarea, #label-licence input").fill("CC0-1.0")
    page.locator("#label-weight input").fill("0.8")
    page.locator("#label-own-work input").check()
    page.locator("#save-label").click()
    page.wait_for_function(
        "document.querySelector('#shelf')?.innerText.includes('Ink <img src=x onerror=alert(1)>')"
    )
    metadata = recognise(ready.home / "outputs" / "ink" / "ink.safetensors").metadata
    assert metadata["modelspec.license"] == "CC0-1.0"
    assert metadata["modelspec.lora_default_weight"] == "0.8"
    assert metadata["impasto.own_work"] == "true"

    # A LoRA file is imported; a file of another kind is rejected.
    shutil.copyfile(ink_run / "ink.safetensors", tmp_path / "brush.safetensors")
    (tmp_path / "evil.safetensors").write_bytes(b"\x80\x04" + b"cos\nsystem\n" * 50)
    page.locator("#import input[type=file]").first.set_input_files(
        [str(tmp_path / "brush.safetensors"), str(tmp_path / "evil.safetensors")]
    )
    page.wait_for_selector("#library-told [role=alert]")
    assert "pickle" in page.locator("#library-told [role=alert]").inner_text()
    assert str(ready.home) not in page.content()
    page.wait_for_function("document.querySelectorAll('#shelf .lora').length === 2")

    # Deletion needs a confirmation and leaves no file.
    page.locator("#lora input").click()
    page.get_by_role("option", name="brush").click()
    page.locator("#delete-lora-box > button").click()
    page.locator("#delete-lora").click()
    page.wait_for_selector("#delete-lora-question [role=alert]")
    page.locator("#delete-lora-keep").click()
    page.wait_for_selector("#delete-lora-sure", state="hidden")
    assert (ready.home / "outputs" / ".library" / "brush").is_dir()
    page.locator("#delete-lora").click()
    page.locator("#delete-lora-sure").click()
    page.wait_for_function("document.querySelectorAll('#shelf .lora').length === 1")
    assert not list((ready.home / "outputs").rglob("brush*"))
    page.context.close()
