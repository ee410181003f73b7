"""Training examples: cached latents of each picture in its bucket, and the batches made of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from trainer.config import TrainConfig
from trainer.dataset.augmentations import Augmentation
from trainer.dataset.buckets import BucketPlan, Placement
from trainer.dataset.manifest import Item
from trainer.sdxl.base import Base


@dataclass(frozen=True)
class TrainingExample:
    """One form of one picture, with its posterior in memory: half a megabyte at 1024 px."""

    item: Item
    variant: Augmentation
    mean: torch.Tensor  # (1, C, H/8, W/8)
    logvar: torch.Tensor
    mask: torch.Tensor | None  # (1, 1, H/8, W/8) in [0, 1]: how much each place counts


@dataclass(frozen=True)
class LatentDataset:
    """The pictures that train, each once for each resolution."""

    items: tuple[Item, ...]
    shown: tuple[tuple[TrainingExample, ...], ...]  # the forms of each item, all of one bucket
    scaling: float

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        return tuple(forms[0].variant.placement.bucket for forms in self.shown)

    def draw(self, rows: list[int], seed: int, position: int) -> Batch:
        """One form of each picture of the batch at `position`."""
        chance = random.Random(f"{seed}/variant/{position}")
        return Batch(tuple(chance.choice(self.shown[row]) for row in rows), self.scaling)

    def bucket_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for width, height in self.buckets:
            counts[f"{width}x{height}"] = counts.get(f"{width}x{height}", 0) + 1
        return counts


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket that a step looks at together."""

    shown: tuple[TrainingExample, ...]
    scaling: float

    @property
    def items(self) -> list[Item]:
        return [shown.item for shown in self.shown]

    @property
    def names(self) -> list[str]:
        return [item.name for item in self.items]

    def latents(self, generator: torch.Generator) -> torch.Tensor:
        """A fresh draw from each picture's posterior, scaled (N, C, H/8, W/8)."""
        mean = torch.cat([shown.mean for shown in self.shown])
        deviation = (0.5 * torch.cat([shown.logvar for shown in self.shown])).exp()
        return (mean + deviation * torch.randn(mean.shape, generator=generator)) * self.scaling

    def time_ids(self) -> torch.Tensor:
        """(N, 6): original height and width, crop top and left, target height and width (Podell et al. 2023, 2.2)."""
        return torch.tensor(
            [
                [
                    item.height,
                    item.width,
                    v.placement.crop_top,
                    v.crop_left,
                    v.placement.bucket[1],
                    v.placement.bucket[0],
                ]
                for item, v in ((shown.item, shown.variant) for shown in self.shown)
            ],
            dtype=torch.float32,
        )

    def masks(self, whole: list[bool]) -> torch.Tensor | None:
        """(N, 1, H/8, W/8), ones for the rows of `whole`; None when no picture has a mask."""
        if all(shown.mask is None for shown in self.shown):
            return None
        ones = torch.ones(1, 1, *self.shown[0].mean.shape[-2:])
        return torch.cat(
            [
                ones if shown.mask is None or all_of else shown.mask
                for shown, all_of in zip(self.shown, whole, strict=True)
            ]
        )

    def weights(self, base_prior: list[bool], prior_weight: float) -> torch.Tensor:
        """(N,) weight of each picture's loss; `prior_weight` for rows that teach the base's own answer."""
        return torch.tensor(
            [
                prior_weight if prior else item.weight
                for item, prior in zip(self.items, base_prior, strict=True)
            ]
        )


def resolution_of(config: TrainConfig, base: Base) -> int:
    return config.resolution or base.native_size


def bucket_plan(config: TrainConfig, base: Base, side: int = 0) -> BucketPlan:
    return BucketPlan(
        side=side or resolution_of(config, base),
        latent_factor=base.latent_factor,
        bucket_step=config.bucket_step,
        bucket_min=config.bucket_min,
        bucket_max=config.bucket_max,
        no_upscale=config.no_upscale,
    )


def placements(config: TrainConfig, base: Base, items: tuple[Item, ...]) -> list[tuple[Item, Placement]]:
    """Each picture at each resolution, the first resolution first. Raises ConfigError."""
    planned = []
    for side in config.resolutions or (resolution_of(config, base),):
        sizes, crops = [(item.width, item.height) for item in items], [item.crop for item in items]
        planned += zip(items, bucket_plan(config, base, side).place_all(sizes, crops), strict=True)
    return planned
