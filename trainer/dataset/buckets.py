"""Aspect-ratio buckets of constant area: pictures of similar shape train together, and little of them is
cropped.

The scheme is that of NovelAI (2022, "NovelAI improvements on Stable Diffusion"), as kohya's trainers use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.config import TrainConfig
from trainer.errors import ConfigError

_NOTABLE_CROP = 0.05  # share of a picture's area
_NAMED_BUCKETS = 6  # in a message


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Resizing and cropping of a picture to its bucket.

    The picture is resized to cover the bucket, then cropped, around the centre unless the artist moved the
    crop. `crop_left` and `crop_top` are in pixels of the resized picture, the unit of SDXL's
    micro-conditioning (Podell et al. 2023, section 2.2). `repr()` of this class is part of the key of cached
    latents (trainer/training/feature_cache.py): a renamed field makes every cache useless.
    """

    bucket: tuple[int, int]  # (width, height)
    resized: tuple[int, int]  # (width, height)
    crop_left: int
    crop_top: int

    @property
    def cropped_share(self) -> float:
        """Share of the picture's area that is cut off."""
        return 1 - (self.bucket[0] * self.bucket[1]) / (self.resized[0] * self.resized[1])


def bucket_sizes(resolution: int, *, step: int, low: int, high: int) -> list[tuple[int, int]]:
    """Returns the (width, height) of all buckets, sorted.

    Sides are multiples of `step` from `low` to `high`; areas are at most resolution squared. There is one
    bucket for each width, with the largest possible height, and its counterpart with the sides exchanged.
    """
    area, sizes = resolution * resolution, set()
    for width in range(_round_up(low, step), high + 1, step):
        height = min(high, area // width) // step * step
        if height >= low:
            sizes |= {(width, height), (height, width)}
    side = resolution // step * step
    if low <= side <= high and side:
        sizes.add((side, side))
    return sorted(sizes)


def place(
    width: int,
    height: int,
    sizes: list[tuple[int, int]],
    *,
    step: int,
    no_upscale: bool = False,
    crop: tuple[float, float] | None = None,
) -> Placement:
    """Places a picture into the bucket with the nearest aspect ratio, compared by logarithms.

    Args:
        sizes: buckets, from `bucket_sizes`.
        step: sides of buckets are multiples of this; with `no_upscale`, small pictures get a smaller bucket
            of their own.
        crop: share of the excess that is cut off at the left and at the top; None centres the crop.
    """
    aspect = math.log(width / height)
    bucket = min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1]))
    if no_upscale and (width < bucket[0] or height < bucket[1]):
        bucket = (
            max(step, min(width, bucket[0]) // step * step),
            max(step, min(height, bucket[1]) // step * step),
        )
    scale = max(bucket[0] / width, bucket[1] / height)
    resized = (max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale)))
    spare = resized[0] - bucket[0], resized[1] - bucket[1]
    if crop is None:
        left, top = spare[0] // 2, spare[1] // 2
    else:
        left, top = round(spare[0] * crop[0]), round(spare[1] * crop[1])
    return Placement(bucket=bucket, resized=resized, crop_left=left, crop_top=top)


