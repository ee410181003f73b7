"""Settings of pictures: augmentations, aspect ratio buckets and resolutions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trainer.config import declaration
from trainer.config.declaration import Bounds

setting = partial(declaration.setting, group="dataset")


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """Settings of augmentation and bucketing."""

    flip: bool = setting(
        False,
        "Flip augmentation",
        help="Also trains on mirrored pictures. Not for text, asymmetric faces or designs.",
    )
    random_crop: bool = setting(
        False,
        "Random crop",
        help="Crops a picture to its bucket at a random position instead of the centre.",
    )
    colour_jitter: float = setting(
        0.0,
        "Colour augmentation",
        bounds=Bounds(0.0, 0.5),
        help="Largest random change of brightness, contrast and saturation; hue changes a fifth as much. "
        "Not for styles with a palette of their own.",
    )
    variants: int = setting(
        4,
        "Cached variants",
        bounds=Bounds(1, 64, "per picture"),
        help="Number of random crops and colours of each picture whose latents are cached. More gives more "
        "variety and a longer preparation.",
    )
    resolutions: tuple[int, ...] = setting(
        (),
        "Multiple resolutions",
        bounds=Bounds(64, 4096, "px"),
        help="Trains each picture at each of these resolutions, such as [768, 1024]; replaces resolution.",
    )
    bucket_step: int = setting(
        64,
        "Bucket resolution steps",
        bounds=Bounds(8, 512, "px"),
        help="Bucket sides are multiples of this. Smaller steps crop less and give more buckets; the base "
        "model sets the smallest possible step.",
    )
    bucket_min: int = setting(
        0,
        "Minimum bucket resolution",
        bounds=Bounds(0, 8192, "px"),
        help="Shortest side of a bucket; 0 takes half of the resolution.",
    )
    bucket_max: int = setting(
        0,
        "Maximum bucket resolution",
        bounds=Bounds(0, 8192, "px"),
        help="Longest side of a bucket; 0 takes twice the resolution.",
    )
    no_upscale: bool = setting(
        False,
        "Don't upscale bucket resolution",
        help="Puts a picture that is smaller than the resolution into a bucket of its own size instead of "
        "enlarging it.",
    )
