"""Augmentations of a picture (mirroring, random crops, colour jitter) and the masks that weigh its loss."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from trainer.config import TrainConfig
from trainer.dataset.buckets import Placement
from trainer.dataset.folder import mask_file
from trainer.dataset.manifest import Item
from trainer.dataset.masks import read_mask
from trainer.dataset.pictures import open_alpha

_UNCHANGED_COLOURS = (1.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One way to turn a picture into pixels of its bucket."""

    placement: Placement
    is_mirrored: bool = False
    # Factors of brightness, contrast and saturation (1: unchanged), and the rotation of the hue as a share of
    # the circle.
    colours: tuple[float, float, float, float] = _UNCHANGED_COLOURS

    @property
    def is_plain(self) -> bool:
        """Returns whether the picture is only resized and cropped."""
        return not self.is_mirrored and self.colours == _UNCHANGED_COLOURS

    @property
    def crop_left(self) -> int:
        """Pixels cut off at the left of the picture as the model sees it; after mirroring, those cut at the
        right.
        """
        placement = self.placement
        if self.is_mirrored:
            return placement.resized[0] - placement.bucket[0] - placement.crop_left
        return placement.crop_left

    def apply(self, picture: Image.Image) -> Image.Image:
        """Returns the picture at the size of its bucket. Colours change in RGB pictures only, not in masks
        ("L").
        """
        width, height = self.placement.bucket
        left, top = self.placement.crop_left, self.placement.crop_top
        if picture.size != self.placement.resized:
            picture = picture.resize(self.placement.resized, Image.Resampling.LANCZOS)
        picture = picture.crop((left, top, left + width, top + height))
        if self.is_mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture if picture.mode != "RGB" or self.is_plain else self._with_colours(picture)

    def _with_colours(self, picture: Image.Image) -> Image.Image:
        brightness, contrast, saturation, hue_rotation = self.colours
        for enhancer, factor in (
            (ImageEnhance.Brightness, brightness),
            (ImageEnhance.Contrast, contrast),
            (ImageEnhance.Color, saturation),
        ):
            picture = enhancer(picture).enhance(factor)
        if not hue_rotation:
            return picture
        hue, *rest = picture.convert("HSV").split()
        hue = hue.point([round(value + 256 * hue_rotation) % 256 for value in range(256)])
        return Image.merge("HSV", (hue, *rest)).convert("RGB")


def augmentations_of(config: TrainConfig, item: Item, placement: Placement) -> list[Augmentation]:
    """Returns all augmentations of a picture.

    They depend on the picture's bytes and the settings but not on the seed, so that cached latents serve
    other runs.
    """
    augmentations = [Augmentation(placement=placement)]
    if config.random_crop or config.colour_jitter:
        augmentations = [
            _draw_augmentation(config, placement, random.Random(f"{item.digest}/{number}"))
            for number in range(config.variants)
        ]
        augmentations = list(dict.fromkeys(augmentations))  # without duplicates, in order
    if config.flip:
        augmentations += [dataclasses.replace(one, is_mirrored=True) for one in augmentations]
    return augmentations


def _draw_augmentation(config: TrainConfig, placement: Placement, rng: random.Random) -> Augmentation:
    # Drawn also without random_crop: the colours of a picture must not depend on that setting.
    shares = rng.random(), rng.random()
    if config.random_crop:
        spare = placement.resized[0] - placement.bucket[0], placement.resized[1] - placement.bucket[1]
        left, top = (int(share * (pixels + 1)) for share, pixels in zip(shares, spare, strict=True))
        placement = dataclasses.replace(placement, crop_left=left, crop_top=top)
    if not config.colour_jitter:
        return Augmentation(placement=placement)
    brightness, contrast, saturation = (1 + config.colour_jitter * rng.uniform(-1, 1) for _ in range(3))
    hue_rotation = config.colour_jitter / 5 * rng.uniform(-1, 1)
    return Augmentation(placement=placement, colours=(brightness, contrast, saturation, hue_rotation))


def mask_of(config: TrainConfig, item: Item) -> Image.Image | None:
    """Returns the mask of a picture, "L", in which white counts fully; None without a mask.

    Class images have no masks. Raises DatasetError if the mask's file can't be used (`read_mask`).
    """
    if config.mask == "none" or item.role == "class":
        return None
    if config.mask == "alpha":
        return open_alpha(Path(item.path))
    path = mask_file(Path(item.path))
    return read_mask(path, (item.width, item.height)) if path else None


def mask_weights(mask: Image.Image, augmentation: Augmentation, *, cell: int, outside: float) -> np.ndarray:
    """Returns loss weights in [outside, 1], shape (height / cell, width / cell) of the bucket.

    The mask is augmented like its picture and averaged over each latent cell.

    Args:
        cell: side of a latent cell in px.
        outside: weight of black areas.
    """
    cells = np.asarray(augmentation.apply(mask).reduce(cell), dtype=np.float32) / 255
    return outside + (1 - outside) * cells