@dataclass(frozen=True, kw_only=True)
class BucketPlan:
    """Rules for the buckets of one training."""

    side: int  # of the training area in px
    latent_factor: int  # px per latent cell
    bucket_step: int = 64
    bucket_min: int = 0  # 0: half of `side`
    bucket_max: int = 0  # 0: twice `side`
    no_upscale: bool = False

    @property
    def step(self) -> int:
        """`bucket_step`, but at most a quarter of `side` (for small bases), rounded down to whole latent
        cells.
        """
        return max(
            self.latent_factor,
            min(self.bucket_step, self.side // 4) // self.latent_factor * self.latent_factor,
        )

    def place_all(
        self, sizes: list[tuple[int, int]], crops: Sequence[tuple[float, float] | None] = ()
    ) -> list[Placement]:
        """Returns a placement for each picture.

        Args:
            sizes: (width, height) of each picture.
            crops: as in `place`, for each picture; () centres all.

        Raises:
            ConfigError: no bucket lies within the limits.
        """
        low, high = self.bucket_min or self.side // 2, self.bucket_max or self.side * 2
        buckets = bucket_sizes(self.side, step=self.step, low=low, high=high)
        if not buckets:
            raise ConfigError(
                [
                    f"no bucket of {self.side} x {self.side} px area has sides from {low} to {high}; "
                    "widen bucket_min and bucket_max"
                ]
            )
        return [
            place(width, height, buckets, step=self.step, no_upscale=self.no_upscale, crop=crop)
            for (width, height), crop in zip(sizes, crops or [None] * len(sizes), strict=True)
        ]


def bucket_plan_of(config: TrainConfig, native_side: int, latent_factor: int, *, side: int = 0) -> BucketPlan:
    """Returns the buckets of a training.

    Args:
        native_side: native resolution of the base model in px.
        latent_factor: px per latent cell.
        side: resolution; 0 takes the config's own, and without one the native resolution.
    """
    return BucketPlan(
        side=side or config.resolution or native_side,
        latent_factor=latent_factor,
        bucket_step=config.bucket_step,
        bucket_min=config.bucket_min,
        bucket_max=config.bucket_max,
        no_upscale=config.no_upscale,
    )


def count_batches(buckets: Iterable[tuple[tuple[int, int], int]], batch: int) -> int:
    """Returns the number of batches in which each picture occurs as often as it is repeated.

    A batch holds pictures of one bucket, so each bucket's last batch may be smaller.

    Args:
        buckets: (bucket, repeats) of each picture.
    """
    return sum(-(-count // batch) for count in _pictures_per_bucket(buckets).values())


def small_buckets_notice(buckets: Sequence[tuple[tuple[int, int], int]], batch: int) -> str | None:
    """Returns a sentence on the buckets with fewer pictures than a batch; None if there are none.

    Args:
        buckets: (bucket, repeats) of each picture.
    """
    counts = _pictures_per_bucket(buckets)
    small = [(size, count) for size, count in sorted(counts.items()) if count < batch]
    if not small:
        return None
    names = [f"{width}x{height} ({count})" for (width, height), count in small[:_NAMED_BUCKETS]]
    more = [f"{len(small) - _NAMED_BUCKETS} more"] if len(small) > _NAMED_BUCKETS else []
    batches, full = count_batches(buckets, batch), -(-sum(counts.values()) // batch)
    epoch = f", and an epoch takes {batches} batches instead of {full}" if batches > full else ""
    return (
        f"buckets with fewer pictures than the batch size {batch}: {', '.join(names + more)}; their batches are "
        f"smaller{epoch}. A preset's steps include this; with steps of your own, each picture is seen less "
        "often. Lower the batch size or crop the pictures to similar shapes"
    )


def _pictures_per_bucket(buckets: Iterable[tuple[tuple[int, int], int]]) -> dict[tuple[int, int], int]:
    counts: dict[tuple[int, int], int] = {}
    for bucket, repeats in buckets:
        counts[bucket] = counts.get(bucket, 0) + repeats
    return counts


def crop_notice(names: list[str], placements: list[Placement]) -> str | None:
    """Returns a sentence on the pictures that lose more than 5 % of their area; None if there are none."""
    shares = [(placement.cropped_share, name) for name, placement in zip(names, placements, strict=True)]
    cropped = [(share, name) for share, name in shares if share > _NOTABLE_CROP]
    if not cropped:
        return None
    share, name = max(cropped)
    return (
        f"{len(cropped)} of {len(names)} pictures lose more than 5 % at their edges, "
        f"most of all {name} ({share:.0%})"
    )


def _round_up(value: int, step: int) -> int:
    return max(step, -(-value // step) * step)
