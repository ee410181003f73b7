"""Every file that a training writes records the version that wrote it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image
from safetensors import safe_open

from tests.conftest import ROOT
from trainer import SOFTWARE, __version__


def test_run_checkpoint_lora_and_image_record_the_version(ink_run: Path):
    events = [json.loads(line) for line in (ink_run / "events.jsonl").read_text().splitlines()]
    assert next(event for event in events if event["kind"] == "started")["version"] == __version__
    checkpoint = max((ink_run / "checkpoints").iterdir())
    assert json.loads((checkpoint / "state.json").read_text())["version"] == __version__
    with safe_open(ink_run / "ink.safetensors", "pt") as lora:
        assert lora.metadata()["modelspec.implementation"] == SOFTWARE
    picture = next((ink_run / "samples").rglob("p00*.png"))
    with Image.open(picture) as image:
        assert image.info["Software"] == SOFTWARE


def test_the_studio_prints_its_version():
    command = [sys.executable, "app.py", "--version"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() == SOFTWARE
