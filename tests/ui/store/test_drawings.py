"""Drawings of Try it without a browser: submission, the process that generates them, progress, and HTML."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import MODELS
from trainer.errors import ConfigError, RunError, TrainerError
from trainer.runs import events
from trainer.runs.queue_store import others_wait
from trainer.runs.run import claim
from trainer.workers.sampling import serve
from ui.store.drawings import Drawings, native_size
from ui.store.library import Library
from ui.store.runs import Runs
from ui.text import Words
from ui.views.strips import compare_html, drawing_html, drawn_pictures, grid_html, strip_html
from ui.views.try_it import form_values

EVIL = '<img src=x onerror="alert(1)">'


@pytest.fixture
def drawings(tmp_path: Path, ink_run: Path) -> Drawings:
    shutil.copytree(ink_run, tmp_path / "outputs" / "ink")
    return Drawings(Runs(tmp_path / "outputs", MODELS))  # nobody serves its line: the tests draw


def asked(**more) -> dict:
    return {"prompts": ["a cat"], "steps": 1, **more}


def test_the_warm_process_draws_mixes_and_grids_and_leaves_out_what_was_cancelled(
    drawings: Drawings, ink_run: Path
):
    other = drawings.library.import_file(ink_run / "ink.safetensors", "wash.safetensors")
    mix = drawings.submit(
        [("ink", 0.5), (other, 0.25)],
        asked(strengths=(0.0, 1.0), shape="portrait", sampler="unipc", negative="blurry"),
    )
    gone = drawings.submit([("ink", 1.0)], asked())
    grid = drawings.grid("ink", asked())
    assert drawings.status(mix).state == "waiting"
    assert "Waiting" in drawing_html(Words(), drawings.status(mix))
    drawings.cancel(gone)
    serve(drawings.session.path, MODELS, idle_seconds=0.2)
    assert [drawings.status(name).state for name in (mix, gone, grid)] == ["drawn", "cancelled", "drawn"]
    found = drawings.status(mix)
    shown: Any = Image.open(drawings.picture(mix, "p00_s1.00.png"))
    assert shown.size == (96, 160)
    assert [picture["file"] for picture in found.pictures()] == [
        "p00_s0.00.png",
        "p00_s1.00.png",
    ]
    assert "<lora:ink:0.5> <lora:wash:0.25>" in shown.text["parameters"]
    assert "Sampler: UniPC" in shown.text["parameters"]
    rows = {picture["step"] for picture in drawings.status(grid).pictures()}
    assert rows == {5, 10, 12}
    # At strength 0 every checkpoint is the base, to the bit; at 1 each is another.
    at = {
        s: {drawings.picture(grid, f"step-{step:06d}_p00_s{s:.2f}.png").read_bytes() for step in rows}
        for s in (0.0, 1.0)
    }
    pixels = {
        s: len(
            {
                Image.open(drawings.picture(grid, f"step-{step:06d}_p00_s{s:.2f}.png")).tobytes()
                for step in rows
            }
        )
        for s in at
    }
    assert pixels == {0.0: 1, 1.0: 3}
    assert not list(drawings.session.path.rglob("*.safetensors"))
    assert drawings.newest("ink", "grid") == grid
    assert drawings.newest(other) == mix
    # A restarted process handles no request twice.
    before = drawings.session.events.read_bytes()
    serve(drawings.session.path, MODELS, idle_seconds=0.0)
    assert drawings.session.events.read_bytes() == before


def test_what_can_not_be_drawn_is_refused_before_anything_is_asked(drawings: Drawings):
    wrong = [
        ([], asked()),
        ([("gone", 1.0)], asked()),
        ([("ink", float("nan"))], asked()),
        ([("ink", 1.0), ("ink", 1.0)], asked()),
        ([("ink", 1.0)], asked(prompts=[])),
        ([("ink", 1.0)], asked(prompts=["x" * 1001])),
        ([("ink", 1.0)], asked(steps=10**9)),
        ([("ink", 1.0)], asked(guidance=float("inf"))),
        ([("ink", 1.0)], asked(sampler="rm -rf")),
        ([("ink", 1.0)], asked(shape="../..")),
        ([("ink", 1.0)], asked(seed=True)),
        ([("ink", 1.0)], asked(command="x")),
    ]
    for files, values in wrong:
        with pytest.raises(TrainerError):
            drawings.submit(files, values)
    with pytest.raises(ConfigError):
        drawings.submit([("ink", 9.0)], asked())
    with pytest.raises(TrainerError, match="base model"):
        drawings.submit([("ink", 1.0)], asked(), base="../../etc")
    assert not drawings.session.path.exists()


def test_a_drawing_between_two_steps_goes_to_the_training_itself(drawings: Drawings):
    with pytest.raises(RunError, match="not running"):
        drawings.submit([("ink", 1.0)], asked(), during_training=True)
    run = drawings.runs.run("ink")
    with claim(run):
        name = drawings.submit([("ink", 1.0)], asked(), during_training=True)
        (command,) = [c for c in events.read(run.commands)[0] if c["kind"] == "draw"]
        assert command["id"] == name
        assert not drawings.session.commands.exists()
        run.emit("drawing", id=name, done=3, total=16)
        found = drawings.status(name)
        assert (found.state, found.done, found.total) == (
            "drawing",
            3,
            16,
        )
        assert 'value="3" max="16"' in drawing_html(Words("de"), found)
    assert drawings.status(name).state == "failed"  # the training has ended without it


def test_a_process_that_ended_before_it_answered_is_told(drawings: Drawings):
    name = drawings.submit([("ink", 1.0)], asked())
    for _ in range(2):  # it is started once more before that is given up
        drawings.runs.queue.stop(drawings.session.path)
        found = drawings.status(name)
    drawings.runs.queue.stop(drawings.session.path)
    found = drawings.status(name)
    assert found.state == "failed"
    assert "press Generate again" in drawing_html(Words(), found)


def test_an_idle_process_leaves_when_others_wait_for_the_device(drawings: Drawings):
    drawings.submit([("ink", 1.0)], asked())
    assert not others_wait(drawings.session.path)  # what waits is itself
    waiting = drawings.runs.outputs / "next"
    waiting.mkdir()
    drawings.runs.queue.submit(waiting, "train", ["resume", str(waiting)])
    assert others_wait(drawings.session.path)


def test_drawings_of_others_are_not_there(drawings: Drawings):
    name = drawings.submit([("ink", 1.0)], asked())
    for wrong in ("..", "", "x" * 32, f"../drawn/{name}"):
        with pytest.raises(RunError):
            drawings.status(wrong)
    for file in ("asked.json", "../asked.json", "/etc/passwd", "gone.png"):
        with pytest.raises(RunError):
            drawings.picture(name, file)


def test_strip_comparison_and_grid_show_markup_as_text(drawings: Drawings):
    words = Words("fr")
    pictures = [
        {"url": f"/drawn/x/{s}.png", "prompt": EVIL, "strength": s, "step": step}
        for s in (0.0, 0.5)
        for step in (1, 2)
    ]
    page = (
        strip_html(words, pictures, prefer="ink")
        + compare_html(words, pictures)
        + grid_html(words, pictures, "ink", {"step": 2, "strength": 0.5})
    )
    assert "<img src=x" not in page
    assert page.count('aria-pressed="true"') == 1
    assert "0 : modèle de base sans le LoRA" in page
    found = drawings.status(drawings.submit([("ink", 1.0)], asked(prompts=[EVIL])))
    assert "<img src=x" not in strip_html(words, drawn_pictures(found))


def test_the_size_of_a_picture_follows_its_base(tmp_path: Path):
    assert native_size("tiny-sdxl", MODELS) == 128
    assert native_size("some.safetensors", tmp_path) == 1024


def test_old_drawings_make_room(drawings: Drawings, monkeypatch):
    monkeypatch.setattr("ui.store.drawings._MAX_DRAWINGS", 3)
    names = [drawings.submit([("ink", 1.0)], asked()) for _ in range(5)]
    left = {path.parent.name for path in drawings.session.path.glob("drawn/*/asked.json")}
    assert len(left) == 3
    assert names[-1] in left
    assert names[0] not in left


def test_the_library_knows_a_run_only_when_it_has_a_file(drawings: Drawings):
    (drawings.runs.outputs / "ink" / "ink.safetensors").unlink()
    with pytest.raises(RunError):
        Library(drawings.runs).entry("ink")
    assert json.loads((drawings.runs.outputs / "ink" / "manifest.json").read_text())


def test_calls_and_pasted_settings_in_a_prompt_are_left_out_and_reported(drawings: Drawings):
    pasted = (
        "a cat <lora:ink:0.5>\nNegative prompt: blurry\n"
        "Steps: 16, Sampler: Euler, CFG scale: 5, Seed: 0, Size: 64x64"
    )
    fields = {"negative": "", "shape": "square", "sampler": "euler", "steps": 1, "seed": 0, "guidance": 5.0}
    values = form_values({"prompts": pasted, **fields})
    found = drawings.status(drawings.submit([("ink", 1.0)], values))
    assert (found.request.prompts, found.request.negative) == (("a cat",), "blurry")
    assert found.notes[0].startswith("<lora:ink:0.5> is left out of the prompt")
    assert "&lt;lora:ink:0.5&gt; is left out" in drawing_html(Words(), found)
    assert drawings.status(drawings.submit([("ink", 1.0)], asked())).notes == ()
