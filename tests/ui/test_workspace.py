"""The page's own half without a browser: jobs, projects, routes, the guard, and what is imported."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import INK, MODELS, ROOT
from trainer.errors import DatasetError, RunError
from trainer.runs.events import View
from trainer.runs.job import Job
from ui.server import build_app
from ui.store.caption_edits import save_caption
from ui.store.projects import Projects, clean_name
from ui.store.runs import Runs, RunStatus, run_status
from ui.text import Words
from ui.views.progress import status_html
from ui.views.strips import run_pictures, strip_html


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, ink_run: Path):
    home = tmp_path_factory.mktemp("house")
    shutil.copytree(INK, home / "datasets" / "ink-emoji")
    shutil.copytree(ink_run, home / "outputs" / "ink")
    app = build_app(host="127.0.0.1", datasets=home / "datasets", outputs=home / "outputs", models=MODELS)
    return home, TestClient(app, base_url="http://127.0.0.1:7860")


def test_the_page_answers_without_torch(tmp_path: Path):
    told = "import sys; from pathlib import Path; from ui.server import build_app; p = Path(sys.argv[1]); "
    told += "app = build_app(host='127.0.0.1', datasets=p, outputs=p, models=p); from fastapi.testclient import TestClient; "
    told += "assert 'Impasto' in TestClient(app, base_url='http://127.0.0.1').get('/').text; "
    told += "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told, str(tmp_path)], cwd=ROOT).returncode == 0


def test_no_two_functions_put_each_other_off(house):
    """Gradio re-fires a postponed event for all its listeners, so two of them on one event would never stop."""
    _, client = house
    hearing = Counter(
        tuple(target)
        for function in client.get("/config").json()["dependencies"]
        if function["backend_fn"] and function["trigger_mode"] == "always_last"
        for target in function["targets"]
    )
    assert len(hearing) > 20
    assert set(hearing.values()) == {1}


def test_the_studio_starts_without_writing_into_the_installation(tmp_path: Path):
    told = "import sys; from pathlib import Path; from ui.server import build_app; p = Path(sys.argv[1]); "
    told += (
        "build_app(host='127.0.0.1', datasets=p, outputs=p, models=p); import gradio.component_meta as m; "
    )
    told += "sys.exit(m.create_or_modify_pyi.__module__ != 'ui.gradio_startup')"
    assert subprocess.run([sys.executable, "-c", told, str(tmp_path)], cwd=ROOT).returncode == 0


def test_the_trainer_needs_no_gradio():
    told = "import sys; import trainer.train, trainer.sampling.pipeline, trainer.__main__; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], cwd=ROOT).returncode == 0


def test_thumbnails_pictures_and_the_file_come_by_name(house):
    _, client = house
    small = client.get("/thumb/ink-emoji/owl.png")
    assert small.status_code == 200
    assert small.headers["content-type"] == "image/webp"
    assert len(small.content) < 60_000
    assert client.get("/picture/ink/p00_s1.00.png").headers["content-type"] == "image/png"
    file = client.get("/download/ink")
    assert 'filename="ink-12.safetensors"' in file.headers["content-disposition"]
    assert len(file.content) > 100_000


@pytest.mark.parametrize(
    "path",
    [
        "/thumb/ink-emoji/LICENSE",
        "/thumb/..%2f..%2fetc/passwd",
        "/thumb/ink-emoji/..%2f..%2f..%2fetc%2fpasswd",
        "/picture/ink/..%2fconfig.toml",
        "/picture/ink/../config.toml",
        "/picture/ink/%2e%2e/events.jsonl",
        "/download/.cache",
        "/picture/../ink/strip.png",
        "/download/gone",
        "/picture/ink/gone.png",
        "/thumb/ink-emoji/owl%00.png",
    ],
)
def test_no_path_leads_out(house, path: str):
    answer = house[1].get(path)
    assert answer.status_code in (404, 307, 400)
    assert b"root:" not in answer.content
    assert str(house[0]).encode() not in answer.content


def test_a_caption_is_saved_with_its_lines_and_without_other_white_space(house):
    home, client = house
    answer = client.put("/caption/ink-emoji/owl.png", content="a wise\nowl ")
    assert answer.json()["message"] == "Saved"
    assert (home / "datasets" / "ink-emoji" / "owl.txt").read_text() == "a wise\nowl\n"
    assert client.put("/caption/ink-emoji/gone.png", content="x").status_code == 400
    assert client.put("/caption/ink-emoji/owl.png", content="x" * 5000).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.com"},
    ],
)
def test_other_sites_can_change_nothing(house, headers: dict[str, str]):
    home, client = house
    before = (home / "datasets" / "ink-emoji" / "star.txt").read_text()
    assert client.put("/caption/ink-emoji/star.png", content="stolen", headers=headers).status_code == 403
    assert (home / "datasets" / "ink-emoji" / "star.txt").read_text() == before


def test_answers_carry_no_permission_for_other_sites(house):
    answer = house[1].get("/", headers={"origin": "http://127.0.0.1:7860"})
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_kohya_folders_show_their_pictures(tmp_path: Path):
    (tmp_path / "datasets" / "cats" / "10_sks cat").mkdir(parents=True)
    Image.new("RGB", (50, 50)).save(tmp_path / "datasets" / "cats" / "10_sks cat" / "a.png")
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    assert [(c.name, c.caption) for c in projects.pictures("cats")] == [("10_sks cat/a.png", "sks cat")]
    save_caption(projects, "cats", "10_sks cat/a.png", "a cat")
    assert projects.pictures("cats")[0].caption == "a cat"
    assert projects.thumbnail("cats", "10_sks cat/a.png").is_file()


def test_a_continued_run_shows_its_new_pictures():
    first, then = (
        {"file": "p00_s1.00.png", "prompt": "a cat", "strength": 1.0, "made": made} for made in (1, 2)
    )
    assert run_pictures("run", [first]) != run_pictures("run", [then])


def test_a_folder_without_pictures_is_told_without_its_path(tmp_path: Path):
    (tmp_path / "datasets" / "empty").mkdir(parents=True)
    with pytest.raises(DatasetError) as told:
        Runs(tmp_path / "outputs", MODELS).start(tmp_path / "datasets" / "empty", {"name": "x"})
    assert str(tmp_path) not in str(told.value)
    assert "empty has no pictures" in str(told.value)


@given(st.text(max_size=100))
def test_names_from_a_browser_are_safe_file_names(text: str):
    name = clean_name(text)
    assert not set(name) & set('/\\:*?"<>|\0\n')
    assert not name.startswith(".")
    assert len(name) <= 80
    assert len(name.encode()) <= 200


def test_jobs_refuse_names_that_are_no_runs(tmp_path: Path):
    runs = Runs(tmp_path, MODELS)
    for name in ("..", "/etc", "gone", ""):
        with pytest.raises(RunError):
            runs.run(name)
    with pytest.raises(DatasetError):
        Projects(tmp_path, tmp_path).folder("..")


def test_markup_in_captions_is_shown_as_text():
    evil = '<img src=x onerror="alert(1)">'
    assert "<img src=x" not in strip_html(
        Words(), run_pictures("r", [{"file": "a.png", "prompt": evil, "strength": 0.0}])
    )
    assert "<img" not in status_html(
        RunStatus(View(ended="failed", message=evil), "failed"), Words(), name=evil
    )


def test_the_strip_has_a_slider_that_swaps_pictures():
    pictures = [{"file": f"p00_s{s:.2f}.png", "prompt": "a cat", "strength": s} for s in (0.0, 0.5, 1.0)]
    page = strip_html(Words(), run_pictures("my run", pictures))
    assert 'type="range"' in page
    assert 'max="2"' in page
    assert "/picture/my%20run/p00_s0.00.png" in page


def test_a_run_whose_process_died_is_interrupted():
    view = View(stage="training", step=3, steps=9, seconds_left=4.0)
    assert "Interrupted" in status_html(run_status(view, False, None), Words())
    assert "step 3 of 9 (33%), about 4 s left" in status_html(run_status(view, True, None), Words())


def test_a_training_that_falls_silent_is_said_to_be_stuck_and_no_slow_one_is():
    view = View(stage="training", step=3, steps=9, seconds_left=4.0, last_event_at=1000.0)
    assert "stuck" not in status_html(run_status(view, True, None, now=1290.0), Words())
    assert "No progress for 7 min; the training may be stuck" in status_html(
        run_status(view, True, None, now=1420.0), Words()
    )
    slow = dataclasses.replace(view, seconds_left=6 * 60.0)  # a minute a step
    assert "stuck" not in status_html(run_status(slow, True, None, now=1420.0), Words())
    assert "stuck" in status_html(run_status(slow, True, None, now=2300.0), Words())


def test_a_training_that_was_stuck_and_ended_by_stop_is_told_as_stopped():
    job = Job(
        id="1",
        kind="train",
        folder=Path("run"),
        state="interrupted",
        lane="",
        device="cpu",
        signal=signal.SIGKILL,
        stops=2,
    )
    view = View(stage="training", step=3, steps=9)
    assert run_status(view, False, job).state == "stopped"
    assert run_status(view, False, dataclasses.replace(job, stops=0)).was_killed


def test_two_visitors_may_ask_for_the_same_thumbnail_at_once(tmp_path: Path):
    shutil.copytree(INK, tmp_path / "datasets" / "ink")
    projects = Projects(tmp_path / "datasets", tmp_path / "cache")
    with ThreadPoolExecutor(8) as visitors:
        made = list(visitors.map(lambda _: projects.thumbnail("ink", "owl.png"), range(24)))
    assert len(set(made)) == 1
    assert Image.open(made[0]).format == "WEBP"
    assert [path.name for path in made[0].parent.iterdir()] == [made[0].name]
