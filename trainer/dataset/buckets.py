"""Aspect-ratio buckets at constant area: pictures of like shape train together, and little is cropped."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a picture meets its bucket: resized to cover it, then cropped about the centre.

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
    if side:
        sizes.add((side, side))
    return sorted(sizes)


def place(width: int, height: int, sizes: list[tuple[int, int]], *, step: int, no_upscale: bool = False) -> Placement:
    """The bucket whose shape is nearest to the picture's, by the logarithm of the aspect ratio."""
    aspect = math.log(width / height)
    bucket = min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1]))
    if no_upscale and (width < bucket[0] or height < bucket[1]):
        bucket = (max(step, min(width, bucket[0]) // step * step), max(step, min(height, bucket[1]) // step * step))
    scale = max(bucket[0] / width, bucket[1] / height)
    resized = (max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale)))
    return Placement(
        bucket=bucket,
        resized=resized,
        crop_left=(resized[0] - bucket[0]) // 2,
        crop_top=(resized[1] - bucket[1]) // 2,
    )


def _up(value: int, step: int) -> int:
    return max(step, -(-value // step) * step)
