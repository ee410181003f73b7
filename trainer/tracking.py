"""Curves for TensorBoard or Weights & Biases, by accelerate's trackers."""

from __future__ import annotations

import dataclasses
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available

from trainer.config import TrainConfig
from trainer.errors import ConfigError

_INSTALLED = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def check_tracker(config: TrainConfig) -> None:
    """Raises ConfigError when the tracker's package is missing."""
    if config.log_with != "none" and not _INSTALLED[config.log_with]():
        raise ConfigError([f"log_with {config.log_with} needs its package: pip install {config.log_with}, or set log_with to none"])


def tracker_options(config: TrainConfig, folder: Any) -> dict[str, Any]:
    """What an Accelerator is given so that `start_tracker` finds its tracker."""
    return {} if config.log_with == "none" else {"log_with": config.log_with, "project_dir": folder}


def start_tracker(accelerator: Accelerator, config: TrainConfig) -> None:
    """Opens the run in the tracker with all its settings. Raises ConfigError."""
    check_tracker(config)
    if config.log_with != "none":
        settings = {name: ", ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(config).items()}
        accelerator.init_trackers(
            "impasto", config=settings, init_kwargs={"wandb": {"name": config.name, "dir": str(accelerator.logging_dir)}}
        )
