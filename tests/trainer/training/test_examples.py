"""Placement of a training's images in its buckets, by its settings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import MODELS
from trainer.config import TrainConfig
from trainer.dataset.buckets import Placement
from trainer.dataset.manifest import Item
from trainer.sdxl.base import open_base
from trainer.training.examples import placements

SIZES = ((640, 512), (512, 640), (700, 500), (1500, 500), (500, 2000), (600, 600))


def placed(**settings: Any) -> list[Placement]:
    """Placements of images of SIZES at a resolution of 512 px."""
    items = tuple(
        Item(path=f"/{number}.png", caption="", width=width, height=height, digest="")
        for number, (width, height) in enumerate(SIZES)
    )
    config = TrainConfig(resolution=512, **settings)
    return [placement for _, placement in placements(config, open_base("tiny-sdxl", MODELS), items)]


@pytest.mark.parametrize("step", [32, 64, 128])
def test_sides_of_buckets_are_multiples_of_bucket_step(step: int):
    sides = [side for placement in placed(bucket_step=step) for side in placement.bucket]
    assert all(side % step == 0 for side in sides)
    # A smaller step allows other sides: without an effect, all sides would be multiples of the largest step.
    assert any(side % (2 * step) for side in sides)


def test_a_smaller_bucket_step_crops_less():
    fine, coarse = (sum(p.cropped_share for p in placed(bucket_step=step)) for step in (16, 128))
    assert fine < 0.5 * coarse


def test_no_side_of_a_bucket_exceeds_bucket_max():
    unlimited, limited = placed(), placed(bucket_max=640)
    assert max(side for placement in unlimited for side in placement.bucket) > 640
    assert max(side for placement in limited for side in placement.bucket) == 640
