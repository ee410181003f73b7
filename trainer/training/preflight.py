"""The adapter on a base's shapes alone: what would end a training at its start, found before anything is written."""

from __future__ import annotations

from pathlib import Path

from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_sizes, part_sizes
from trainer.config import TrainConfig
from trainer.lora_file.attach import start_from
from trainer.sdxl.base import Base
from trainer.sdxl.weights import build


def rehearse(config: TrainConfig, base: Base) -> None:
    """Raises the ConfigError or LoraFileError of a choice of layers or a start that doesn't fit the base."""
    if not (config.include_layers or config.exclude_layers or config.block_ranks or config.block_rates or config.start_from):
        return
    models, adapter = {part: build(part, base.configs) for part in part_sizes(config)}, Adapter()
    for part, sizes in layer_sizes(config, models).items():
        adapter.attach(part, models[part], sizes)
    if config.start_from:
        start_from(Path(config.start_from), adapter)
