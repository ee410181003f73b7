"""Checks before a run is written: errors that would end the training at once, and the memory plan."""

from __future__ import annotations

import math
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
from trainer.headers.few_steps import few_step_kind
from trainer.lora_file.attach import start_from
from trainer.planning.budget import matmul_rate
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

EMULATED = 3.0  # times slower than fp32, from which bf16 is not computed by the CPU's own instructions


def check_layers(config: TrainConfig, base: Base) -> None:
    """Attaches the adapter to models without weights, where settings choose layers or a start file.

    Raises:
        ConfigError: the choice of layers does not fit the base.
        LoraFileError: the file of `start_from` can't be read or does not fit.
    """
    chooses_layers = config.include_layers or config.exclude_layers
    chooses_blocks = config.block_ranks or config.block_rates
    if not (chooses_layers or chooses_blocks or config.start_from):
        return
    models, adapter = {part: build(part, base.configs) for part in part_specs(config)}, Adapter()
    for part, sizes in layer_specs(config, models).items():
        adapter.attach(part, models[part], sizes)
    if config.start_from:
        start_from(Path(config.start_from), adapter)


def plan_training(
    config: TrainConfig, manifest: Manifest, base: Base, device: torch.device, cache_folder: Path
) -> Plan:
    """Returns the memory plan of a training.

    Raises:
        ConfigError: the device has too little memory for it.
    """
    placed = placements(config, base, manifest.items)
    width, height = max((placement.bucket for _, placement in placed), key=math.prod)
    trained = [(item, placement.bucket) for item, placement in placed if item.role != "validation"]
    items, buckets = tuple(item for item, _ in trained), tuple(bucket for _, bucket in trained)
    batches = Batches(items, buckets, config.batch, config.seed)
    trains_text = config.train_text_encoder_1 or config.train_text_encoder_2
    captions: set[str] | None = set()
    if not trains_text:
        captions = training_captions(CaptionRules(config), batches, config.steps * config.accumulation)
    sample_size, sample_rows = largest_sample(sample_configs(config, manifest, base), base)
    shape = WorkloadShape(
        configs=base.configs,
        dtype=precision_for(config.precision, device, base.configs, cache_folder),
        width=width,
        height=height,
        windows=config.caption_windows,
        reads_text=trains_text or captions is None,
        drawn=sample_size,
        drawn_rows=sample_rows,
    )
    cached = MAX_CACHED_PROMPTS * caption_bytes(shape) if captions is None else 0
    if device.type == "cpu":  # features from the disk cache stay in the same memory as the models
        examples = sum(len(augmentations_of(config, item, placement)) for item, placement in placed)
        cached += len(captions or ()) * caption_bytes(shape) + examples * latent_bytes(shape)
    return plan(config, shape, device, cache_folder, cached=cached)


def preflight(config: TrainConfig, manifest: Manifest, models: Path, cache_folder: Path) -> Plan:
    """Returns the memory plan of a training that has not been written yet.

    Raises:
        TrainerError: the training would end with this error at its start.
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
    groups = [
        {"params": [torch.zeros(1, requires_grad=True)], "lr": rates[part]} for part in part_specs(config)
    ]
    build_optimizer(config, groups, device)
    return plan_training(config, manifest, base, device, cache_folder)


def setting_notices(config: TrainConfig, device: torch.device) -> list[str]:
    """Returns a sentence for each setting that is valid and has another effect than its value suggests."""
    notices = []
    kind = few_step_kind(Path(config.base).stem, {})
    if kind:
        notices.append(
            f"{config.base} looks like a {kind.name} model, which is made for few steps; a LoRA is better trained "
            f"on the model that it is derived from. Its samples need --s {kind.steps} --l {kind.guidance:g} at the "
            "end of each sample prompt"
        )
    if config.precision == "bf16" and device.type == "cpu":
        times = matmul_rate(device, torch.float32, 256) / matmul_rate(device, torch.bfloat16, 256)
        if times > EMULATED:
            notices.append(
                f"this CPU has no instructions for bf16 and computes it {times:.0f} times slower than fp32; "
                "set precision to fp32"
            )
    if config.warmup_steps >= config.steps > 1:
        notices.append(
            f"warmup_steps {config.warmup_steps} is as long as the training of {config.steps} steps or longer, "
            "so the learning rate rises until the last step and only then reaches its value; lower "
            f"warmup_steps, for example to {max(1, config.steps // 20)}"
        )
    return notices


def check_masks(config: TrainConfig, items: tuple[Item, ...]) -> None:
    """Raises DatasetError when masks are set and no image has a mask that can be used."""
    if config.mask == "none":
        return
    error: DatasetError | None = None
    for item in items:
        try:
            if mask_of(config, item) is not None:
                return
        except DatasetError as unusable:
            error = error or unusable
    if error:
        raise error
    by_file = config.mask == "file"
    remedy = "a file like art.mask.png beside art.png" if by_file else "a picture with transparency"
    raise DatasetError(f"no picture has a mask; give {remedy}, or set mask to none")
