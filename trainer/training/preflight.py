"""The adapter on a base's shapes alone: what would end a training at its start, found before anything is written."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_specs, part_rates, part_specs
from trainer.config import TrainConfig
from trainer.dataset.augmentations import augmentations_of, mask_of
from trainer.dataset.caption_rules import CaptionRules
from trainer.dataset.manifest import Item, Manifest
from trainer.errors import DatasetError
from trainer.hardware.compile import check_compiler
from trainer.hardware.device import find_device, resolve_dtype
from trainer.hardware.precision import precision_for
from trainer.lora_file.attach import start_from
from trainer.planning.memory import WorkloadShape, caption_bytes, latent_bytes
from trainer.planning.plan import Plan, plan
from trainer.sdxl.base import Base, open_base
from trainer.sdxl.weights import build
from trainer.training.batches import Batches
from trainer.training.examples import placements
from trainer.training.objective import objective_of
from trainer.training.optim import build_optimizer
from trainer.training.samples import largest_sample, sample_configs
from trainer.training.text_conditioning import MAX_CACHED_PROMPTS, training_captions
from trainer.training.trackers import check_tracker


def check_layers(config: TrainConfig, base: Base) -> None:
    """Raises the ConfigError or LoraFileError of a choice of layers or a start that doesn't fit the base."""
    if not (
        config.include_layers
        or config.exclude_layers
        or config.block_ranks
        or config.block_rates
        or config.start_from
    ):
        return
    models, adapter = {part: build(part, base.configs) for part in part_specs(config)}, Adapter()
    for part, sizes in layer_specs(config, models).items():
        adapter.attach(part, models[part], sizes)
    if config.start_from:
        start_from(Path(config.start_from), adapter)


def plan_training(
    config: TrainConfig, manifest: Manifest, base: Base, device: torch.device, kept: Path
) -> Plan:
    """What this training will take. Raises ConfigError when the device has not enough memory for it."""
    placed = placements(config, base, manifest.items)
    width, height = max(
        (placement.bucket for _, placement in placed), key=lambda bucket: bucket[0] * bucket[1]
    )
    learnt = [(item, placement.bucket) for item, placement in placed if item.role != "validation"]
    batches = Batches(
        tuple(item for item, _ in learnt), tuple(bucket for _, bucket in learnt), config.batch, config.seed
    )
    trains_text = config.train_text_encoder_1 or config.train_text_encoder_2
    drawable = (
        set()
        if trains_text
        else training_captions(CaptionRules(config), batches, config.steps * config.accumulation)
    )
    drawn, rows = largest_sample(sample_configs(config, manifest, base), base)
    shape = WorkloadShape(
        configs=base.configs,
        dtype=precision_for(config.precision, device, base.configs, kept),
        width=width,
        height=height,
        windows=config.caption_windows,
        reads_text=trains_text or drawable is None,
        drawn=drawn,
        drawn_rows=rows,
    )
    cached = MAX_CACHED_PROMPTS * caption_bytes(shape) if drawable is None else 0
    if device.type == "cpu":  # what comes from disk stays in main memory
        forms = sum(len(augmentations_of(config, item, placement)) for item, placement in placed)
        cached += len(drawable or ()) * caption_bytes(shape) + forms * latent_bytes(shape)
    return plan(config, shape, device, kept, cached=cached)


def preflight(config: TrainConfig, manifest: Manifest, models: Path, kept: Path) -> Plan:
    """What the training will take. Raises the TrainerError that would end it at once, before the run is written.

    Args:
        kept: the folder of caches.
    """
    base = open_base(config.base, models)
    device = find_device()
    resolve_dtype(config.precision, device)
    placements(config, base, manifest.items)
    objective_of(config, base)
    sample_configs(config, manifest, base)
    check_masks(config, manifest.training_items)
    check_tracker(config)
    check_compiler(config, device)
    check_layers(config, base)
    rates = part_rates(config)
    build_optimizer(
        config,
        [{"params": [torch.zeros(1, requires_grad=True)], "lr": rates[part]} for part in part_specs(config)],
        device,
    )
    return plan_training(config, manifest, base, device, kept)


def check_masks(config: TrainConfig, items: tuple[Item, ...]) -> None:
    """Raises DatasetError when masks are asked for and no picture has one."""
    if config.mask != "none" and not any(_has_mask(config, item) for item in items):
        where = (
            "a file like art.mask.png beside art.png"
            if config.mask == "file"
            else "a picture with transparency"
        )
        raise DatasetError(f"no picture has a mask; give {where}, or set mask to none")


def _has_mask(config: TrainConfig, item: Item) -> bool:
    try:
        return mask_of(config, item) is not None
    except DatasetError:  # told when the picture itself is read
        return False
