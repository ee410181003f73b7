"""The Train tab without a browser: checks, saved fields, start and retry, samples and curves."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import INK, MODELS
from trainer.config import config_from
from trainer.dataset.manifest import Item
from trainer.errors import BaseError, NotFiniteError, RunError, TrainerError
from trainer.runs import events
from trainer.runs.failures import failure_fields, reduced_memory_settings
from ui.store.project_settings import training_values, write_settings
from ui.text import Words
from ui.views import training
from ui.views.comparison import comparison_html
from ui.views.curves import curve_html, smoothed, trend
from ui.views.preflight import checks, planned_training
from ui.views.progress import nearest, samples_html
from ui.workspace import Studio


@pytest.fixture
def workspace(tmp_path: Path):
    shutil.copytree(INK, tmp_path / "datasets" / "ink")
    studio = Studio(tmp_path / "datasets", tmp_path / "outputs", MODELS)
    studio.queue.devices = ()  # nothing starts
    return studio.workspace_of(SimpleNamespace(headers={}, scope={}))


def fields(workspace, **changed) -> training.Fields:
    saved = training.saved_fields(workspace, "ink")
    main = {name: value for name, value in changed.items() if name in saved.main}
    return training.Fields(
        {**saved.main, **main}, {name: value for name, value in changed.items() if name not in main}
    )


def test_a_project_has_its_own_settings_and_opening_it_changes_nothing(workspace):
    assert training.saved_fields(workspace, "ink").main["name"] == "ink"
    training.save_fields(workspace, "ink")
    assert not (workspace.projects.folder("ink") / ".impasto" / "settings.json").exists()
    changed = fields(workspace, trigger="inkzz", preset="character", rank=8.0, sample_prompts="a cat\na dog")
    assert training.save_fields(workspace, "ink", main=changed.main, advanced=changed.advanced) == changed
    assert training.saved_fields(workspace, "ink") == changed
    workspace.projects.create("other")
    assert training.saved_fields(workspace, "other").main["trigger"] == ""
    assert training.saved_fields(workspace, "other").advanced == {}


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.none() | st.text(max_size=9) | st.floats() | st.lists(st.integers(), max_size=2),
        max_size=5,
    )
)
def test_no_submitted_field_makes_a_project_unreadable(
    tmp_path_factory: pytest.TempPathFactory, values: dict
):
    from ui.store.project_settings import read_settings

    folder = tmp_path_factory.getbasetemp()
    write_settings(folder, values, values)
    found = read_settings(folder)["advanced"]
    assert all(
        value == values[name] and not (isinstance(value, float) and not math.isfinite(value))
        for name, value in found.items()
    )
    json.loads((folder / ".impasto" / "settings.json").read_text())


def test_a_name_that_is_a_path_is_rejected(workspace):
    for values in (
        {"base": "/etc"},
        {"base": "../models/tiny-sdxl"},
        {"prior_folder": "../.."},
        {"start_from": "/etc/passwd"},
        {"base": 5},
    ):
        with pytest.raises(TrainerError):
            training.settings_of(workspace, fields(workspace, **values))


def test_the_preset_and_the_pace_change_the_steps(workspace):
    def steps(**values) -> int:
        return training_values(workspace.projects.folder("ink"), {"name": "x", **values}, MODELS)["steps"]

    assert len({steps(preset=preset) for preset in ("style", "character", "concept")}) == 3
    assert steps(pace="quick") * 2 == steps()
    assert steps(pace="thorough") == 2 * steps()
    assert steps(pace="thorough", steps=7) == 7


def test_problems_are_shown_before_the_training(workspace):
    folder = workspace.projects.folder("ink")
    (folder / "owl.txt").unlink()

    def levels(**settings) -> dict[str, str]:
        return {
            check.key: check.level
            for check in checks(planned_training(folder, {"name": "x", **settings}, MODELS), MODELS)
        }

    assert levels()["check_trigger"] == "note"
    assert levels()["check_captions"] == "note"
    assert levels(trigger="Cat")["check_trigger_known"] == "note"
    assert levels(trigger="inkzzq")["check_trigger_fine"] == "fine"
    assert levels(resolution=1024)["check_small"] == "note"
    assert levels(rank=0)["check_refused"] == "fix"
    assert "check_buckets" not in levels()
    for number, size in enumerate([(512, 128), (128, 512), (448, 128), (128, 448)]):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"shape{number}.png")
    assert levels()["check_buckets"] == "note"
    assert "check_buckets" not in levels(batch=1)
    refused = {"kind": "refused", "cause": "memory", "message": "needs 9 GB", "remedy": {"batch": 2}}
    assert checks(planned_training(folder, {"name": "x"}, MODELS), MODELS, refused)[0].key == "check_memory"
    planned = {"kind": "planned", "seconds": 60.0, "peak": 10**9, "budget": 2 * 10**9, "file": 10**15}
    assert checks(planned_training(folder, {"name": "x"}, MODELS), MODELS, planned)[0].key == "check_disk"


def test_one_click_starts_one_training_and_another_one_must_be_requested(workspace):
    with ThreadPoolExecutor(8) as pool:
        names = list(
            pool.map(lambda _: training.start(workspace, "ink", fields(workspace), token="click"), range(20))
        )
    assert set(names) == {"ink"}
    assert workspace.runs.names() == ["ink"]
    assert workspace.runs.status("ink").state == "waiting"
    with pytest.raises(RunError, match="is training already"):
        training.start(workspace, "ink", fields(workspace), token="a second window")
    assert (
        training.start(workspace, "ink", fields(workspace, rank=4.0), token="more", another=True) == "ink-2"
    )
    assert "position 2" in training.queue_html(workspace.runs.queued(), 0, workspace.words)
    assert [job.queue_position for job in workspace.runs.queued()] == [1, 2]
    workspace.runs.move("ink-2", -1)
    assert [job.folder.name for job in workspace.runs.queued()] == ["ink-2", "ink"]
    workspace.runs.stop("ink-2")
    assert workspace.runs.status("ink-2").state == "stopped"
    assert workspace.runs.active("ink") == "ink"


def test_retry_trains_again_with_the_change_that_avoids_the_failure(workspace):
    run = workspace.runs.run(training.start(workspace, "ink", fields(workspace, batch=4.0), token="1"))
    workspace.runs.stop("ink")
    rate = run.config.learning_rate
    run.emit("ended", how="failed", **failure_fields(NotFiniteError(3, ["owl.png"]), run.config))
    assert training.retry_changes(workspace, "ink") == {"learning_rate": rate / 2}
    assert training.retry(workspace, "ink", "ink") == "ink-2"
    tried = workspace.runs.run("ink-2").config
    assert {k for k, v in dataclasses.asdict(tried).items() if v != getattr(run.config, k)} == {
        "learning_rate"
    }
    assert training.saved_fields(workspace, "ink").advanced["learning_rate"] == rate / 2
    assert "learning_rate" in comparison_html(workspace.runs, "ink", "ink-2", workspace.words)
    run.emit("ended", how="failed", **failure_fields(BaseError("gone"), run.config))
    with pytest.raises(TrainerError, match="another change"):
        training.retry(workspace, "ink", "ink")


@pytest.mark.parametrize(
    "values",
    [
        {"batch": 4},
        {"batch": 1},
        {"batch": 1, "gradient_checkpointing": "none"},
        {"resolution": 768, "batch": 1},
    ],
)
def test_every_remedy_for_memory_is_a_valid_setting(values: dict):
    config = config_from({"name": "x", **values})
    for _ in range(12):  # retried again and again
        change = reduced_memory_settings(config)
        if change == {"resolution": config.resolution}:
            break
        config = config_from({**dataclasses.asdict(config), **change})
    assert config.batch == 1
    assert 64 <= config.resolution < 768


def test_samples_are_sorted_by_step_beside_the_nearest_picture_of_the_dataset(workspace):
    run = workspace.runs.run(training.start(workspace, "ink", fields(workspace), token="1"))
    (run.path / "sources.json").unlink()
    from trainer.dataset.quick_scan import quick_scan

    manifest = quick_scan(workspace.projects.folder("ink"))
    (run.path / "manifest.json").write_text(json.dumps(manifest.to_json()))
    caption = next(item.caption for item in manifest.items if item.name == "owl.png")
    for step in (0, 20, 10, 20):
        run.emit("sample", step=step, prompt=caption, file=f"s{step}.png", seed=7, made=step)
    page = samples_html(run, workspace.runs.status("ink"), workspace.words, "ink")
    assert "/thumb/ink/owl.png" in page
    assert page.index("owl.png") < page.index("step 0, seed 7")
    assert page.index("step 0, seed 7") < page.index("step 10, seed 7") < page.index("step 20, seed 7")
    assert page.count("<figure") == 4  # a continued training generates some again


def test_the_nearest_picture_shares_the_rarest_words():
    items = [
        Item(path=f"/{n}.png", caption=text, width=9, height=9, digest="")
        for n, text in enumerate(("ink, a cat", "ink, a dog", "ink, a red cat"))
    ]
    found = [nearest(prompt, items) for prompt in ("ink, a dog in rain", "a RED cat", "ink, cat", "a ship")]
    assert [item and item.name for item in found] == ["1.png", "2.png", "0.png", None]


def curve(*spans: tuple[int, float, float]) -> list[tuple[int, float]]:
    """Returns losses whose mean moves along each (steps, from, to), with a zigzag of 10 % on it."""
    losses: list[tuple[int, float]] = []
    for steps, low, high in spans:
        losses += [
            (len(losses) + 1 + n, (low + (high - low) * n / steps) * (1.1 if n % 2 else 0.9))
            for n in range(steps)
        ]
    return losses


def test_the_trend_of_a_curve_is_named():
    assert trend(curve((10, 1, 1)), ()).kind == "early"
    assert trend(curve((600, 1, 0.1)), ()).kind == "falling"
    level = trend(curve((200, 1, 0.3), (400, 0.3, 0.3)), ())
    assert level.kind == "level"
    assert 150 <= level.step <= 301
    assert trend((), ((0, 1.0), (50, 0.5), (100, 0.6), (150, 0.6), (200, 0.7))) == trend(
        (), ((0, 1), (50, 0.5), (100, 0.6), (150, 0.6), (200, 0.9))
    )
    assert (
        trend((), ((0, 1.0), (50, 0.5), (100, 0.6), (150, 0.6), (200, 0.7))).kind,
        trend((), ((0, 1.0), (50, 0.5), (100, 0.4))).kind,
    ) == ("rising", "falling")
    assert trend((), ((0, 1.0), (50, 0.5), (100, 0.5), (150, 0.501), (200, 0.5))) == trend(
        (), ((0, 2.0), (50, 0.5), (100, 0.5), (150, 0.5), (200, 0.5))
    )
    assert smoothed([(n, 0.5) for n in range(100)])[-1][1] == pytest.approx(0.5)


def test_ten_thousand_steps_stay_a_small_curve_with_the_same_mean():
    view = events.View()
    for first in range(0, 10_000, 250):
        values = [
            {"kind": "step", "step": n + 1, "steps": 10_000, "loss": n / 10_000, "seconds_left": 1.0}
            for n in range(first, first + 250)
        ]
        view = events.fold(view, values)
    assert len(view.losses) <= 2 * events.MIN_CURVE_POINTS
    assert view.losses[-1][0] == 10_000
    assert sum(loss for _, loss in view.losses) / len(view.losses) == pytest.approx(0.5, abs=0.01)
    assert len(curve_html(view, Words())) < 10_000
    again = events.fold(
        view, [{"kind": "step", "step": 5001, "steps": 10_000, "loss": 9.0, "seconds_left": 1.0}]
    )
    assert again.losses[-1][0] == 5001
    assert again.losses[-1][1] > 0.6
    assert again.loss_span == view.loss_span


def test_markup_in_names_and_prompts_is_shown_as_text(workspace):
    evil = "<img src=x onerror=alert(1)>"
    run = workspace.runs.run(training.start(workspace, "ink", fields(workspace), token="1"))
    run.emit("sample", step=0, prompt=evil, file="a.png", made=1)
    run.emit("problem", message=evil)
    from ui.views.progress import notes_html

    standing = workspace.runs.status("ink")
    assert "<img src=x" not in samples_html(run, standing, workspace.words) + notes_html(
        standing, workspace.words
    ) + training.alert_html(evil)
