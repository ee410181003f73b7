"""Artwork and Captions in a real browser: upload, checks, crop, mask, captions, edits, undo, deletion."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import INK
from tests.ui.conftest import BROWSER, Started

pytestmark = BROWSER


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files to upload: pictures, a zip with one more, captions, and three files that must be rejected."""
    place = tmp_path_factory.mktemp("drop")
    for number, name in enumerate(("bell", "owl", "star", "key")):
        Image.open(INK / f"{name}.png").convert("RGB").resize((280, 260 + number)).save(place / f"{name}.png")
    Image.new("RGB", (900, 100), "navy").save(place / "banner.png")
    (place / "owl.txt").write_text("inkart owl, bird")
    (place / "broken.png").write_text("no picture")
    (place / "notes.pdf").write_text("no picture")
    with zipfile.ZipFile(place / "more.zip", "w") as archive:
        archive.write(INK / "house.png", "art/house.png")
        archive.writestr("art/house.txt", 'a <img src=x onerror="document.title=1"> house')
        archive.writestr("../evil.png", "x")
    return sorted(place.iterdir())


@pytest.fixture(scope="module")
def page(studio: Started, browser: Any, drop: list[Path]) -> Iterator[Any]:
    opened = browser.new_context().new_page()
    opened.set_default_timeout(120_000)  # the machine may be busy
    opened.goto(studio.address)
    opened.wait_for_selector("#cards .picture")
    opened.locator("#upload input[type=file]").first.set_input_files([str(path) for path in drop])
    yield opened
    opened.close()


@pytest.fixture
def waits(page: Any) -> Callable[[str], None]:
    return lambda claim: page.wait_for_function(f"() => {claim}")


def has_caption(text: str) -> str:
    """Returns a claim for `waits`: some field contains exactly this text."""
    return f"[...document.querySelectorAll('#caption-list textarea')].some((e) => e.value === {text!r})"


def project(studio: Started) -> Path:
    return studio.home / "datasets" / "my-pictures"


def test_a_drop_becomes_cards_and_each_rejected_file_is_named(page: Any, studio: Started, waits):
    waits("document.querySelectorAll('#cards .picture').length === 6")
    waits("document.querySelector('#left-out')?.innerText.includes('6 pictures added')")
    alert = page.locator("#left-out [role=alert]").inner_text()
    assert all(name in alert for name in ("broken.png", "notes.pdf", "evil.png"))
    image = page.locator("#cards .picture img").first
    assert image.get_attribute("alt")
    assert image.get_attribute("width")
    assert image.get_attribute("height")
    assert len(page.request.get(image.evaluate("element => element.src")).body()) <= 60_000
    house = page.locator('#cards li[data-name="house.png"] .words')
    assert "<img src=x" in house.inner_text()
    assert page.title() != "1"
    assert not list((studio.home / "outputs" / ".cache" / "uploads").rglob("*.png"))


def test_the_checks_show_their_findings_before_any_training(page: Any, waits):
    waits("document.querySelector('#doctor .findings')")
    waits("document.querySelector('#doctor')?.innerText.includes('are few for a')")
    assert "Heavily cropped" in page.locator("#doctor").inner_text()
    assert page.locator('#cards li[data-name="banner.png"] .faults').count() == 1


def test_the_crop_moves_by_keys_and_by_pointer_and_is_saved(page: Any, studio: Started, waits):
    crop = page.locator('#cards li[data-name="banner.png"] svg.crop')
    crop.focus()
    page.keyboard.press("Home")
    assert crop.get_attribute("aria-valuenow") == "0"
    assert crop.get_attribute("role") == "slider"
    box = crop.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.wait_for_selector('#cards li[data-name="banner.png"] [aria-valuenow="100"]')
    waits("document.querySelector('#cards li[data-name=\"banner.png\"] .message').innerText === 'Saved'")
    saved = None
    for _ in range(200):
        saved = json.loads((project(studio) / ".impasto" / "pictures.json").read_text())["banner.png"]["crop"]
        if saved == [1, 0.5]:
            break
        page.wait_for_timeout(50)
    assert saved == [1, 0.5]


