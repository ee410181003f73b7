"""Estimates of a training before it starts: no request is lost."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import INK, MODELS
from trainer.runs import events
from trainer.runs.run import Run
from trainer.workers import planning as planner
from ui.store.estimates import Estimates


class RunningProcess:
    """Stands for a child process that is running, so that the requests to it can be read."""

    def poll(self) -> None:
        return None


def asked(cache: Path) -> list[int]:
    return [command["settings"]["steps"] for command in events.read(cache / "planning" / "commands.jsonl")[0]]


def test_a_setting_changed_back_and_forth_is_asked_for_again(tmp_path: Path):
    estimates = Estimates(tmp_path, MODELS, start_process=lambda run, models: RunningProcess())
    for steps in (10, 10, 20, 10):
        key = estimates.submit(INK, {"steps": steps})
    assert asked(tmp_path) == [10, 20, 10]
    events.append(tmp_path / "planning" / "events.jsonl", "planned", id=f"{key}/1", seconds=1)
    estimates.submit(INK, {"steps": 20})
    estimates.submit(INK, {"steps": 10})  # is known by now
    assert asked(tmp_path) == [10, 20, 10, 20]
    assert (estimates.result(key) or {})["seconds"] == 1


def test_two_projects_that_ask_at_once_are_both_answered_and_of_one_the_newest(tmp_path: Path):
    place = Run(tmp_path / "planning")
    place.path.mkdir()
    for number, name in enumerate(("first", "second", "first")):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)  # without a picture: refused at once
        events.append(place.commands, "plan", id=str(number), folder=str(folder), settings={"steps": 2})
    planner.serve(place.path, MODELS, idle_seconds=0.5)
    answers = [event for event in events.read(place.events)[0] if event["kind"] in ("planned", "refused")]
    assert sorted(answer["id"] for answer in answers) == ["1", "2"]
