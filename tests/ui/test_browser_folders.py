"""Folders that are chosen or dropped in a real browser keep their structure."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.ui.conftest import BROWSER, Started
from trainer.dataset.folder import mask_file
from trainer.dataset.scan import scan

pytestmark = BROWSER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of the same name, one with a mask and one in a folder of 5 repeats."""
    root = tmp_path_factory.mktemp("folders") / "set"
    pictures = {"a/1": "red", "b/1": "blue", "2": "green", "masks/2": "black", "5_cats/tom": "yellow"}
    for name, colour in pictures.items():
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if name.startswith("masks") else "RGB", (80, 60), colour).save(path)
    for name in ("a/1", "b/1"):
        (root / f"{name}.txt").write_text(pictures[name])
    (root / ".hidden").mkdir()
    (root / ".hidden" / "3.png").write_bytes((root / "2.png").read_bytes())
    return root


@pytest.fixture
def page(studio: Started, browser: Any) -> Iterator[Any]:
    shutil.rmtree(studio.home / "datasets" / "my-pictures", ignore_errors=True)
    opened = browser.new_context().new_page()
    opened.set_default_timeout(120_000)  # the machine may be busy
    opened.goto(studio.address)
    opened.wait_for_selector("#cards .picture")
    yield opened
    opened.close()


def contents(folder: Path) -> set[tuple[str, str, int, bool]]:
    """Returns (digest, caption, repeats, whether there is a mask) of all pictures."""
    items = scan(folder).items
    return {
        (item.digest, item.caption, item.repeats, mask_file(Path(item.path)) is not None) for item in items
    }


def choose(page: Any, folder: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#upload-folder").click()
    chooser.value.set_files(str(folder))


def drop(page: Any, folder: Path) -> None:
    box = page.locator("#upload").bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})


@pytest.mark.parametrize("send", [choose, drop])
def test_a_folder_keeps_its_captions_masks_and_repeats(page: Any, studio: Started, folder: Path, send: Any):
    send(page, folder)
    page.wait_for_function(
        "() => document.querySelector('#left-out')?.innerText.includes('4 pictures added')"
    )
    assert contents(studio.home / "datasets" / "my-pictures") == contents(folder)
