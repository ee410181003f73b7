"""What the recipe looks at: each picture's posterior in its bucket, each caption's conditioning, from the cache on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainer.adapter.targets import part_rates, part_sizes
from trainer.config import TrainConfig
from trainer.dataset.augmentations import Variant, mask_of, mask_weights, variants_of
from trainer.dataset.buckets import BucketPlan, Placement, crop_notice
from trainer.dataset.caption_rules import CaptionRules
from trainer.dataset.manifest import Item, Manifest
from trainer.dataset.pictures import open_picture
from trainer.errors import DatasetError
from trainer.hardware.compile import check_compiler
from trainer.hardware.device import dtype_of, find_device
from trainer.hardware.precision import precision_for
from trainer.planning.memory import Shape, caption_bytes, latent_bytes
from trainer.planning.plan import Plan, plan
from trainer.runs.commands import StopSignal
from trainer.runs.run import Run
from trainer.sdxl.base import Base, open_base
from trainer.sdxl.latents import pixels, posterior
from trainer.sdxl.text import Conditioning, Reading, encode, tokens_cut
from trainer.training.batches import Batches
from trainer.training.feature_cache import Cache, Latents
from trainer.training.objective import objective_of
from trainer.training.optim import build_optimizer
from trainer.training.prefetch import Behind, ahead
from trainer.training.preflight import rehearse
from trainer.training.samples import largest_drawing, sample_requests
from trainer.training.text_conditioning import MAX_TEXTS, drawable_captions
from trainer.training.trackers import check_tracker


@dataclass(frozen=True)
class Shown:
    """One form of one picture, with its posterior in memory: half a megabyte at 1024 px."""

    item: Item
    variant: Variant
    mean: torch.Tensor  # (1, C, H/8, W/8)
    logvar: torch.Tensor
    mask: torch.Tensor | None  # (1, 1, H/8, W/8) in [0, 1]: how much each place counts


@dataclass(frozen=True)
class Pictures:
    """The pictures that train, each once for each resolution."""

    items: tuple[Item, ...]
    shown: tuple[tuple[Shown, ...], ...]  # the forms of each item, all of one bucket
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

    shown: tuple[Shown, ...]
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
                [item.height, item.width, v.placement.crop_top, v.crop_left, v.placement.bucket[1], v.placement.bucket[0]]
                for item, v in ((shown.item, shown.variant) for shown in self.shown)
            ],
            dtype=torch.float32,
        )

    def masks(self, whole: list[bool]) -> torch.Tensor | None:
        """(N, 1, H/8, W/8), ones for the rows of `whole`; None when no picture has a mask."""
        if all(shown.mask is None for shown in self.shown):
            return None
        ones = torch.ones(1, 1, *self.shown[0].mean.shape[-2:])
        return torch.cat([ones if shown.mask is None or all_of else shown.mask for shown, all_of in zip(self.shown, whole, strict=True)])

    def weights(self, base_prior: list[bool], prior_weight: float) -> torch.Tensor:
        """(N,) weight of each picture's loss; `prior_weight` for rows that teach the base's own answer."""
        return torch.tensor([prior_weight if prior else item.weight for item, prior in zip(self.items, base_prior, strict=True)])


def resolution_of(config: TrainConfig, base: Base) -> int:
    return config.resolution or base.native_size


def bucket_plan(config: TrainConfig, base: Base, side: int = 0) -> BucketPlan:
    return BucketPlan(
        side=side or resolution_of(config, base), latent_factor=base.latent_factor, bucket_step=config.bucket_step,
        bucket_min=config.bucket_min, bucket_max=config.bucket_max, no_upscale=config.no_upscale,
    )  # fmt: skip


def placements(config: TrainConfig, base: Base, items: tuple[Item, ...]) -> list[tuple[Item, Placement]]:
    """Each picture at each resolution, the first resolution first. Raises ConfigError."""
    planned = []
    for side in config.resolutions or (resolution_of(config, base),):
        sizes, crops = [(item.width, item.height) for item in items], [item.crop for item in items]
        planned += zip(items, bucket_plan(config, base, side).place_all(sizes, crops), strict=True)
    return planned


def planned_for(config: TrainConfig, manifest: Manifest, base: Base, device: torch.device, kept: Path) -> Plan:
    """What this training will take. Raises ConfigError when the device has not enough memory for it."""
    placed = placements(config, base, manifest.items)
    width, height = max((placement.bucket for _, placement in placed), key=lambda bucket: bucket[0] * bucket[1])
    learnt = [(item, placement.bucket) for item, placement in placed if item.role != "validation"]
    batches = Batches(tuple(item for item, _ in learnt), tuple(bucket for _, bucket in learnt), config.batch, config.seed)
    trains_text = config.train_text_encoder_1 or config.train_text_encoder_2
    drawable = set() if trains_text else drawable_captions(CaptionRules(config), batches, config.steps * config.accumulation)
    drawn, rows = largest_drawing(sample_requests(config, manifest, base), base)
    shape = Shape(
        configs=base.configs, dtype=precision_for(config.precision, device, base.configs, kept), width=width, height=height,
        windows=config.caption_windows, reads_text=trains_text or drawable is None, drawn=drawn, drawn_rows=rows,
    )  # fmt: skip
    cached = MAX_TEXTS * caption_bytes(shape) if drawable is None else 0
    if device.type == "cpu":  # what comes from disk stays in main memory
        forms = sum(len(variants_of(config, item, placement)) for item, placement in placed)
        cached += len(drawable or ()) * caption_bytes(shape) + forms * latent_bytes(shape)
    return plan(config, shape, device, kept, cached=cached)


def preflight(config: TrainConfig, manifest: Manifest, models: Path, kept: Path) -> Plan:
    """What the training will take. Raises the TrainerError that would end it at once, before the run is written.

    Args:
        kept: the folder of caches.
    """
    base = open_base(config.base, models)
    device = find_device()
    dtype_of(config.precision, device)
    placements(config, base, manifest.items)
    objective_of(config, base)
    sample_requests(config, manifest, base)
    check_masks(config, manifest.trained)
    check_tracker(config)
    check_compiler(config, device)
    rehearse(config, base)
    rates = part_rates(config)
    build_optimizer(config, [{"params": [torch.zeros(1, requires_grad=True)], "lr": rates[part]} for part in part_sizes(config)], device)
    return planned_for(config, manifest, base, device, kept)


def cache_latents(
    run: Run, items: tuple[Item, ...], config: TrainConfig, base: Base, cache: Cache, device: torch.device, stop: StopSignal
) -> Pictures:
    """Posteriors of all pictures in all their forms; the VAE is loaded only when some are missing.

    Raises DatasetError when no picture is left, or none has a mask and masks are asked for.
    """
    check_masks(config, items)
    encoder = _Encoder(base, device, cache.tile)
    planned = placements(config, base, items)
    notice = crop_notice([item.name for item in items], [placement for _, placement in planned[: len(items)]])
    if notice:
        run.say("problem", message=notice)
    found: list[tuple[Item, tuple[Shown, ...]]] = []
    reading = ahead(lambda pair: _looked_at(config, cache, *pair), planned)
    with contextlib.closing(reading) as looked, Behind() as behind:
        for number, ((item, _), future) in enumerate(looked, start=1):
            if stop.asked():
                break
            try:
                mask, seen = future.result()
            except (DatasetError, OSError) as error:
                run.say("problem", message=str(error) if isinstance(error, DatasetError) else f"{item.name} is gone, so it is left out")
                continue
            forms = []
            for variant, known in seen:
                latents = encoder.posterior(known) if isinstance(known, Image.Image) else known
                if latents is not known:
                    behind.do(cache.keep_latents, item, variant, latents)
                forms.append(Shown(item, variant, latents[0], latents[1], _mask_tensor(mask, variant, base, config)))
            found.append((item, tuple(forms)))
            run.say("stage", stage="caching pictures", done=number, total=len(planned))
    if not found and not stop.asked():
        raise DatasetError("none of the pictures can be read any more; put them back and start again")
    return Pictures(tuple(item for item, _ in found), tuple(forms for _, forms in found), base.latent_scaling)


def cache_set_aside(
    run: Run, manifest: Manifest, config: TrainConfig, base: Base, cache: Cache, device: torch.device, stop: StopSignal
) -> Pictures:
    """The pictures set aside, each in one plain form; none when the run sets none aside."""
    plain = dataclasses.replace(config, mask="none", flip=False, random_crop=False, colour_jitter=0.0, resolutions=config.resolutions[:1])
    if not manifest.set_aside:
        return Pictures((), (), base.latent_scaling)
    return cache_latents(run, manifest.set_aside, plain, base, cache, device, stop)


def check_masks(config: TrainConfig, items: tuple[Item, ...]) -> None:
    """Raises DatasetError when masks are asked for and no picture has one."""
    if config.mask != "none" and not any(_has_mask(config, item) for item in items):
        where = "a file like art.mask.png beside art.png" if config.mask == "file" else "a picture with transparency"
        raise DatasetError(f"no picture has a mask; give {where}, or set mask to none")


def _has_mask(config: TrainConfig, item: Item) -> bool:
    try:
        return mask_of(config, item) is not None
    except DatasetError:  # told when the picture itself is read
        return False


def _looked_at(
    config: TrainConfig, cache: Cache, item: Item, placement: Placement
) -> tuple[Image.Image | None, list[tuple[Variant, Latents | Image.Image]]]:
    """A picture's mask, and each of its forms: what the cache has of it, or else how it is shown. Raises DatasetError or OSError."""
    mask, picture, seen = mask_of(config, item), None, []
    for variant in variants_of(config, item, placement):
        known = cache.latents(item, variant)
        if known is None and picture is None:
            if hashlib.sha256(Path(item.path).read_bytes()).hexdigest() != item.digest:
                raise DatasetError(f"{item.name} has changed since the training was set up, so it is left out; start a new training")
            picture = open_picture(Path(item.path))
        seen.append((variant, variant.shown(picture) if known is None and picture else known))
    return mask, seen


