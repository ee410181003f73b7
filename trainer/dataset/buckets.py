"""Aspect-ratio buckets at constant area: pictures of like shape train together, and little is cropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a picture meets its bucket: resized to cover it, then cropped, about the centre unless the artist chose a place.

    `crop_left` and `crop_top` are in pixels of the resized picture, as SDXL's micro-conditioning wants them
    (Podell et al. 2023, section 2.2).
    """

    bucket: tuple[int, int]  # (width, height)
    resized: tuple[int, int]
    crop_left: int
    crop_top: int

    @property
    def cropped_share(self) -> float:
        """Share of the picture's area that is cut away."""
        return 1 - (self.bucket[0] * self.bucket[1]) / (self.resized[0] * self.resized[1])


def bucket_sizes(resolution: int, *, step: int, low: int, high: int) -> list[tuple[int, int]]:
    """All (width, height), multiples of `step` from `low` to `high`, whose area is at most resolution squared.

    For each width the tallest height that fits; and the mirror images.
    """
    area, sizes = resolution * resolution, set()
    for width in range(_up(low, step), high + 1, step):
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
    """The bucket whose shape is nearest to the picture's, by the logarithm of the aspect ratio.

    Args:
        crop: share of the spare room that is cut at the left and at the top; None: the centre.
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
    left, top = (
        (spare[0] // 2, spare[1] // 2)
        if crop is None
        else (round(spare[0] * crop[0]), round(spare[1] * crop[1]))
    )
    return Placement(bucket=bucket, resized=resized, crop_left=left, crop_top=top)


@dataclass(frozen=True, kw_only=True)
class BucketPlan:
    """Which buckets a training has: a base's side in px and px per latent cell, and the user's limits (0: derived)."""

    side: int
    latent_factor: int
    bucket_step: int = 64
    bucket_min: int = 0
    bucket_max: int = 0
    no_upscale: bool = False

    @property
    def step(self) -> int:
        """The asked one, or a quarter of a small base's side; whole latent cells."""
        return max(
            self.latent_factor,
            min(self.bucket_step, self.side // 4) // self.latent_factor * self.latent_factor,
        )

    def place_all(
        self, sizes: list[tuple[int, int]], crops: Sequence[tuple[float, float] | None] = ()
    ) -> list[Placement]:
        """A placement for each picture's (width, height) and crop. Raises ConfigError when the limits leave no bucket."""
        low, high = self.bucket_min or self.side // 2, self.bucket_max or self.side * 2
        buckets = bucket_sizes(self.side, step=self.step, low=low, high=high)
        if not buckets:
            raise ConfigError(
                [
                    f"no bucket of {self.side} x {self.side} px area has sides from {low} to {high}; widen bucket_min and bucket_max"
                ]
            )
        return [
            place(width, height, buckets, step=self.step, no_upscale=self.no_upscale, crop=crop)
            for (width, height), crop in zip(sizes, crops or [None] * len(sizes), strict=True)
        ]


def crop_notice(names: list[str], placements: list[Placement]) -> str | None:
    """A sentence on the pictures that lose more than 5 % of their area; None when there are none."""
    cut = sorted(
        (
            (p.cropped_share, name)
            for name, p in zip(names, placements, strict=True)
            if p.cropped_share > 0.05
        ),
        reverse=True,
    )
    if not cut:
        return None
    share, most = cut[0]
    return f"{len(cut)} of {len(names)} pictures lose more than 5 % at their edges, most of all {most} ({share:.0%})"


def _up(value: int, step: int) -> int:
    return max(step, -(-value // step) * step)
