"""Inputs of a training: what changed between its first start and its continuation is reported once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import INK
from trainer.config import TrainConfig
from trainer.dataset.overrides import IMPASTO_FOLDER
from trainer.dataset.scan import scan
from trainer.runs import events, run
from trainer.runs.inputs import open_inputs

NAMES = ("bell", "cactus", "key", "owl", "star")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "art"
    made.mkdir()
    for name in NAMES:
        shutil.copy(INK / f"{name}.png", made)
        (made / f"{name}.txt").write_text(f"a {name}")
        Image.new("L", (512, 512), 200).save(made / f"{name}.mask.png")
    return made


@pytest.fixture
def begun(folder: Path, tmp_path: Path) -> run.Run:
    """A run that has started once."""
    new_run = run.create(tmp_path / "run", TrainConfig(), scan(folder))
    assert not open_inputs(new_run).is_continued
    return new_run


def problems(of: run.Run) -> list[str]:
    return [event["message"] for event in events.read(of.events)[0] if event["kind"] == "problem"]


def test_unchanged_inputs_are_no_problem(begun: run.Run, folder: Path):
    (folder / "owl.png").touch()  # another time, the same bytes
    assert open_inputs(begun).is_continued
    assert problems(begun) == []


def test_each_kind_of_change_is_named_in_one_problem_with_what_is_done(begun: run.Run, folder: Path):
    for name in NAMES:
        (folder / f"{name}.txt").write_text("a red thing")
    Image.new("L", (512, 512), 9).save(folder / "bell.mask.png")
    Image.new("RGB", (512, 512), "red").save(folder / "key.png")
    for suffix in (".png", ".txt", ".mask.png"):
        (folder / f"star{suffix}").unlink()
    (folder / IMPASTO_FOLDER).mkdir()
    (folder / IMPASTO_FOLDER / "pictures.json").write_text('{"cactus.png": {"repeats": 2}}')
    open_inputs(begun)
    (message,) = problems(begun)
    assert "captions of bell.png, cactus.png, key.png and 1 more have changed" in message
    assert "continues with the captions that it began with" in message
    assert "masks of bell.png have changed" in message
    assert "continues with the masks that it began with" in message
    assert "repeats of cactus.png have changed" in message
    assert "key.png has changed" in message
    assert "star.png is missing" in message
    assert "Start a new training" in message


def test_a_mask_that_is_added_or_removed_is_a_change(begun: run.Run, folder: Path):
    (folder / "bell.mask.png").unlink()
    open_inputs(begun)
    assert "masks of bell.png" in problems(begun)[0]


def test_a_caption_saved_with_other_line_ends_is_unchanged(begun: run.Run, folder: Path):
    (folder / "owl.txt").write_bytes(b"\xef\xbb\xbfa owl\r\n")
    open_inputs(begun)
    assert problems(begun) == []


def test_captions_of_metadata_jsonl_are_compared(folder: Path, tmp_path: Path):
    (folder / "owl.txt").unlink()
    rows = folder / "metadata.jsonl"
    rows.write_text(json.dumps({"file_name": "owl.png", "text": "an owl"}))
    begun = run.create(tmp_path / "run", TrainConfig(), scan(folder))
    open_inputs(begun)
    rows.write_text(json.dumps({"file_name": "owl.png", "text": "a bird"}))
    open_inputs(begun)
    assert "captions of owl.png" in problems(begun)[0]


def test_pictures_of_a_run_of_version_0_1_are_compared_with_its_manifest(folder: Path, tmp_path: Path):
    begun = run.create(tmp_path / "run", TrainConfig(), scan(folder))
    (begun.checkpoints / "step-1").mkdir()
    (folder / "owl.png").unlink()
    open_inputs(begun)
    assert "owl.png is missing" in problems(begun)[0]
