"""What the recipe looks at: each picture's posterior in its bucket, each caption's conditioning, from the cache on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.adapter.targets import part_rates, part_sizes
from trainer.cache import Cache
from trainer.config import TrainConfig
from trainer.dataset.buckets import Placement, Plan, crop_notice
from trainer.dataset.manifest import Manifest
from trainer.dataset.pictures import open_picture
from trainer.device import dtype_of, find_device
from trainer.errors import DatasetError
from trainer.optim import build_optimizer
from trainer.run import Run
from trainer.sdxl.base import Base, open_base
from trainer.sdxl.latents import placed, posterior
from trainer.sdxl.text import Conditioning, encode, tokens_cut
from trainer.stop import StopSignal


@dataclass(frozen=True)
class Pictures:
    """The pictures that train, with their posteriors in memory: half a megabyte each at 1024 px."""

    items: tuple[Any, ...]
    placements: tuple[Placement, ...]
    means: tuple[torch.Tensor, ...]
    logvars: tuple[torch.Tensor, ...]
    scaling: float

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        return tuple(placement.bucket for placement in self.placements)

    def latents(self, rows: list[int], generator: torch.Generator) -> torch.Tensor:
        """A fresh draw from each picture's posterior, scaled (N, C, H/8, W/8)."""
        mean = torch.cat([self.means[row] for row in rows])
        deviation = (0.5 * torch.cat([self.logvars[row] for row in rows])).exp()
        return (mean + deviation * torch.randn(mean.shape, generator=generator)) * self.scaling

    def time_ids(self, rows: list[int]) -> torch.Tensor:
        """(N, 6): original height and width, crop top and left, target height and width (Podell et al. 2023, 2.2)."""
        return torch.tensor(
            [
                [self.items[r].height, self.items[r].width, p.crop_top, p.crop_left, p.bucket[1], p.bucket[0]]
                for r, p in ((r, self.placements[r]) for r in rows)
            ],
            dtype=torch.float32,
        )

    def bucket_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for width, height in self.buckets:
            counts[f"{width}x{height}"] = counts.get(f"{width}x{height}", 0) + 1
        return counts


def resolution_of(config: TrainConfig, base: Base) -> int:
    return config.resolution or base.native_size


def bucket_plan(config: TrainConfig, base: Base) -> Plan:
    return Plan(
        side=resolution_of(config, base), latent_factor=base.latent_factor, bucket_step=config.bucket_step,
        bucket_min=config.bucket_min, bucket_max=config.bucket_max, no_upscale=config.no_upscale,
    )  # fmt: skip


def preflight(config: TrainConfig, manifest: Manifest, models: Path) -> None:
    """Raises the TrainerError that would end this training at once, before anything is written."""
    base = open_base(config.base, models)
    device = find_device()
    dtype_of(config.precision, device)
    bucket_plan(config, base).place_all([(item.width, item.height) for item in manifest.items])
    rates = part_rates(config)
    build_optimizer(config, [{"params": [torch.zeros(1, requires_grad=True)], "lr": rates[part]} for part in part_sizes(config)], device)


def cache_latents(
    run: Run, manifest: Manifest, config: TrainConfig, base: Base, cache: Cache, device: torch.device, stop: StopSignal
) -> Pictures:
    """Posteriors of all pictures; the VAE is loaded only when some are missing. Raises DatasetError when none is left."""
    items, placements, means, logvars = [], [], [], []
    loaded: dict[str, Any] = {}
    planned = bucket_plan(config, base).place_all([(item.width, item.height) for item in manifest.items])
    notice = crop_notice([item.name for item in manifest.items], planned)
    if notice:
        run.say("problem", message=notice)
    for number, (item, placement) in enumerate(zip(manifest.items, planned, strict=True), start=1):
        if stop.asked():
            break

        def compute(item: Any = item, placement: Placement = placement) -> tuple[torch.Tensor, torch.Tensor]:
            if "vae" not in loaded:
                loaded["vae"] = base.vae(device)
            if hashlib.sha256(Path(item.path).read_bytes()).hexdigest() != item.digest:
                raise DatasetError(f"{item.name} has changed since the training was set up, so it is left out; start a new training")
            return posterior(loaded["vae"], placed(open_picture(Path(item.path)), placement))

        try:
            mean, logvar = cache.latents(item, placement, compute)
        except (DatasetError, OSError) as error:
            run.say("problem", message=str(error) if isinstance(error, DatasetError) else f"{item.name} is gone, so it is left out")
            continue
        items.append(item)
        placements.append(placement)
        means.append(mean)
        logvars.append(logvar)
        run.say("stage", stage="caching pictures", done=number, total=len(manifest.items))
    if not items and not stop.asked():
        raise DatasetError("none of the pictures can be read any more; put them back and start again")
    return Pictures(tuple(items), tuple(placements), tuple(means), tuple(logvars), base.latent_scaling)


def cache_text(run: Run, prompts: list[str], base: Base, cache: Cache, device: torch.device, stop: StopSignal) -> dict[str, Conditioning]:
    """Conditioning of each prompt; the encoders are loaded only when some are missing."""
    loaded: dict[str, Any] = {}

    def compute(prompt: str) -> Conditioning:
        if not loaded:
            loaded.update(encoders=base.text_encoders(device, torch.float32), tokenizers=base.tokenizers())
        cut = tokens_cut(prompt, loaded["tokenizers"][0])
        if cut:
            run.say("problem", message=f"a caption is {cut} tokens too long and its end is not read: {prompt[:60]}…")
        with torch.inference_mode():
            return encode([prompt], loaded["tokenizers"], loaded["encoders"])

    found = {}
    for number, prompt in enumerate(prompts, start=1):
        if stop.asked():
            break
        found[prompt] = cache.text(prompt, lambda prompt=prompt: compute(prompt))
        run.say("stage", stage="caching captions", done=number, total=len(prompts))
    return found
