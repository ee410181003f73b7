"""Settings of single pictures (repeats, crops) reach the manifest and the buckets."""

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


def folder(tmp_path: Path, overrides: Any) -> Path:
    (tmp_path / "3_cats").mkdir()
    Image.new("RGB", (700, 100)).save(tmp_path / "wide.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "3_cats" / "tom.png")
    (tmp_path / ".impasto" / "removed").mkdir(parents=True)
    Image.new("RGB", (100, 100)).save(tmp_path / ".impasto" / "removed" / "out.png")
    (tmp_path / ".impasto" / "pictures.json").write_text(json.dumps(overrides))
    return tmp_path


def test_repeats_multiply_and_removed_pictures_are_left_out(tmp_path: Path):
    manifest = scan(
        folder(
            tmp_path,
            {"wide.png": {"repeats": 2}, "3_cats/tom.png": {"repeats": 5}, "gone.png": {"repeats": 9}},
        )
    )
    assert {item.name: item.repeats for item in manifest.items} == {"wide.png": 2, "tom.png": 15}


def test_a_moved_crop_reaches_the_manifest_and_the_placement(tmp_path: Path):
    manifest = scan(folder(tmp_path, {"wide.png": {"crop": [1, 0.5]}}))
    wide = next(item for item in manifest.items if item.name == "wide.png")
    assert wide.crop == (1.0, 0.5)
    plan = BucketPlan(side=128, latent_factor=8)
    moved, middle = (plan.place_all([(700, 100)], [crop])[0] for crop in (wide.crop, None))
    assert moved.bucket == middle.bucket
    assert moved.crop_left == 2 * middle.crop_left == moved.resized[0] - moved.bucket[0] > 0
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_a_manifest_without_crops_is_written_as_by_earlier_versions():
    item = Item(path="/a.png", caption="a", width=1, height=1, digest="d")
    content = Manifest(folder="/", items=(item,)).to_json()
    assert "crop" not in content["items"][0]
    assert Manifest.from_json(content).items[0] == item


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_crop_stays_inside_the_picture_and_half_is_the_centre(share: float):
    plan = BucketPlan(side=128, latent_factor=8)
    at = plan.place_all([(333, 97)], [(share, 0.5)])[0]
    assert 0 <= at.crop_left <= at.resized[0] - at.bucket[0]
    assert 0 <= at.crop_top <= at.resized[1] - at.bucket[1]
    if share == 0.5:
        assert abs(at.crop_left - plan.place_all([(333, 97)])[0].crop_left) <= 1


@given(JSON)
def test_any_json_gives_a_valid_override(content: Any):
    override = override_from(content)
    assert 1 <= override.repeats <= 100
    assert override.crop is None or all(0 <= part <= 1 for part in override.crop)


@given(st.integers(1, 100), st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_an_override_survives_a_round_trip_through_json(repeats: int, crop: tuple[float, float] | None):
    assert override_from(json.loads(json.dumps(Override(repeats, crop).to_json()))) == Override(repeats, crop)


@pytest.mark.parametrize(
    "text", ["", "[]", "[[[", "null", '{"a": 3}', '{"a": {"repeats": true, "crop": [2, 0]}}']
)
def test_a_damaged_file_gives_default_overrides(tmp_path: Path, text: str):
    (tmp_path / ".impasto").mkdir()
    (tmp_path / ".impasto" / "pictures.json").write_text(text)
    assert all(override == Override() for override in read_overrides(tmp_path).values())