class _Encoder:
    """The VAE, loaded when the first picture is missing from the cache."""

    def __init__(self, base: Base, device: torch.device, tile: int) -> None:
        self.base, self.device, self.tile, self.vae = base, device, tile, None

    def posterior(self, picture: Image.Image) -> Latents:
        if self.vae is None:
            self.vae = self.base.vae(self.device)
        return posterior(self.vae, pixels(picture), self.tile)


def _mask_tensor(mask: Image.Image | None, variant: Variant, base: Base, config: TrainConfig) -> torch.Tensor | None:
    if mask is None:
        return None
    return torch.from_numpy(mask_weights(mask, variant, cell=base.latent_factor, outside=config.mask_outside))[None, None]


def cache_text(
    run: Run, prompts: set[str], reading: Reading, base: Base, cache: Cache, device: torch.device, stop: StopSignal
) -> dict[str, Conditioning]:
    """Conditioning of each prompt; the encoders are loaded only when some are missing."""
    loaded: dict[str, Any] = {}

    def compute(prompt: str) -> Conditioning:
        if not loaded:
            loaded.update(encoders=base.text_encoders(device, torch.float32), tokenizers=base.tokenizers())
        cut = tokens_cut(prompt, loaded["tokenizers"][0], reading)
        if cut:
            run.say(
                "problem",
                message=f"a caption is {cut} tokens too long and its end is not read (caption_windows {reading.windows + 1} would): {prompt[:60]}…",
            )
        with torch.inference_mode():
            return encode([prompt], loaded["tokenizers"], loaded["encoders"], reading)

    found = {}
    for number, prompt in enumerate(sorted(prompts), start=1):
        if stop.asked():
            break
        found[prompt] = cache.text(prompt, reading, lambda prompt=prompt: compute(prompt))
        run.say("stage", stage="caching captions", done=number, total=len(prompts))
    return found
