"""Loss curves for TensorBoard or Weights & Biases, by accelerate's trackers."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available

from trainer.config import TrainConfig
from trainer.errors import ConfigError

_INSTALLED = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def check_tracker(config: TrainConfig) -> None:
    """Raises ConfigError when the tracker's package is missing or broken."""
    name = config.log_with
    if name == "none":
        return
    if not _INSTALLED[name]():
        raise ConfigError([f"log_with {name} needs its package: pip install {name}, or set log_with to none"])
    try:
        importlib.import_module(name)
    except ImportError as error:
        remedy = f"pip install --force-reinstall {name}, or set log_with to none"
        raise ConfigError([f"the package {name} is broken ({error}): {remedy}"]) from None


def tracker_options(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Returns the arguments of an Accelerator with which `start_tracker` finds its tracker."""
    return {} if config.log_with == "none" else {"log_with": config.log_with, "project_dir": folder}


def start_tracker(accelerator: Accelerator, config: TrainConfig) -> None:
    """Opens the run in the tracker with all its settings. Raises ConfigError."""
    check_tracker(config)
    if config.log_with != "none":
        settings = {
            name: ", ".join(map(str, v)) if isinstance(v, tuple) else v
            for name, v in dataclasses.asdict(config).items()
        }
        options = {"wandb": {"name": config.name, "dir": str(accelerator.logging_dir)}}
        try:
            accelerator.init_trackers("impasto", config=settings, init_kwargs=options)
        except Exception as error:
            reason = " ".join(str(error).split())
            how = "wandb login, or set WANDB_MODE=offline, or " if config.log_with == "wandb" else ""
            message = f"{config.log_with} does not start ({reason}); {how}set log_with to none"
            raise ConfigError([message]) from error
