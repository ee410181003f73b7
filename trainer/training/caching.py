"""What the recipe looks at: each picture's posterior in its bucket, each caption's conditioning, from the cache on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainer.config import TrainConfig
from trainer.dataset.augmentations import Augmentation, augmentations_of, mask_of, mask_weights
from trainer.dataset.buckets import Placement, crop_notice
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.pictures import open_picture
from trainer.errors import DatasetError
from trainer.runs.commands import CommandInbox
from trainer.runs.run import Run
from trainer.sdxl.base import Base
from trainer.sdxl.latents import encode_image, to_pixels
from trainer.sdxl.text import Conditioning, PromptEncoding, count_truncated_tokens, encode
from trainer.training.examples import LatentDataset, TrainingExample, placements
from trainer.training.feature_cache import FeatureCache, Latents
from trainer.training.prefetch import BackgroundWriter, prefetch
from trainer.training.preflight import check_masks


def cache_latents(
    run: Run,
    items: tuple[Item, ...],
    config: TrainConfig,
    base: Base,
    cache: FeatureCache,
    device: torch.device,
    stop: CommandInbox,
) -> LatentDataset:
    """Posteriors of all pictures in all their forms; the VAE is loaded only when some are missing.

    Raises DatasetError when no picture is left, or none has a mask and masks are asked for.
    """
    check_masks(config, items)
    encoder = _Encoder(base, device, cache.tile)
    planned = placements(config, base, items)
    notice = crop_notice([item.name for item in items], [placement for _, placement in planned[: len(items)]])
    if notice:
        run.emit("problem", message=notice)
    found: list[tuple[Item, tuple[TrainingExample, ...]]] = []
    reading = prefetch(lambda pair: _looked_at(config, cache, *pair), planned)
    with contextlib.closing(reading) as looked, BackgroundWriter() as behind:
        for number, ((item, _), future) in enumerate(looked, start=1):
            if stop.stop_requested():
                break
            try:
                mask, seen = future.result()
            except (DatasetError, OSError) as error:
                run.emit(
                    "problem",
                    message=str(error)
                    if isinstance(error, DatasetError)
                    else f"{item.name} is gone, so it is left out",
                )
                continue
            forms = []
            for variant, known in seen:
                latents = encoder.encode_image(known) if isinstance(known, Image.Image) else known
                if latents is not known:
                    behind.do(cache.store_latents, item, variant, latents)
                forms.append(
                    TrainingExample(
                        item, variant, latents[0], latents[1], _mask_tensor(mask, variant, base, config)
                    )
                )
            found.append((item, tuple(forms)))
            run.emit("stage", stage="caching pictures", done=number, total=len(planned))
    if not found and not stop.stop_requested():
        raise DatasetError("none of the pictures can be read any more; put them back and start again")
    return LatentDataset(
        tuple(item for item, _ in found), tuple(forms for _, forms in found), base.latent_scaling
    )


def cache_validation_latents(
    run: Run,
    manifest: Manifest,
    config: TrainConfig,
    base: Base,
    cache: FeatureCache,
    device: torch.device,
    stop: CommandInbox,
) -> LatentDataset:
    """The pictures set aside, each in one plain form; none when the run sets none aside."""
    plain = dataclasses.replace(
        config,
        mask="none",
        flip=False,
        random_crop=False,
        colour_jitter=0.0,
        resolutions=config.resolutions[:1],
    )
    if not manifest.validation_items:
        return LatentDataset((), (), base.latent_scaling)
    return cache_latents(run, manifest.validation_items, plain, base, cache, device, stop)


def _looked_at(
    config: TrainConfig, cache: FeatureCache, item: Item, placement: Placement
) -> tuple[Image.Image | None, list[tuple[Augmentation, Latents | Image.Image]]]:
    """A picture's mask, and each of its forms: what the cache has of it, or else how it is shown. Raises DatasetError or OSError."""
    mask, picture, seen = mask_of(config, item), None, []
    for variant in augmentations_of(config, item, placement):
        known = cache.latents(item, variant)
        if known is None and picture is None:
            if hashlib.sha256(Path(item.path).read_bytes()).hexdigest() != item.digest:
                raise DatasetError(
                    f"{item.name} has changed since the training was set up, so it is left out; start a new training"
                )
            picture = open_picture(Path(item.path))
        seen.append((variant, variant.apply(picture) if known is None and picture else known))
    return mask, seen


class _Encoder:
    """The VAE, loaded when the first picture is missing from the cache."""

    def __init__(self, base: Base, device: torch.device, tile: int) -> None:
        self.base, self.device, self.tile, self.vae = base, device, tile, None

    def encode_image(self, picture: Image.Image) -> Latents:
        if self.vae is None:
            self.vae = self.base.vae(self.device)
        return encode_image(self.vae, to_pixels(picture), self.tile)


def _mask_tensor(
    mask: Image.Image | None, variant: Augmentation, base: Base, config: TrainConfig
) -> torch.Tensor | None:
    if mask is None:
        return None
    return torch.from_numpy(
        mask_weights(mask, variant, cell=base.latent_factor, outside=config.mask_outside)
    )[None, None]


def cache_text(
    run: Run,
    prompts: set[str],
    reading: PromptEncoding,
    base: Base,
    cache: FeatureCache,
    device: torch.device,
    stop: CommandInbox,
) -> dict[str, Conditioning]:
    """Conditioning of each prompt; the encoders are loaded only when some are missing."""
    loaded: dict[str, Any] = {}

    def compute(prompt: str) -> Conditioning:
        if not loaded:
            loaded.update(encoders=base.text_encoders(device, torch.float32), tokenizers=base.tokenizers())
        cut = count_truncated_tokens(prompt, loaded["tokenizers"][0], reading)
        if cut:
            run.emit(
                "problem",
                message=f"a caption is {cut} tokens too long and its end is not read (caption_windows {reading.windows + 1} would): {prompt[:60]}…",
            )
        with torch.inference_mode():
            return encode([prompt], loaded["tokenizers"], loaded["encoders"], reading)

    found = {}
    for number, prompt in enumerate(sorted(prompts), start=1):
        if stop.stop_requested():
            break
        found[prompt] = cache.text(prompt, reading, lambda prompt=prompt: compute(prompt))
        run.emit("stage", stage="caching captions", done=number, total=len(prompts))
    return found