def test_a_mask_is_made_by_keyboard_alone(page: Any, studio: Started, waits):
    page.locator('#cards li[data-name="bell.png"] button.mask').focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#mask-dialog[open]")
    page.locator("#mask-dialog .mask-width").fill("50")
    page.locator("#mask-dialog [data-do=box]").press("Enter")
    page.locator("#mask-dialog [data-do=save]").press("Enter")
    page.wait_for_selector('#cards li[data-name="bell.png"] .masked')
    mask = Image.open(project(studio) / "masks" / "bell.png")
    assert mask.mode == "L"
    assert mask.size == (280, 260)
    assert mask.getpixel((70, 130)) == 0
    assert mask.getpixel((210, 130)) == 255


def test_removed_pictures_come_back_with_their_captions(page: Any, studio: Started, waits):
    page.locator('#cards li[data-name="owl.png"] button.remove').click()
    page.wait_for_selector("#removed summary")
    waits("!document.querySelector('#cards li[data-name=\"owl.png\"]')")
    assert not (project(studio) / "owl.png").exists()
    page.locator("#removed summary").click()
    page.locator("#removed button.restore").click()
    page.wait_for_selector('#cards li[data-name="owl.png"]')
    assert (project(studio) / "owl.txt").read_text() == "inkart owl, bird\n"


def test_a_page_that_nobody_touches_sends_few_requests(page: Any):
    """Refreshes end, also those that were triggered while others ran."""
    requests = []
    page.reload()
    page.wait_for_selector("#cards .picture")
    page.evaluate("for (let i = 0; i < 3; i++) document.querySelector('#refresh-made').click()")
    page.wait_for_timeout(5000)
    page.on(
        "request", lambda request: requests.append(request.url) if "/gradio_api/run" in request.url else None
    )
    page.wait_for_timeout(4000)
    assert len(requests) < 8


def test_a_caption_is_saved_on_leaving_and_page_down_leads_to_the_next(page: Any, studio: Started, waits):
    assert page.locator("#caption-list textarea.caption").count() == 0  # the tab has not been shown yet
    page.locator("#tabs [role=tab]").nth(1).click()
    fields = page.locator("#caption-list textarea.caption")
    fields.first.wait_for()
    assert fields.count() == 6
    fields.nth(1).fill("inkart, a bell")
    page.keyboard.press("PageDown")
    waits("document.querySelectorAll('#caption-list .saved')[1].innerText === 'Saved'")
    assert page.evaluate("document.activeElement.dataset.place") == fields.nth(2).get_attribute("data-place")
    page.keyboard.press("PageUp")
    assert page.evaluate("document.activeElement.dataset.place") == fields.nth(1).get_attribute("data-place")
    assert (project(studio) / "bell.txt").read_text() == "inkart, a bell\n"


def test_a_caption_of_two_lines_is_saved_when_the_server_is_back(page: Any, studio: Started, waits):
    page.locator("#tabs [role=tab]").nth(1).click()
    place = page.locator("#caption-list textarea.caption").nth(1).get_attribute("data-place")
    field, before = page.locator(f'#caption-list textarea[data-place="{place}"]'), "inkart, a bell"
    assert field.input_value() == before
    page.route("**/caption/**", lambda route: route.abort())
    field.fill(before)
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("a second line")
    field.blur()
    waits("document.querySelectorAll('#caption-list .saved')[1].innerText.startsWith('Not saved yet')")
    assert (project(studio) / "bell.txt").read_text() == f"{before}\n"
    page.unroute("**/caption/**")
    waits("document.querySelectorAll('#caption-list .saved')[1].innerText === 'Saved'")
    assert (project(studio) / "bell.txt").read_text() == f"{before}\na second line\n"
    field.fill(before)
    field.blur()
    waits("document.querySelector('#edit-undo')?.innerText.includes('bell.png')")
    for _ in range(200):
        if (project(studio) / "bell.txt").read_text() == f"{before}\n":
            break
        page.wait_for_timeout(50)


def test_a_hidden_tab_is_not_refreshed_until_it_is_shown(page: Any, waits):
    artwork, captions = page.locator("#tabs [role=tab]").nth(0), page.locator("#tabs [role=tab]").nth(1)
    listed = page.locator("#caption-list textarea.caption")
    artwork.click()
    page.locator('#cards li[data-name="star.png"] button.remove').click()
    waits("!document.querySelector('#cards li[data-name=\"star.png\"]')")
    page.wait_for_timeout(2500)  # more than a poll
    assert listed.count() == 6
    captions.click()
    waits("document.querySelectorAll('#caption-list textarea.caption').length === 5")
    artwork.click()
    page.locator("#removed summary").click()
    page.locator("#removed button.restore").click()
    page.wait_for_selector('#cards li[data-name="star.png"]')
    captions.click()
    waits("document.querySelectorAll('#caption-list textarea.caption').length === 6")


