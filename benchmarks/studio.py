"""Response times of the studio in a headless browser: upload, large project, training, polling, slider."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import INK
from benchmarks.report import Figure
from benchmarks.served import Started, chromium, served
from trainer.runs import events

_PATIENCE = 90_000  # ms
# Small steps until the training is stopped, then a strip for the slider.
_TRAINING = {
    "steps": 100_000,
    "resolution": 64,
    "batch": 1,
    "sample_steps": 2,
    "sample_every": 100_000,
    "network": "lora",
    "checkpoint_every": 100_000,
}
# Records step and time of each change of the status; the browser has the machine's clock.
_WATCH_STATUS = """() => {
  window.seen = [];
  performance.setResourceTimingBufferSize(20000);
  performance.clearResourceTimings();
  new MutationObserver(() => {
    const found = /step ([0-9]+) of/.exec(document.querySelector('#status')?.innerText || '');
    if (found && window.seen.at(-1)?.[0] !== +found[1]) window.seen.push([+found[1], Date.now() / 1000]);
  }).observe(document.querySelector('#status'), {childList: true, subtree: true, characterData: true});
}"""
# The page's poll, and the Gradio events that its responses trigger.
_TAKEN = (
    "part => performance.getEntriesByType('resource').filter(e => e.name.includes(part)).map(e => e.duration)"
)
# Time from a step of the slider until the image is decoded and painted.
_PRESS = """async (key) => {
  const slider = document.querySelector('#strip input[type=range]');
  const image = document.querySelector('#strip .strip img');
  const before = image.src, begun = performance.now();
  slider[key]();
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  await image.decode();
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  return [performance.now() - begun, image.src !== before];
}"""


def figures(folder: Path, *, quick: bool) -> list[Figure]:
    """Returns the figures of the studio group, from one server with its own folders."""
    many, large, seconds = (4, 10, 5) if quick else (200, 1_000, 30)
    home = folder / "home"
    shutil.copytree(INK, home / "datasets" / "ink")
    _settle(home / "datasets" / "ink")
    _large_project(home / "datasets" / "large", large)
    begun = time.monotonic()
    with served(home) as started, chromium() as browser:
        answered = time.monotonic() - begun
        page = browser.new_context().new_page()
        page.set_default_timeout(_PATIENCE)
        page.goto(f"{started.address}/?project=ink")
        page.wait_for_selector("#cards .picture")
        first = time.monotonic() - begun
        return [
            Figure(
                group="studio", what="the command to the first response", value=answered, unit="s", floor=4.0
            ),
            Figure(group="studio", what="the command to the first page drawn", value=first, unit="s"),
            *_drop(page, started, folder / "drop", many),
            *_open_large(browser, started, large),
            *_train(page, started, seconds),
            _slide(page),
        ]


def _settle(project: Path) -> None:
    (project / ".impasto").mkdir()
    settings = {"name": "ink", "trigger": "ink", "pace": "quick", "advanced": _TRAINING}
    (project / ".impasto" / "settings.json").write_text(json.dumps(settings))


def _large_project(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    arts = sorted(INK.glob("*.png"))
    for number in range(count):
        art = arts[number % len(arts)]
        shutil.copy(art, folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(f"picture {number}\n")


def _drop(page: Any, started: Started, folder: Path, count: int) -> list[Figure]:
    """Measures the upload of images of 3 megapixels to a new project, until each has its card."""
    folder.mkdir()
    for number in range(count):
        noise = Image.effect_noise((512, 384), 40 + number % 40).resize((2048, 1536))
        Image.merge(
            "RGB", (noise, noise.rotate(number), noise.transpose(Image.Transpose.FLIP_TOP_BOTTOM))
        ).save(folder / f"{number:03d}.jpg")
    page.locator("#new-name input, #new-name textarea").fill("drop")
    page.locator("#create").click()
    page.wait_for_function("document.querySelector('#project input').value === 'drop'")
    page.wait_for_function("!document.querySelector('#cards .picture')")
    begun = time.monotonic()
    page.locator("#upload input[type=file]").first.set_input_files(
        [str(path) for path in sorted(folder.iterdir())]
    )
    page.wait_for_selector("#cards .picture")
    first = time.monotonic() - begun
    page.wait_for_function(f"document.querySelectorAll('#cards .picture').length === {count}")
    whole = time.monotonic() - begun
    _wait_for_doctor(page)
    left = [path for path in (started.home / "outputs" / ".cache" / "uploads").rglob("*") if path.is_file()]
    shutil.rmtree(folder)
    return [
        Figure(
            group="studio", what=f"{count} pictures of 3 megapixels to the first card", value=first, unit="s"
        ),
        Figure(
            group="studio",
            what=f"{count} pictures of 3 megapixels to their cards",
            value=whole,
            unit="s",
            floor=20.0,
        ),
        Figure(
            group="studio", what="copies of them left in the upload folder", value=len(left), unit="files"
        ),
    ]


def _wait_for_doctor(page: Any) -> None:
    """Waits for the end of the picture checks in the background, which would slow the next measurement."""
    page.wait_for_timeout(2000)
    page.wait_for_function("!document.querySelector('#visit').innerText.trim()", timeout=5 * _PATIENCE)


def _open_large(browser: Any, started: Started, count: int) -> list[Figure]:
    taken = []
    for _ in range(3):
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(_PATIENCE)
        begun = time.monotonic()
        page.goto(f"{started.address}/?project=large&tab=artwork")
        page.wait_for_function(f"document.querySelectorAll('#cards .picture').length === {count}")
        taken.append(time.monotonic() - begun)
        _wait_for_doctor(page)
        context.close()
    return [
        Figure(
            group="studio",
            what=f"a project of {count:,} pictures opens the first time",
            value=taken[0],
            unit="s",
        ),
        Figure(
            group="studio",
            what=f"a project of {count:,} pictures opens again",
            value=statistics.median(taken[1:]),
            unit="s",
            floor=2.0,
            all=tuple(taken),
        ),
    ]


def _train(page: Any, started: Started, seconds: int) -> list[Figure]:
    page.goto(f"{started.address}/?project=ink&tab=train")
    page.wait_for_function("document.querySelector('#name textarea, #name input')?.value === 'ink'")
    page.wait_for_function("/steps/.test(document.querySelector('#estimate')?.innerText)")
    begun = time.monotonic()
    page.locator("#train").click()
    page.wait_for_function("document.querySelector('#train').disabled")
    page.locator("#stop").wait_for()
    pressed = time.monotonic() - begun
    page.wait_for_function("/step [0-9]+ of/.test(document.querySelector('#status').innerText)")
    page.evaluate(_WATCH_STATUS)
    page.wait_for_timeout(seconds * 1000)
    page.wait_for_function("window.seen.length > 2")
    polls, drawn = (sorted(page.evaluate(_TAKEN, part)) for part in ("/pulse", "/run/"))
    seen = page.evaluate("() => window.seen")
    said = events.read(started.home / "outputs" / "ink" / "events.jsonl")[0]
    stale = _stale([(event["step"], event["time"]) for event in said if event["kind"] == "step"], seen)
    return [
        Figure(group="studio", what="Train pressed to Stop shown", value=pressed, unit="s", floor=1.0),
        Figure(
            group="studio",
            what=f"status behind what was written, worst of {len(stale)}",
            value=max(stale),
            unit="s",
            floor=2.0,
        ),
        Figure(
            group="studio",
            what=f"page poll during training, 95th of 100 of {len(polls)}",
            value=polls[int(len(polls) * 0.95)],
            unit="ms",
            floor=50.0,
        ),
        Figure(
            group="studio",
            what="page poll during training, median",
            value=statistics.median(polls),
            unit="ms",
        ),
        Figure(
            group="studio",
            what=f"drawing the tab anew, median of {len(drawn)}",
            value=statistics.median(drawn),
            unit="ms",
        ),
    ]


def _stale(written: list[tuple[int, float]], seen: list[tuple[int, float]]) -> list[float]:
    """Returns for each shown step the seconds that it remained after a newer one had been written."""
    found = []
    for (step, _), (_, until) in itertools.pairwise(seen):
        newer = min((moment for number, moment in written if number > step), default=until)
        found.append(max(0.0, until - newer))
    return found


def _slide(page: Any) -> Figure:
    """Stops the training and measures the slider of its strip."""
    page.locator("#stop").click()
    page.wait_for_function("!document.querySelector('#train').disabled")
    page.locator("#tab-try_it-button").click()
    page.wait_for_selector("#strip .tryout")
    page.locator("#strip input[type=range]").focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(1000)
    taken = []
    for key in ("stepUp",) * 4 + ("stepDown",) * 4:
        milliseconds, changed = page.evaluate(_PRESS, key)
        if not changed:
            raise AssertionError("the slider moved and the picture did not")
        taken.append(milliseconds)
    return Figure(
        group="studio",
        what="slider step to picture painted, worst of 8",
        value=max(taken),
        unit="ms",
        floor=100.0,
        all=tuple(taken),
    )
