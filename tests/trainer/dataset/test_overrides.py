"""Repeats and crops that an artist chose for single pictures reach the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.dataset.buckets import BucketPlan
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.overrides import Override, override_from, read_overrides
from trainer.dataset.scan import scan

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["repeats", "crop", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def folder(tmp_path: Path, choices: Any) -> Path:
    (tmp_path / "3_cats").mkdir()
    Image.new("RGB", (700, 100)).save(tmp_path / "wide.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "3_cats" / "tom.png")
    (tmp_path / ".impasto" / "removed").mkdir(parents=True)
    Image.new("RGB", (100, 100)).save(tmp_path / ".impasto" / "removed" / "out.png")
    (tmp_path / ".impasto" / "pictures.json").write_text(json.dumps(choices))
    return tmp_path


def test_repeats_multiply_and_removed_pictures_do_not_train(tmp_path: Path):
    found = scan(
        folder(
            tmp_path,
            {"wide.png": {"repeats": 2}, "3_cats/tom.png": {"repeats": 5}, "gone.png": {"repeats": 9}},
        )
    )
    assert {item.name: item.repeats for item in found.items} == {"wide.png": 2, "tom.png": 15}


def test_a_moved_crop_reaches_the_bucket_and_the_manifest(tmp_path: Path):
    found = scan(folder(tmp_path, {"wide.png": {"crop": [1, 0.5]}}))
    wide = next(item for item in found.items if item.name == "wide.png")
    assert wide.crop == (1.0, 0.5)
    plan = BucketPlan(side=128, latent_factor=8)
    moved, middle = (plan.place_all([(700, 100)], [crop])[0] for crop in (wide.crop, None))
    assert moved.bucket == middle.bucket
    assert moved.crop_left == 2 * middle.crop_left == moved.resized[0] - moved.bucket[0] > 0
    assert Manifest.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_manifest_without_crops_is_what_it_was_before_there_were_any():
    item = Item(path="/a.png", caption="a", width=1, height=1, digest="d")
    facts = Manifest(folder="/", items=(item,)).to_json()
    assert "crop" not in facts["items"][0]
    assert Manifest.from_json(facts).items[0] == item


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_centre_is_the_centre(share: float):
    plan = BucketPlan(side=128, latent_factor=8)
    at = plan.place_all([(333, 97)], [(share, 0.5)])[0]
    assert 0 <= at.crop_left <= at.resized[0] - at.bucket[0]
    assert 0 <= at.crop_top <= at.resized[1] - at.bucket[1]
    if share == 0.5:
        assert abs(at.crop_left - plan.place_all([(333, 97)])[0].crop_left) <= 1


@given(JSON)
def test_any_file_of_choices_is_read(facts: Any):
    choice = override_from(facts)
    assert 1 <= choice.repeats <= 100
    assert choice.crop is None or all(0 <= part <= 1 for part in choice.crop)


@given(st.integers(1, 100), st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_choice_survives_being_written(repeats: int, crop: tuple[float, float] | None):
    assert override_from(json.loads(json.dumps(Override(repeats, crop).to_json()))) == Override(repeats, crop)


@pytest.mark.parametrize(
    "text", ["", "[]", "[[[", "null", '{"a": 3}', '{"a": {"repeats": true, "crop": [2, 0]}}']
)
def test_a_damaged_file_of_choices_is_as_if_there_were_none(tmp_path: Path, text: str):
    (tmp_path / ".impasto").mkdir()
    (tmp_path / ".impasto" / "pictures.json").write_text(text)
    assert all(choice == Override() for choice in read_overrides(tmp_path).values())
