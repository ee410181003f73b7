"""Exposures: how often a preset's training sees each picture, whatever the shapes of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import MODELS
from trainer.config.presets import PRESETS, preset_values
from trainer.dataset.buckets import count_batches, small_buckets_notice
from trainer.dataset.exposures import EpochLength
from trainer.dataset.manifest import Item
from trainer.headers.base_model import bucket_geometry
from ui.store.project_settings import training_values

GEOMETRY = bucket_geometry("tiny-sdxl", MODELS)
# The bundled base has a bucket for each of these shapes.
SHAPES = ((256, 64), (64, 256), (224, 64), (64, 224), (192, 64), (64, 192), (160, 96), (96, 160), (128, 128))


def items(sizes: list[tuple[int, int]], **facts) -> tuple[Item, ...]:
    return tuple(
        Item(path=f"/{number}.png", caption="", width=width, height=height, digest=str(number), **facts)
        for number, (width, height) in enumerate(sizes)
    )


def epochs(pictures: tuple[Item, ...], preset: str, own: dict | None = None) -> float:
    """Returns how often a training with a preset sees each picture."""
    length = EpochLength(pictures, *GEOMETRY)
    repeated = sum(item.repeats for item in pictures)
    values = preset_values(preset, repeated, own, epoch_length=length)
    per_epoch = length(values) * -(-repeated // values["batch"])
    return values["steps"] * values.get("accumulation", 1) / per_epoch


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("own", [{}, {"batch": 1}, {"batch": 16}, {"pace": "quick"}, {"accumulation": 4}])
def test_each_picture_is_seen_equally_often_in_small_buckets_and_in_full_ones(preset: str, own: dict):
    thin, full = items(list(SHAPES)), items([(128, 128)] * len(SHAPES))
    assert epochs(thin, preset, own) == pytest.approx(epochs(full, preset, own), abs=1)


def test_full_buckets_leave_a_presets_steps_unchanged():
    pictures = items([(128, 128)] * 24)
    expected = preset_values("style", 24)["steps"]
    assert preset_values("style", 24, epoch_length=EpochLength(pictures, *GEOMETRY))["steps"] == expected


def test_small_buckets_lengthen_an_epoch_by_their_batches():
    length = EpochLength(items(list(SHAPES)), *GEOMETRY)
    assert length({"batch": 4}) == 9 / 3
    assert length({"batch": 1}) == 1
    assert EpochLength(items([(256, 64)] * 5 + [(64, 256)] * 3), *GEOMETRY)({"batch": 4}) == 3 / 2
    assert EpochLength(items(list(SHAPES), repeats=4), *GEOMETRY)({"batch": 4}) == 1
    assert EpochLength(items(list(SHAPES), role="validation"), *GEOMETRY)({"batch": 4}) == 1


def test_several_resolutions_count_as_that_many_epochs():
    length = EpochLength(items([(128, 128)] * 8), *GEOMETRY)
    assert length({"batch": 4, "resolutions": [64, 96]}) == 1


def test_accumulation_and_processes_share_the_batches_of_a_preset():
    one = preset_values("style", 24)["steps"]
    assert preset_values("style", 24, {"accumulation": 2})["steps"] == one // 2
    assert preset_values("style", 24, processes=4)["steps"] == one // 4


def test_the_page_counts_the_buckets_of_a_folder_like_the_command_line(tmp_path: Path):
    for number, size in enumerate(SHAPES):
        Image.new("RGB", size, "red").save(tmp_path / f"{number}.png")
    values = training_values(tmp_path, {"preset": "style", "base": "tiny-sdxl"}, MODELS)
    length = EpochLength(items(list(SHAPES)), *GEOMETRY)
    assert values["steps"] == preset_values("style", 9, epoch_length=length)["steps"]


def test_batches_hold_pictures_of_one_bucket():
    assert count_batches([((64, 64), 5), ((96, 64), 1), ((96, 64), 2)], 4) == 3


def test_small_buckets_are_named_with_their_effect():
    buckets = [((64, 256), 1), ((256, 64), 3), ((128, 128), 5)]
    notice = small_buckets_notice(buckets, 4)
    assert notice
    assert "64x256 (1), 256x64 (3); " in notice
    assert "4 batches instead of 3" in notice
    assert "128x128" not in notice
    assert small_buckets_notice(buckets, 1) is None
    assert small_buckets_notice([((64, 64), 4)], 4) is None


def test_many_small_buckets_are_counted():
    notice = small_buckets_notice([((64 * side, 64), 1) for side in range(1, 10)], 2)
    assert notice
    assert "384x64 (1), 3 more;" in notice
