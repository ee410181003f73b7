"""Exposures: how often a training sees each picture, from the batches that its buckets make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config import config_from
from trainer.dataset.buckets import bucket_plan_of, count_batches
from trainer.dataset.manifest import Item

# Settings that decide how pictures are put together.
_SETTINGS = ("batch", "resolution", "resolutions", "bucket_step", "bucket_min", "bucket_max", "no_upscale")


@dataclass(frozen=True)
class EpochLength:
    """The length of an epoch of these pictures, of which validation images are no part.

    Attributes:
        native_side: native resolution of the base model in px.
        latent_factor: px per latent cell.
    """

    items: tuple[Item, ...]
    native_side: int
    latent_factor: int

    def __call__(self, values: Mapping[str, Any]) -> float:
        """Returns the batches of an epoch divided by those that the same pictures fill in a single bucket.

        1 where every bucket is full; `batch` where each picture has a bucket of its own. An epoch at several
        resolutions shows each picture once at each of them and counts as that many epochs.

        Args:
            values: settings of a training; missing ones have their default.

        Raises:
            ConfigError: a setting is invalid, or no bucket fits the settings.
        """
        config = config_from({name: values[name] for name in _SETTINGS if name in values})
        items = [item for item in self.items if item.role != "validation"]
        sizes, repeats = [(item.width, item.height) for item in items], [item.repeats for item in items]
        full = -(-sum(repeats) // config.batch)
        if not full:
            return 1.0
        sides, batches = config.resolutions or (0,), 0
        for side in sides:
            plan = bucket_plan_of(config, self.native_side, self.latent_factor, side=side)
            buckets = [placement.bucket for placement in plan.place_all(sizes)]
            batches += count_batches(zip(buckets, repeats, strict=True), config.batch)
        return batches / (full * len(sides))
