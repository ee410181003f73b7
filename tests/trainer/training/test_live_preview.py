"""Pictures drawn while a training runs: answered, cancelled, refused, and without a trace in the file."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import INK, MODELS
from trainer.config import config_from
from trainer.config.presets import preset_values
from trainer.dataset.scan import scan
from trainer.runs import events, run
from trainer.sampling_config import SamplingConfig
from trainer.train import train
from trainer.training import checkpoint as state

pytestmark = pytest.mark.usefixtures("shared_cache")


def trained(path: Path, wishes: list[dict], **settings) -> run.Run:
    values = {
        "network": "lora",
        "steps": 3,
        "batch": 2,
        "resolution": 64,
        "precision": "fp32",
        "rank": 2,
        "sample_prompts": ("a star --w 64 --h 64 --s 1",),
        "name": "lora",
        **settings,
    }
    made = run.create(path, config_from({**preset_values("style", 24), **values}), scan(INK))
    for wish in wishes:
        events.append(made.commands, wish.pop("kind"), **wish)
    assert train(made, MODELS, commands_offset=0) == "finished"
    return made


def weights(made: run.Run) -> str:
    return hashlib.sha256((state.checkpoints(made)[0] / "adapter.safetensors").read_bytes()).hexdigest()


def test_a_picture_between_two_steps_changes_no_byte_of_the_training(tmp_path: Path):
    request = dataclasses.asdict(
        SamplingConfig(prompts=("a cat never seen",), strengths=(0.0, 1.0), steps=2, sampler="euler_a")
    )
    wishes = [
        {"kind": "draw", "id": "good", "request": request, "out": str(tmp_path / "good")},
        {"kind": "draw", "id": "gone", "request": request, "out": str(tmp_path / "gone")},
        {"kind": "cancel", "id": "gone"},
        {"kind": "draw", "id": "bad", "request": {**request, "steps": 0}, "out": str(tmp_path / "bad")},
    ]
    # Dropout draws in every step: a stream that pictures disturbed would show.
    plain = trained(tmp_path / "plain", [], network_dropout=0.1)
    asked = trained(tmp_path / "run", wishes, network_dropout=0.1)
    assert weights(asked) == weights(plain)
    said = {
        event["id"]: event
        for event in events.read(asked.events)[0]
        if event["kind"] in ("drawn", "cancelled", "failed")
    }
    assert {name: event["kind"] for name, event in said.items()} == {
        "good": "drawn",
        "gone": "cancelled",
        "bad": "failed",
    }
    assert "steps must be from 1 to 200" in said["bad"]["message"]
    assert [Image.open(tmp_path / "good" / name).size for name in said["good"]["pictures"]] == [
        (128, 128)
    ] * 2
    assert not (tmp_path / "gone").exists()
    told = [
        event["done"]
        for event in events.read(asked.events)[0]
        if event["kind"] == "drawing" and event["id"] == "good"
    ]
    assert told == [0, 1, 2]
