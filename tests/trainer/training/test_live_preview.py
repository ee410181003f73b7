"""Images generated during a training: finished, cancelled or rejected, without an effect on the file."""

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


def trained(path: Path, commands: list[dict], **settings) -> run.Run:
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
    new_run = run.create(path, config_from({**preset_values("style", 24), **values}), scan(INK))
    for command in commands:
        events.append(new_run.commands, command.pop("kind"), **command)
    assert train(new_run, MODELS, commands_offset=0) == "finished"
    return new_run


def weights(finished: run.Run) -> str:
    """Hash of the newest checkpoint's weights."""
    return hashlib.sha256((state.checkpoints(finished)[0] / "adapter.safetensors").read_bytes()).hexdigest()


def test_an_image_generated_between_two_steps_changes_no_byte_of_the_weights(tmp_path: Path):
    request = dataclasses.asdict(
        SamplingConfig(prompts=("a cat never seen",), strengths=(0.0, 1.0), steps=2, sampler="euler_a")
    )
    commands = [
        {"kind": "draw", "id": "good", "request": request, "out": str(tmp_path / "good")},
        {"kind": "draw", "id": "gone", "request": request, "out": str(tmp_path / "gone")},
        {"kind": "cancel", "id": "gone"},
        {"kind": "draw", "id": "bad", "request": {**request, "steps": 0}, "out": str(tmp_path / "bad")},
    ]
    # Dropout draws random numbers in every step, so another generator state would change the weights.
    plain = trained(tmp_path / "plain", [], network_dropout=0.1)
    with_images = trained(tmp_path / "run", commands, network_dropout=0.1)
    assert weights(with_images) == weights(plain)
    written = events.read(with_images.events)[0]
    last = {event["id"]: event for event in written if event["kind"] in ("drawn", "cancelled", "failed")}
    kinds = {request_id: event["kind"] for request_id, event in last.items()}
    assert kinds == {"good": "drawn", "gone": "cancelled", "bad": "failed"}
    assert "steps must be from 1 to 200" in last["bad"]["message"]
    sizes = [Image.open(tmp_path / "good" / name).size for name in last["good"]["pictures"]]
    assert sizes == [(128, 128)] * 2
    assert not (tmp_path / "gone").exists()
    progress = [event for event in written if event["kind"] == "drawing" and event["id"] == "good"]
    assert [event["done"] for event in progress] == [0, 1, 2]
