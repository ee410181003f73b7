"""The forms in which a picture is shown: as it is, mirrored, cropped elsewhere, in other colours; and where it counts."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from trainer.config import TrainConfig
from trainer.dataset.buckets import Placement
from trainer.dataset.manifest import Item
from trainer.dataset.pictures import open_alpha, open_picture


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How one picture meets its bucket."""

    placement: Placement
    is_mirrored: bool = False
    colours: tuple[float, float, float, float] = (
        1.0,
        1.0,
        1.0,
        0.0,
    )  # brightness, contrast, saturation, turn of the hue

    @property
    def is_plain(self) -> bool:
        return not self.is_mirrored and self.colours == (1.0, 1.0, 1.0, 0.0)

    @property
    def crop_left(self) -> int:
        """As seen: what a mirror leaves at the left was cut at the right."""
        at = self.placement
        return at.resized[0] - at.bucket[0] - at.crop_left if self.is_mirrored else at.crop_left

    def apply(self, picture: Image.Image) -> Image.Image:
        """The picture in its bucket."""
        at = self.placement
        if picture.size != at.resized:
            picture = picture.resize(at.resized, Image.Resampling.LANCZOS)
        picture = picture.crop(
            (at.crop_left, at.crop_top, at.crop_left + at.bucket[0], at.crop_top + at.bucket[1])
        )
        if self.is_mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture if picture.mode != "RGB" or self.is_plain else self._coloured(picture)

    def _coloured(self, picture: Image.Image) -> Image.Image:
        brightness, contrast, saturation, turn = self.colours
        for enhancer, factor in (
            (ImageEnhance.Brightness, brightness),
            (ImageEnhance.Contrast, contrast),
            (ImageEnhance.Color, saturation),
        ):
            picture = enhancer(picture).enhance(factor)
        if not turn:
            return picture
        hue, *rest = picture.convert("HSV").split()
        hue = hue.point([round(value + 256 * turn) % 256 for value in range(256)])
        return Image.merge("HSV", (hue, *rest)).convert("RGB")


def augmentations_of(config: TrainConfig, item: Item, placement: Placement) -> list[Augmentation]:
    """All forms of a picture: the same for the same bytes and settings, whatever the seed, so that the cache serves other runs."""
    chosen = [Augmentation(placement=placement)]
    if config.random_crop or config.colour_jitter:
        chosen = [
            _varied(config, placement, random.Random(f"{item.digest}/{number}"))
            for number in range(config.variants)
        ]
        chosen = list(dict.fromkeys(chosen))
    if config.flip:
        chosen += [dataclasses.replace(variant, is_mirrored=True) for variant in chosen]
    return chosen


def _varied(config: TrainConfig, placement: Placement, chance: random.Random) -> Augmentation:
    places = chance.random(), chance.random()
    if config.random_crop:
        spare = placement.resized[0] - placement.bucket[0], placement.resized[1] - placement.bucket[1]
        left, top = (int(place * (room + 1)) for place, room in zip(places, spare, strict=True))
        placement = dataclasses.replace(placement, crop_left=left, crop_top=top)
    if not config.colour_jitter:
        return Augmentation(placement=placement)
    brightness, contrast, saturation = (1 + config.colour_jitter * chance.uniform(-1, 1) for _ in range(3))
    return Augmentation(
        placement=placement,
        colours=(brightness, contrast, saturation, config.colour_jitter / 5 * chance.uniform(-1, 1)),
    )


def mask_file(picture: Path) -> Path | None:
    """`art.mask.png` beside `art.png`, or `masks/art.png`; None when there is neither."""
    names = (picture.with_name(f"{picture.stem}.mask.png"), picture.parent / "masks" / f"{picture.stem}.png")
    return next((path for path in names if path.is_file()), None)


def mask_of(config: TrainConfig, item: Item) -> Image.Image | None:
    """Where a picture counts, white for wholly; None when it has no mask. Raises DatasetError when its file can't be read."""
    if config.mask == "none" or item.role == "class":
        return None
    if config.mask == "alpha":
        return open_alpha(Path(item.path))
    path = mask_file(Path(item.path))
    return open_picture(path).convert("L") if path else None


def mask_weights(mask: Image.Image, variant: Augmentation, *, cell: int, outside: float) -> np.ndarray:
    """Weights (H / cell, W / cell) in [outside, 1]: the mask placed like its picture, averaged over each latent cell of `cell` px."""
    placed = variant.apply(mask)
    small = np.asarray(placed.reduce(cell), dtype=np.float32) / 255
    return outside + (1 - outside) * small