def test_find_and_replace_counts_first_and_undo_survives_a_reload(page: Any, studio: Started, waits):
    page.locator("#many button").first.click()
    page.locator("#edit-find").get_by_role("textbox").fill("inkart")
    page.locator("#edit-text").get_by_role("textbox").fill("inkstyle")
    waits("document.querySelector('#edit-preview')?.innerText.includes('Captions that will change: 2')")
    page.locator("#edit-apply").click()
    waits("document.querySelector('#edit-said')?.innerText.includes('Captions changed: 2')")
    waits(has_caption("inkstyle, a bell"))
    page.reload()  # opens the same tab
    waits(has_caption("inkstyle, a bell"))
    page.locator("#edit-undo:not([disabled])").click()
    waits(has_caption("inkart, a bell"))
    assert (project(studio) / "owl.txt").read_text() == "inkart owl, bird\n"


def test_text_that_is_being_typed_survives_a_refresh_of_the_list(page: Any, waits):
    fields = page.locator("#caption-list textarea.caption")
    fields.nth(0).click()
    page.keyboard.type("half a thought")
    page.evaluate("document.querySelector('#artwork-changed').click()")
    page.wait_for_timeout(3000)
    page.keyboard.type(" more")
    waits("document.activeElement.value?.includes('half a thought more')")
    page.keyboard.press("Tab")
    waits("document.querySelectorAll('#caption-list .saved')[0].innerText === 'Saved'")


def test_text_that_is_being_typed_survives_a_reload_and_is_saved_on_leaving(
    page: Any, studio: Started, waits
):
    """Gradio reloads the page by itself when the server has been away."""
    fields = page.locator("#caption-list textarea.caption")
    fields.nth(1).click()
    page.keyboard.press("End")
    page.keyboard.type(", half")
    place, text = page.evaluate("[document.activeElement.dataset.place, document.activeElement.value]")
    page.reload()
    waits(f"document.activeElement.dataset.place === {place!r} && document.activeElement.value === {text!r}")
    page.keyboard.press("Tab")
    waits("document.querySelectorAll('#caption-list .saved')[1].innerText === 'Saved'")
    assert (project(studio) / "bell.txt").read_text() == f"{text}\n"
    page.reload()
    fields.first.wait_for()
    assert page.evaluate("document.activeElement.dataset.place") is None
    assert fields.nth(1).input_value() == text


def test_a_folder_is_uploaded_with_its_captions(page: Any, studio: Started, waits, tmp_path: Path):
    (tmp_path / "art" / "more").mkdir(parents=True)
    for place in ("fox", "more/hen"):
        Image.effect_noise((300, 300), 60).save(tmp_path / "art" / f"{place}.png")
        (tmp_path / "art" / f"{place}.txt").write_text(f"{place[-3:]}, noise")
    (tmp_path / "art" / "more" / "thumbs.db").write_text("no picture")
    page.locator("#tabs [role=tab]").nth(0).click()
    with page.expect_file_chooser() as chooser:
        page.locator("#upload-folder").click()
    chooser.value.set_files(str(tmp_path / "art"))
    waits("document.querySelectorAll('#cards .picture').length === 8")
    assert (project(studio) / "hen.txt").read_text().strip() == "hen, noise"
    assert (project(studio) / "fox.txt").exists()
    waits("document.querySelector('#left-out')?.innerText.includes('2 pictures added')")


def test_deleting_a_project_needs_a_confirmation_and_leaves_no_file(page: Any, studio: Started, waits):
    page.locator("#tabs [role=tab]").nth(0).click()
    page.locator("#delete").click()
    page.wait_for_selector("#delete-asked [role=alertdialog]")
    assert "8 pictures" in page.locator("#delete-asked").inner_text()
    assert project(studio).exists()
    page.locator("#delete-yes").click()
    waits("document.querySelector('#deleted')?.innerText.includes('was deleted')")
    waits("document.querySelectorAll('#cards .picture').length === 24")
    left = [path for path in studio.home.rglob("*") if "my-pictures" in str(path)]
    assert left == []
    assert b"half a thought" not in (studio.home / "terminal.log").read_bytes()
