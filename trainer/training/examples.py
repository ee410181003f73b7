"""Training examples: cached latents of each image in its bucket, and the batches made of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from trainer.config import TrainConfig
from trainer.dataset.augmentations import Augmentation
from trainer.dataset.buckets import BucketPlan, Placement, bucket_plan_of
from trainer.dataset.manifest import Item
from trainer.sdxl.base import Base
from trainer.training.batches import Batches


@dataclass(frozen=True)
class TrainingExample:
    """One augmentation of one image, with its posterior in memory: half a megabyte at 1024 px."""

    item: Item
    augmentation: Augmentation
    mean: torch.Tensor  # (1, C, H/8, W/8)
    logvar: torch.Tensor
    mask: torch.Tensor | None  # (1, 1, H/8, W/8) in [0, 1], the weight of each latent cell in the loss


@dataclass(frozen=True)
class LatentDataset:
    """The images of a training, each once for each resolution."""

    items: tuple[Item, ...]
    examples: tuple[tuple[TrainingExample, ...], ...]  # the augmentations of each item, all of one bucket
    scaling: float

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each item in px."""
        return tuple(examples[0].augmentation.placement.bucket for examples in self.examples)

    def batches(self, size: int, seed: int) -> Batches:
        """Returns the order of batches of `size` images, a function of the seed."""
        return Batches(self.items, self.buckets, size, seed)

    def batch(self, rows: list[int], seed: int, position: int) -> Batch:
        """Returns the batch at `position` with one random augmentation of each of its images.

        Args:
            rows: indices of items.
        """
        generator = random.Random(f"{seed}/variant/{position}")
        return Batch(tuple(generator.choice(self.examples[row]) for row in rows), self.scaling)


@dataclass(frozen=True)
class Batch:
    """Examples of one bucket for one micro-step."""

    examples: tuple[TrainingExample, ...]
    scaling: float

    @property
    def items(self) -> list[Item]:
        """The images."""
        return [example.item for example in self.examples]

    @property
    def names(self) -> list[str]:
        """The file names of the images."""
        return [item.name for item in self.items]

    def latents(self, generator: torch.Generator) -> torch.Tensor:
        """Returns a new sample of each image's posterior, scaled (N, C, H/8, W/8)."""
        mean = torch.cat([example.mean for example in self.examples])
        deviation = (0.5 * torch.cat([example.logvar for example in self.examples])).exp()
        return (mean + deviation * torch.randn(mean.shape, generator=generator)) * self.scaling

    def time_ids(self) -> torch.Tensor:
        """Returns (N, 6): original height and width, crop top and left, target height and width.

        Podell et al. 2023, section 2.2.
        """
        return torch.tensor([_time_ids(example) for example in self.examples], dtype=torch.float32)

    def masks(self, whole: list[bool]) -> torch.Tensor | None:
        """Returns (N, 1, H/8, W/8), with ones in the rows of `whole`, or None when no image has a mask."""
        if all(example.mask is None for example in self.examples):
            return None
        ones = torch.ones(1, 1, *self.examples[0].mean.shape[-2:])
        masks = [
            ones if example.mask is None or is_whole else example.mask
            for example, is_whole in zip(self.examples, whole, strict=True)
        ]
        return torch.cat(masks)

    def weights(self, is_base_prior: list[bool], prior_weight: float) -> torch.Tensor:
        """Returns each row's loss weight (N,): `prior_weight` where the target is the base's prediction."""
        weights = [
            prior_weight if is_prior else item.weight
            for item, is_prior in zip(self.items, is_base_prior, strict=True)
        ]
        return torch.tensor(weights)


def _time_ids(example: TrainingExample) -> list[int]:
    item, augmentation = example.item, example.augmentation
    placement = augmentation.placement
    width, height = placement.bucket
    return [item.height, item.width, placement.crop_top, augmentation.crop_left, height, width]


def resolution_of(config: TrainConfig, base: Base) -> int:
    """Returns the side in px of the square whose area images are resized to."""
    return config.resolution or base.native_size


def bucket_plan(config: TrainConfig, base: Base, side: int = 0) -> BucketPlan:
    """Returns the buckets of a training at resolution `side`; 0: at the config's own."""
    return bucket_plan_of(config, base.native_size, base.latent_factor, side=side)


def placements(config: TrainConfig, base: Base, items: tuple[Item, ...]) -> list[tuple[Item, Placement]]:
    """Returns each image at each resolution, all images of the first resolution first.

    Raises:
        ConfigError: no bucket fits the settings.
    """
    result = []
    sizes, crops = [(item.width, item.height) for item in items], [item.crop for item in items]
    for side in config.resolutions or (resolution_of(config, base),):
        result += zip(items, bucket_plan(config, base, side).place_all(sizes, crops), strict=True)
    return result
