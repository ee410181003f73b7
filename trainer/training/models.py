"""Preparation of a training's models: adapter, activation checkpointing and compilation."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from trainer.adapter.lora import Adapter
from trainer.adapter.targets import dropout_settings, layer_specs
from trainer.config import TrainConfig
from trainer.hardware.activation_checkpointing import enable_activation_checkpointing
from trainer.hardware.compile import compile_blocks, should_compile
from trainer.lora_file.attach import start_from
from trainer.runs.run import Run
from trainer.sdxl.protocols import UNet
from trainer.training.checkpoint import checkpoints


def attach_adapter(run: Run, parts: dict[str, nn.Module]) -> Adapter:
    """Returns an adapter with its initial weights, attached to the parts that the run trains.

    With `start_from` the weights of that LoRA file are the initial ones; layers that it lacks are emitted as
    a problem. A resumed run needs that file no more, since its checkpoint replaces all weights.

    Args:
        parts: `unet`, and both text encoders where one of them is trained.

    Raises:
        ConfigError: the chosen layers do not exist, or none is left.
        LoraFileError: the file of `start_from` can't be read or does not fit.
    """
    config = run.config
    adapter = Adapter(dropout_settings(config))
    for part, sizes in layer_specs(config, parts).items():
        adapter.attach(part, parts[part], sizes)
    adapter.init_weights(config.seed)
    if config.start_from and (Path(config.start_from).exists() or not checkpoints(run)):
        left_out = start_from(Path(config.start_from), adapter)
        if left_out:
            run.emit("problem", message=left_out)
    return adapter


def prepare_unet(unet: UNet, config: TrainConfig, cache_folder: Path) -> None:
    """Sets up activation checkpointing and, where it pays off, compilation; must follow `attach_adapter`."""
    enable_activation_checkpointing(unet, config.gradient_checkpointing)
    if should_compile(config, unet):
        compile_blocks(unet, cache_folder / "compiled")
